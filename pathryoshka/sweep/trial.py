"""Tune's handle on a trial, and what a trial is: the run of a point under a name of its own.

Nothing here needs torch: each trial's handle is a process, and so is the board. The training runs in the task `drive`,
in a process of its own. The handle is a class and not a function, for only a class is told to stop before its process
ends (`cleanup`), and a trial that is not ended in order leaves its placement group, its lease and its pools to whoever
notices.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle

from pathryoshka import config
from pathryoshka.distill.metrics import mean_unexplained, unexplained
from pathryoshka.sweep.record import trials_root
from pathryoshka.sweep.space import Point, Sweep, run_of
from pathryoshka.teachers.pool import Shared

POLL_S = 0.3
STOP_S = 60.0
"""What a trial may take to end in order before it is killed."""


class TrialError(RuntimeError):
    """A trial failed; the sentence is the trial's own."""


@dataclass(frozen=True)
class Settings:
    """What all trials of a sweep share. `board`: the actor's name, for Tune writes settings down with its state, and a
    handle means nothing to the session in which a sweep goes on."""

    sweep: Sweep
    base: config.Run
    shared: Shared | None
    board: str


@dataclass(frozen=True)
class TrialJob:
    """What the driver of one trial gets."""

    run: config.Run
    sweep: Sweep
    base: config.Run
    shared: Shared | None


def encode(point: Point) -> dict[str, Any]:
    """A point as Tune holds it: what is not a scalar becomes JSON text, which loggers and Optuna can carry."""
    return {k: v if isinstance(v, str | int | float | bool) else json.dumps(v) for k, v in point.items()}


def decode(sweep: Sweep, encoded: dict[str, Any]) -> Point:
    """Back from `encode`."""
    point = {}
    for key, value in encoded.items():
        choices = {json.dumps(v): v for v in sweep.space[key].values or ()}
        point[key] = choices.get(value, value) if isinstance(value, str) else value
    return point


def trial_run(sweep: Sweep, base: config.Run, point: Point, name: str) -> config.Run:
    """The run of a trial: `<storage.root>/<sweep>/trials/<trial>`.

    A scheduler compares trials at their log lines: the first one is at the first rung, or what is behind trains on.
    """
    run = run_of(base, point)
    over: dict[str, Any] = {"name": name, "storage": base.storage.model_copy(update={"root": trials_root(base)})}
    if sweep.scheduler != "none":
        rung = math.ceil(sweep.rungs.grace_share * run.plan.num_views / run.train.global_batch)
        over["train"] = run.train.model_copy(update={"log_every": min(run.train.log_every, rung)})
    return run.model_copy(update=over)


@ray.remote(num_cpus=0, max_retries=0)
def drive(job: TrialJob, board: ActorHandle) -> dict[str, float]:
    """The trial from its start or its last checkpoint to its values: `sweep.drive.distil`, which needs torch."""
    from pathryoshka.sweep.drive import distil

    return distil(job, board)


class TrialActor(tune.Trainable):
    """What Tune holds of a trial: starts its driver, brings its log lines, ends it.

    Each result has `views`, `unexplained` (mean of the teachers) and the line's own keys; the last one also has
    `done`, `finished` and `objective/<metric>` for each objective.
    """

    def setup(self, config: dict[str, Any], settings: Settings) -> None:  # type: ignore[override]
        self.settings, self.lines, self.last = settings, deque[dict[str, float]](), {"views": 0.0}
        point = decode(settings.sweep, config["point"])
        run = trial_run(settings.sweep, settings.base, point, self.trial_id)
        self.job, self.started = TrialJob(run, settings.sweep, settings.base, settings.shared), False

    def step(self) -> dict[str, Any]:
        board = ray.get_actor(self.settings.board)
        if not self.started:
            ray.get(board.start.remote(self.trial_id, self.job))
            self.started = True
        while True:
            while self.lines:
                line = self.lines.popleft()
                if not unexplained(line):
                    raise TrialError("its losses have no fraction unexplained to compare by; sweep with other losses")
                self.last = {**line, "unexplained": mean_unexplained(line)}
                if line["views"] < self.job.run.plan.num_views:
                    return dict(self.last)
                # the last line goes with the values: a scheduler would stop a trial that has reached its end unmeasured
            taken: Any = ray.get(board.take.remote(self.trial_id))
            lines, values, error = taken  # as `Board.take` says
            self.lines.extend(lines)
            if lines:
                continue
            if error is not None:
                raise TrialError(error)
            if values is not None:
                chosen = {f"objective/{o.metric}": values[o.metric] for o in self.settings.sweep.objective}
                views = {"views": float(self.job.run.plan.num_views)}
                return {**self.last, **values, **views, **chosen, "done": True, "finished": 1}
            time.sleep(POLL_S)

    def cleanup(self) -> None:
        board, begun = ray.get_actor(self.settings.board), time.monotonic()
        while not ray.get(board.stop.remote(self.trial_id, time.monotonic() - begun > STOP_S)):
            time.sleep(POLL_S)
