"""What a sweep knows of its trials, as plain values beside it: `<storage.root>/<sweep>/sweep.json`.

The driver writes it as trials come and go; budgets are counted in it, the report is drawn from it, and a sweep that is
resumed goes on with it. A trial's own result is `<sweep>/trials/<id>/outcome.json`, written by the trial when it is
done: whoever finds it does not run that trial again.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pathryoshka import config, storage
from pathryoshka.sweep.space import Point

Status = Literal["running", "finished", "stopped", "failed"]
WRITE_S = 5.0
"""Between two writes while only figures change."""


class Takeover(BaseModel):
    """That a trial went on from the checkpoint of a better one after so many views; `before`: its point until then."""

    model_config = ConfigDict(extra="forbid")

    views: int
    of: str
    before: Point


class Trial(BaseModel):
    """One run of a sweep.

    Attributes:
        number: counts trials in the order in which they came.
        status: `stopped` by the scheduler or a budget, before its plan was done.
        curve: (views, fraction unexplained) of each log line.
        values: what the objectives are chosen from, once it has finished.
        taken: what it took over from others, oldest first; `point` is what it goes on with.
        seconds: of wall time, all its attempts together; `views`: presented so far.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    number: int
    point: Point
    status: Status = "running"
    error: str = ""
    failures: int = 0
    seconds: float = 0.0
    views: int = 0
    curve: list[tuple[int, float]] = []
    values: dict[str, float] = {}
    taken: list[Takeover] = []


class Record(BaseModel):
    """All trials, the wall time of the sweep's sessions, and the rungs at which a population has evolved."""

    model_config = ConfigDict(extra="forbid")

    trials: dict[str, Trial] = {}
    seconds: float = 0.0
    evolved: list[int] = []

    def trial(self, name: str, point: Point) -> Trial:
        if name not in self.trials:
            self.trials[name] = Trial(id=name, number=len(self.trials), point=point)
        return self.trials[name]

    @property
    def views(self) -> int:
        return sum(trial.views for trial in self.trials.values())

    @property
    def trial_hours(self) -> float:
        return sum(trial.seconds for trial in self.trials.values()) / 3600

    def with_status(self, *status: Status) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.status in status]


def sweep_uri(base: config.Run) -> str:
    return storage.absolute(storage.join(base.storage.root, base.name))


def trials_root(base: config.Run) -> str:
    return storage.join(sweep_uri(base), "trials")


def record_uri(base: config.Run) -> str:
    return storage.join(sweep_uri(base), "sweep.json")


def outcome_uri(run: config.Run) -> str:
    """Of a trial's run."""
    return storage.join(run.storage.root, run.name, "outcome.json")


def read_record(base: config.Run) -> Record:
    """What is there; empty before the first trial."""
    uri = record_uri(base)
    return (
        Record.model_validate(storage.read_json(uri, base.storage)) if storage.exists(uri, base.storage) else Record()
    )


class Recorder:
    """A `Record` and its file, written at most every `WRITE_S` unless forced."""

    def __init__(self, base: config.Run) -> None:
        self.base, self.record = base, read_record(base)
        self.before_s, self.started, self.written = self.record.seconds, time.monotonic(), 0.0

    def write(self, force: bool = False) -> None:
        now = time.monotonic()
        self.record.seconds = self.before_s + now - self.started
        if force or now - self.written > WRITE_S:
            self.written = now
            value: Any = self.record.model_dump(mode="json")
            storage.write_json(record_uri(self.base), value, self.base.storage)
