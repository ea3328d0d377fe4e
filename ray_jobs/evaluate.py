"""Scores a run at every width, beside its teachers."""

from ray_jobs.entry import run_verb

if __name__ == "__main__":
    run_verb("evaluate")
