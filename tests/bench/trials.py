"""Eight students of one sweep over loss weights and learning rates, for the benches that ask what they cost together.

Needs PATHRYOSHKA_REAL_DATA as `learns` does: half a of its tissue, the demo's three teachers and student. What a phase
costs is CPU seconds of this process and all below it, and wall time, start-up of its Ray session and pools included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathryoshka import config
from pathryoshka.runs.devices import logical_cpus
from pathryoshka.runs.job import distill
from pathryoshka.session import ray_session
from tests.bench.bench_learns import make_tiles, run_of
from tests.bench.sampling import Sampler

POINTS: list[dict[str, Any]] = [
    {"optim": {"lr": lr}, "loss": {"weights": weights}}
    for lr in (1.5e-3, 3e-3)
    for weights in ({}, {"lite0": 0.3}, {"lite1": 0.3}, {"lite2": 0.3})
]


@dataclass(frozen=True)
class Cost:
    """Seconds."""

    cpu: float
    wall: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu + other.cpu, self.wall + other.wall)

    def times(self, n: float) -> Cost:
        return Cost(self.cpu * n, self.wall * n)

    def __str__(self) -> str:
        return f"{self.cpu:.0f} CPU s, {self.wall:.0f} s"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--views", type=int, default=9_600, help="presented to each student")
    parser.add_argument("--per-tile", type=int, default=2, help="distinct views of a tile")
    parser.add_argument("--live", type=int, default=2, help="runs with live teachers that are measured, of eight")
    parser.add_argument("--work", type=Path, default=Path("out/trials"))
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    if not os.environ.get("PATHRYOSHKA_REAL_DATA"):
        sys.exit("this bench needs real tissue: set PATHRYOSHKA_REAL_DATA to a folder as bench_learns.py says")
    return args


def tiles_here(args: argparse.Namespace, uris: Sequence[str]) -> list[str]:
    """Of `learns`' tile data sets those that are not cut from slides, in the work folder."""
    return [uri.replace("s3://learns", str(args.work)) for uri in uris if "slides" not in uri]


def students(args: argparse.Namespace, kind: str) -> list[config.Run]:
    """The eight runs, their tiles in a folder, under names that say how they are trained."""
    base = run_of("a", args.views, args.set)
    shutil.rmtree(args.work / "runs" / kind, ignore_errors=True)
    common = {
        "data": {"tiles": tiles_here(args, base.data.tiles)},
        "views": {"per_tile": args.per_tile},
        "storage": {"root": str(args.work / "runs" / kind)},
        "train": {"checkpoint_every": 1000, "log_every": 25},
        "evaluate": {"tiles": []},
    }
    tree = config.overlay(base.model_dump(), common)
    return [config.make_run(config.overlay(tree, point | {"name": f"s{i}"})) for i, point in enumerate(POINTS)]


def with_tiles(args: argparse.Namespace) -> None:
    if not (args.work / "tiles" / "distil_a" / "_manifest.json").exists():
        with ray_session(os.cpu_count() or 1):
            source = Path(os.environ["PATHRYOSHKA_REAL_DATA"])
            make_tiles(source, args.work, f"{args.work}/tiles", config.Storage())


def cost_of(run: config.Run | None, what: str, work: Callable[[], Any]) -> Cost:
    """Of `work` in a Ray session of its own: one for `run`, or that which `work` starts itself."""
    started = time.perf_counter()
    with Sampler() as sampler, ray_session(logical_cpus(run)) if run else contextlib.nullcontext():
        work()
    seconds = sum(float(seconds.sum()) for seconds in sampler.cpu[-1].values())
    first = sum(float(seconds.sum()) for seconds in sampler.cpu[0].values())
    cost = Cost(seconds - first, time.perf_counter() - started)
    print(f"{what}: {cost}", flush=True)
    return cost


def eight_alone(args: argparse.Namespace) -> Cost:
    """Eight runs of their own with live teachers: `--live` of them are measured and counted eight times over. Kept in
    the work folder, so that a bench that follows on the same commit and settings need not measure them again."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    asked = {"commit": commit, "views": args.views, "per_tile": args.per_tile, "live": args.live, "set": args.set}
    kept = args.work / "alone.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    if found.get("asked") == asked:
        cost = Cost(**found["cost"])
        print(f"{args.live} runs alone, measured before on {commit}: {cost}", flush=True)
    else:
        cost = Cost(0, 0)
        for run in students(args, "live")[: args.live]:
            cost += cost_of(run, f"{run.name} alone", lambda run=run: distill(run, say=quiet))  # type: ignore[misc]
        kept.write_text(json.dumps({"asked": asked, "cost": vars(cost)}))
    return cost.times(8 / args.live)


def quiet(line: str) -> None:
    """Of a run's lines those that say how it goes."""
    if ("step" in line and "left" in line) or line.startswith("store:"):
        print(f"  {line}", flush=True)
