"""A population against the grid that it begins as: is its best student better than the grid's best, for as many views?

The points, tissue, teachers and store of `asha`: twelve students in lock-step, once left alone, once with
`scheduler: pbt`. The value is the fraction unexplained of the population's best over that of the grid's best; how far
three training seeds of the grid's best point lie apart says how much of it to believe. Needs PATHRYOSHKA_REAL_DATA as
`learns` does.
"""

from __future__ import annotations

from tests.bench.bench_asha import POINTS, all_of, best_of, seeds_of
from tests.bench.common import finish
from tests.bench.trials import options

GOAL = 1.0


def main() -> None:
    args = options()
    # the same views in the same order, and lines that end at the same ones: the last of them are few
    alike = {"data": {"deterministic": True}, "train": {"log_every": 4}}
    base, filling, found, costs = all_of(args, ("grid", "pbt"), **alike)
    ends = {
        how: sorted(trial.values["unexplained"] for trial in record.with_status("finished"))
        for how, record in found.items()
    }
    best, winner = best_of(found["grid"]), best_of(found["pbt"])
    seeds = [ends["grid"][0], *seeds_of(best, base)]
    print(f"grid's best {ends['grid'][0]:.4f} {best.point}; seeds {seeds}; {costs['grid']}")
    print(f"population's best {ends['pbt'][0]:.4f} {winner.point}; {costs['pbt']}")
    facts = {how: vars(costs[how]) | {"ends": ends[how], "views": record.views} for how, record in found.items()}
    way = [taken.model_dump() for taken in winner.taken]
    finish("pbt", [ends["pbt"][0] / ends["grid"][0]], GOAL, below=True, filling=vars(filling), seeds=seeds,
           views=args.views, points=POINTS, winner=winner.point, taken=way, **facts)  # fmt: skip


if __name__ == "__main__":
    main()
