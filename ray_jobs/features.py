"""Fills the feature store of a run; again, it does what is missing."""

from ray_jobs.entry import run_verb

if __name__ == "__main__":
    run_verb("store", "fill")
