"""Eight students in lock-step on one live stream against eight runs of their own: CPU seconds and wall time.

The ratio is the larger of the two. Of the runs of their own `--live` are measured and counted eight times over.
"""

from __future__ import annotations

from pathryoshka.runs.job import distill_together
from tests.bench.common import finish
from tests.bench.trials import cost_of, eight_alone, options, quiet, students, with_tiles

GOAL = 0.5


def main() -> None:
    args = options()
    with_tiles(args)
    alone = eight_alone(args)
    runs = students(args, "lockstep")
    together = cost_of(runs[0], "eight in lock-step", lambda: distill_together(runs, say=quiet))
    ratio = max(together.cpu / alone.cpu, together.wall / alone.wall)
    facts = {"alone": vars(alone), "together": vars(together), "views": args.views, "measured_alone": args.live}
    finish("lockstep", [ratio], GOAL, below=True, settings=args.set, **facts)


if __name__ == "__main__":
    main()
