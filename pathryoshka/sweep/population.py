"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846) for students in lock-step.

At each rung the worst take over the checkpoints of the best and go on with their values moved a little. Checkpoints of
one stream have one past, so a copy continues the plan where it stands: every view is still presented exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np

from pathryoshka import config
from pathryoshka.distill import checkpoint
from pathryoshka.runs.driver import Say, lease_of
from pathryoshka.sweep.record import Record, Recorder, Takeover, Trial
from pathryoshka.sweep.space import Axis, Point, Sweep, describe

FACTORS = (0.8, 1.25)
Scores = Mapping[str, float | None]
"""Trial id -> fraction unexplained at the rung, None where it did not get there."""


def evolve(sweep: Sweep, runs: Sequence[config.Run], scores: Scores, rung: int, recorder: Recorder, say: Say) -> None:
    """What a rung decides, and the checkpoints that it moves; nothing where all of that was done before.

    The decision is written down before it is carried out, and carried out whole before anyone trains on: a sweep that
    was killed in between moves the same checkpoints again, which changes nothing.

    Args:
        rung: in views.
    """
    record = recorder.record
    if rung in record.evolved:
        return
    if not decided(record, rung):
        for trial_id, other in pairs(scores, sweep.rungs.reduction):
            trial, better = record.trials[trial_id], record.trials[other]
            rng = np.random.default_rng([sweep.seed, rung, trial.number])
            trial.taken.append(Takeover(views=rung, of=other, before=trial.point))
            trial.point, trial.status, trial.error = moved(better.point, sweep, rng), "running", ""
        recorder.write(force=True)
    by_name = {run.name: run for run in runs}
    for trial in record.trials.values():
        for taken in trial.taken:
            if taken.views == rung:
                take_over(by_name[trial.id], by_name[taken.of])
                say(in_words(trial, taken, record.trials[taken.of], scores))
    record.evolved.append(rung)
    recorder.write(force=True)


def decided(record: Record, rung: int) -> bool:
    """Whether all came to a rung, and what follows from it is written down."""
    return rung in record.evolved or any(taken.views == rung for t in record.trials.values() for taken in t.taken)


def pairs(scores: Scores, reduction: float) -> list[tuple[str, str]]:
    """(who takes over, from whom): the worst one of `reduction` from as many of the best, the worst from the best.
    Whoever did not get there is worst; if nobody did, nobody takes over."""
    arrived = {name: value for name, value in scores.items() if value is not None}
    order = sorted(arrived, key=lambda name: arrived[name])
    many = max(1, int(len(scores) / reduction))
    lost = [name for name in scores if name not in arrived]
    behind = lost + order[::-1][: max(0, min(many - len(lost), len(order) // 2))]
    ahead = [name for name in order if name not in behind][:many]
    return list(zip(behind, cycle(ahead), strict=False)) if ahead else []


def moved(point: Point, sweep: Sweep, rng: np.random.Generator) -> Point:
    """Each value a fifth less or a quarter more, inside its range; of a list the next one to either side."""
    return {key: move(value, sweep.space[key], rng) for key, value in point.items()}


def move(value: float, axis: Axis, rng: np.random.Generator) -> float:
    up = int(rng.integers(2))
    if axis.values is not None:
        values = sorted(axis.values)
        return float(values[min(max(values.index(value) + (1 if up else -1), 0), len(values) - 1)])
    low, high = axis.corners
    return float(min(max(value * FACTORS[up], low), high))


def take_over(run: config.Run, other: config.Run) -> None:
    """The run goes on from where the other one stands."""
    with lease_of(run) as lease:
        checkpoint.take_over(checkpoint.uri_of(run), lease.token, checkpoint.uri_of(other), run.storage)


def in_words(trial: Trial, taken: Takeover, better: Trial, scores: Scores) -> str:
    mine, its = scores[trial.id], scores[better.id]
    was = "did not get there" if mine is None else f"{mine:.4f} unexplained"
    return (
        f"trial {trial.number}: at {taken.views} views {was}, takes over trial {better.number} ({its:.4f}), "
        f"goes on with {describe(trial.point)}"
    )
