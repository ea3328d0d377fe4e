"""Runs every trial of a sweep; with --resume it goes on."""

from ray_jobs.entry import run_verb

if __name__ == "__main__":
    run_verb("sweep")
