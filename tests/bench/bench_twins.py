"""All teachers against one, nested against not: twins of one run on real tissue, three seeds, the two halves crossed.

Needs PATHRYOSHKA_REAL_DATA as `learns` does. Each half's students are probed on the other half, by patient and by
cluster of near-duplicates. Every question of `pathryoshka ablate` is answered in each half and over both; the value is
what all teachers gain over the median single-teacher twin, mean over data sets and halves, in points (published: +7).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathryoshka import config
from pathryoshka.ablate.run import run_ablation
from pathryoshka.ablate.table import Ablation, as_lines
from pathryoshka.ablate.twins import Ablate
from pathryoshka.evaluate.across import Contrast, overall
from pathryoshka.evaluate.statistics import Estimate
from tests.bench.bench_learns import run_of
from tests.bench.common import finish
from tests.bench.trials import tiles_here, with_tiles

GOAL = 7.0


def base_of(args: argparse.Namespace, half: str) -> config.Run:
    """The run that the twins of a half are made from, its tiles in a folder, teachers in a store."""
    base = run_of(half, args.views, args.set)
    over: dict[str, Any] = {
        "name": f"twins-{half}-{args.views}",
        "data": {"tiles": tiles_here(args, base.data.tiles)},
        "evaluate": {"tiles": tiles_here(args, base.evaluate.tiles), "protocols": []},
        "views": {"per_tile": args.per_tile},
        "store": {"uri": f"{args.work}/store-{half}"},
        "storage": {"root": f"{args.work}/runs"},
        "train": {"checkpoint_every": 1000, "log_every": 50},
    }
    return config.make_run(config.overlay(base.model_dump(), over))


def both(found: Mapping[str, Ablation]) -> dict[tuple[str, str], list[Contrast]]:
    """(question, protocol) -> its contrasts in every half."""
    out: dict[tuple[str, str], list[Contrast]] = {}
    for ablation in found.values():
        for question in ablation.questions:
            out.setdefault((question.says, question.protocol), []).extend(question.contrasts)
    return out


def said(name: str, found: Estimate) -> str:
    return f"  {name:<16} {100 * found.value:+5.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--views", type=int, default=9_600, help="presented to each student")
    parser.add_argument("--per-tile", type=int, default=2, help="distinct views of a tile")
    parser.add_argument("--halves", default="a,b")
    parser.add_argument("--what", default="single,flat", help="as ablate.what")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lockstep", type=int, default=15)
    parser.add_argument("--work", type=Path, default=Path("out/twins"))
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    if not os.environ.get("PATHRYOSHKA_REAL_DATA"):
        sys.exit("bench twins needs real tissue: set PATHRYOSHKA_REAL_DATA to a folder as bench_learns.py says")
    with_tiles(args)
    ablate = Ablate(what=args.what.split(","), seeds=args.seeds, lockstep=args.lockstep)
    found: dict[str, Ablation] = {}
    for half in args.halves.split(","):
        found[half] = run_ablation(ablate, base_of(args, half))
        print(f"distilled on half {half}", *as_lines(found[half]), sep="\n", flush=True)
    table: dict[str, Any] = {}
    for (question, protocol), contrasts in both(found).items():
        print(f"{question} ({protocol}), points, over the halves")
        names = [c.dataset.rsplit("_", 1)[0] for c in contrasts]
        for name in dict.fromkeys(names):
            mean = overall([c for c, of in zip(contrasts, names, strict=True) if of == name]).mean
            print(said(name, mean))
            table.setdefault(f"{question} ({protocol})", {})[name] = [mean.value, mean.low, mean.high]
        mean = overall(contrasts).mean
        print(said("mean", mean), flush=True)
        table[f"{question} ({protocol})"]["mean"] = [mean.value, mean.low, mean.high]
    gain = next(rows["mean"][0] for says, rows in table.items() if "median single-teacher" in says)
    finish("twins", [100 * gain], GOAL, views=args.views, halves=args.halves, seeds=args.seeds, table=table)


if __name__ == "__main__":
    main()
