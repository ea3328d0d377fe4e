"""Cuts slides into a tile data set; again, it does what is missing or failed."""

from ray_jobs.entry import run_verb

if __name__ == "__main__":
    run_verb("tiles", "cut")
