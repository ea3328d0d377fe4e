"""Embeds slides or tiles with an exported student; again, it does what is missing."""

from ray_jobs.entry import run_verb

if __name__ == "__main__":
    run_verb("embed")
