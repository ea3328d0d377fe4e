"""Eight students from one filling of the feature store against eight runs with live teachers, filling included.

CPU seconds and wall time on real tissue; the ratio is the larger of the two. The eight share one stream out of the
store, in lock-step, as a sweep without early stopping runs them; `--one-by-one` trains one after the other instead, as
one with it does. Of the runs with live teachers `--live` are measured and counted eight times over.
"""

from __future__ import annotations

import shutil
import sys

from pathryoshka import config
from pathryoshka.runs import shelving
from pathryoshka.runs.job import distill, distill_together
from tests.bench.common import finish
from tests.bench.trials import cost_of, eight_alone, options, quiet, students, with_tiles

GOAL = 0.35


def main() -> None:
    one_by_one = "--one-by-one" in sys.argv
    sys.argv = [arg for arg in sys.argv if arg != "--one-by-one"]
    args = options()
    with_tiles(args)
    shutil.rmtree(args.work / "store", ignore_errors=True)
    over = {"store": {"uri": str(args.work / "store")}}
    runs = [config.make_run(config.overlay(run.model_dump(), over)) for run in students(args, "stored")]
    filling = cost_of(runs[0], "filling the store", lambda: shelving.fill(runs[0], say=quiet))

    def train() -> None:
        if not one_by_one:
            distill_together(runs, say=quiet)
            return
        for run in runs:
            distill(run, say=quiet)

    trials = cost_of(runs[0], "eight trials", train)
    alone = eight_alone(args)
    stored = filling + trials
    ratio = max(stored.cpu / alone.cpu, stored.wall / alone.wall)
    facts = {"filling": vars(filling), "trials": vars(trials), "live": vars(alone), "measured_live": args.live}
    facts |= {"views": args.views, "per_tile": args.per_tile, "one_by_one": one_by_one, "settings": args.set}
    finish("sweep", [ratio], GOAL, below=True, **facts)


if __name__ == "__main__":
    main()
