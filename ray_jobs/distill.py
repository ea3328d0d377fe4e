"""Distils a run, or goes on where it stands."""

from ray_jobs.entry import run_verb

if __name__ == "__main__":
    run_verb("distill")
