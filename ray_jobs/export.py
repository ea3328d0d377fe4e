"""Writes a run's student as a folder that plain timm loads."""

from ray_jobs.entry import run_verb

if __name__ == "__main__":
    run_verb("export")
