"""ASHA and halving against the whole grid on one feature store: what they cost, and whether their winners are as good.

Twelve points of learning rate and teachers' weights on real tissue, the demo's student and teachers. The whole grid is
trained to the end in lock-step; halving has the same points in lock-step, ASHA has them in the same order, one trial at
a time. A winner is as good as the grid's best where its value in the grid is behind by no more than the best point's
values over three training seeds differ; else its scheduler is counted as if it had cost the whole grid. The value is
ASHA's share of the grid's tile-views. Needs PATHRYOSHKA_REAL_DATA as `learns` does.
"""

from __future__ import annotations

import argparse
import shutil
from typing import Any

import yaml

from pathryoshka import config
from pathryoshka.distill import checkpoint
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.recipes import as_file
from pathryoshka.runs import shelving
from pathryoshka.runs.job import distill_together
from pathryoshka.sweep.objective import late_share
from pathryoshka.sweep.record import Record, Trial
from pathryoshka.sweep.run import run_sweep
from pathryoshka.sweep.space import load_sweep, run_of
from tests.bench.common import finish
from tests.bench.trials import Cost, cost_of, options, quiet, students, with_tiles

GOAL, POINTS, SEEDS = 0.5, 12, (1, 2)
SPACE = {
    "optim.lr": {"loguniform": [1e-4, 1e-2]},
    "loss.weights.lite0": {"uniform": [0.2, 2.0]},
    "loss.weights.lite2": {"uniform": [0.2, 2.0]},
}
HOW: dict[str, dict[str, Any]] = {
    "grid": {"lockstep": 12},
    "halving": {"scheduler": "halving", "lockstep": 12},
    "asha": {"scheduler": "asha", "max_concurrent": 1},
    "pbt": {"scheduler": "pbt", "lockstep": 12},
}


def swept(base: config.Run, how: str, args: argparse.Namespace) -> Record:
    tree = as_file(base) | {"name": how}
    tree["sweep"] = {"space": SPACE, "search": "random", "num_trials": POINTS, **HOW[how]}
    file = args.work / f"{how}.yaml"
    file.write_text(yaml.safe_dump(tree))
    return run_sweep(*load_sweep(file), say=said)


def said(line: str) -> None:
    if not ("step" in line and "left" in line):
        print(f"  {line}", flush=True)


def best_of(record: Record) -> Trial:
    return min(record.with_status("finished"), key=lambda trial: trial.values["unexplained"])


def seeds_of(trial: Trial, run: config.Run) -> list[float]:
    """The same point with other seeds of training; fraction unexplained at the end."""
    base = run_of(run, trial.point)
    over = [{"name": f"seed{seed}", "train": {"seed": seed}} for seed in SEEDS]
    runs = [config.make_run(config.overlay(base.model_dump(), one)) for one in over]
    cost_of(runs[0], "the best point with other seeds", lambda: distill_together(runs, say=quiet))
    return [late_share(read_metrics(checkpoint.uri_of(one), one.storage), one.plan.num_views) for one in runs]


def all_of(
    args: argparse.Namespace, hows: tuple[str, ...], **over: Any
) -> tuple[config.Run, Cost, dict[str, Record], dict[str, Cost]]:
    """The base run, what filling its store cost, and the sweeps one after the other with their costs."""
    with_tiles(args)
    for name in ("store-asha", "runs/asha"):
        shutil.rmtree(args.work / name, ignore_errors=True)
    over |= {"store": {"uri": str(args.work / "store-asha")}, "loss": {"weights": {}}}
    base = config.make_run(config.overlay(students(args, "asha")[0].model_dump(), over))
    filling = cost_of(base, "filling the store", lambda: shelving.fill(base, say=quiet))
    found: dict[str, Record] = {}
    costs: dict[str, Cost] = {}
    for how in hows:
        costs[how] = cost_of(None, how, lambda how=how: found.update({how: swept(base, how, args)}))  # type: ignore[misc]
    return base, filling, found, costs


def main() -> None:
    args = options()
    base, filling, found, costs = all_of(args, ("grid", "halving", "asha"))
    by_point = {str(trial.point): trial for trial in found["grid"].with_status("finished")}
    best = best_of(found["grid"])
    values = [best.values["unexplained"], *seeds_of(best, base)]
    noise = max(values) - min(values)
    print(f"grid's best {values[0]:.4f} {best.point}; seeds {values}; {costs['grid']}")
    facts: dict[str, Any] = {"filling": vars(filling), "grid": vars(costs["grid"])}
    shares: dict[str, float] = {}
    for how in ("halving", "asha"):
        behind = by_point[str(best_of(found[how]).point)].values["unexplained"] - values[0]
        views = found[how].views / found["grid"].views
        shares[how] = views if behind <= noise else 1.0
        facts[how] = vars(costs[how]) | {"behind": behind, "share_of_views": views}
        print(f"{how}: winner {behind:.4f} behind (seeds: {noise:.4f}), {views:.2f} of the views; {costs[how]}")
    facts |= {"seeds": values, "views": args.views, "points": POINTS}
    facts |= {"grid_values": sorted(t.values["unexplained"] for t in found["grid"].with_status("finished"))}
    finish("asha", [shares["asha"]], GOAL, below=True, **facts)


if __name__ == "__main__":
    main()
