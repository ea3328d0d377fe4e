"""Imports a folder of images as a tile data set."""

from ray_jobs.entry import run_verb

if __name__ == "__main__":
    run_verb("tiles", "import")
