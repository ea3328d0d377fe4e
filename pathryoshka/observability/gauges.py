"""Figures of runs, trials and teachers for Prometheus, through Ray's own exporter.

One table a subject says what is shown; the boards and the tests read the same tables. Ray (2.60) exports a gauge that
was set once, and drops it 20 s later: a log line may be minutes old and still be the last word, so a process that shows
something holds it and sets it again and again. Those processes outlive the workers they speak of (`session.Console`,
the sweep's board, the driver), so that a figure that stands still is seen to stand still.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ray.util.metrics import Gauge

AGAIN_S = 4.0
"""Seconds from one setting to the next; Ray collects what was set every 10 s."""
SEEN_S = 30.0
"""Until Prometheus has seen a figure: ours, Ray's 10 s and a scrape."""


@dataclass(frozen=True)
class Shown:
    """One gauge.

    Attributes:
        key: in a log line. One that ends in "/" stands for every key a level below, whose rest is the value of `label`.
        name: below the prefix of its subject.
        said: what it is, for people.
        unit: as Grafana calls it.
    """

    key: str
    name: str
    said: str
    unit: str = "short"
    label: str = ""

    def read(self, values: Mapping[str, float]) -> Iterator[tuple[dict[str, str], float]]:
        """(labels, value) of what `values` has of it."""
        if not self.label:
            if self.key in values:
                yield {}, values[self.key]
            return
        for key, value in values.items():
            rest = key.removeprefix(self.key)
            if rest != key and "/" not in rest:
                yield {self.label: rest}, value


TRIAL = (
    Shown("unexplained/", "unexplained", "fraction of a teacher's variance that is not predicted", label="teacher"),
    Shown("loss", "loss", "weighted loss"),
    Shown("tiles_per_s", "tiles_per_s", "views trained on a second"),
    Shown("wait_share", "wait_share", "share of the time that workers wait for data", "percentunit"),
    Shown("views", "views", "views trained on"),
    Shown("store/hit_rate", "store_hit_rate", "share of features that came from the store", "percentunit"),
)
"""Of a log line, for each trial of a sweep: `pathryoshka_trial_<name>{sweep, trial}`."""

RUN = (
    *TRIAL,
    Shown("rate/", "stage_rate", "views a second that a stage could make", label="stage"),
    Shown("nonfinite/", "nonfinite", "views, or micro-batches of the loss, that were not finite", label="source"),
    Shown("views_planned", "views_planned", "views in the plan"),
    Shown("seconds_left", "seconds_left", "seconds to the end at this pace", "s"),
    Shown("lr", "lr", "learning rate"),
    Shown("memory/student", "student_memory_mib", "peak memory of a train worker", "mbytes"),
    Shown("line_seconds", "line_seconds", "seconds from one log line to the next", "s"),
    Shown("logged_at", "logged_timestamp_seconds", "when the last log line was written, or the run started", "s"),
    Shown("checkpoint_at", "checkpoint_timestamp_seconds", "when the last checkpoint was whole", "s"),
    Shown("began_at", "began_timestamp_seconds", "when the run would have begun had it never paused", "s"),
    Shown("cost_per_hour", "cost_per_hour", "price of an hour, as the config gives it"),
    Shown("budget", "budget", "spend at which to raise an alarm, as the config gives it"),
)
"""Of a run, by its log lines and its driver: `pathryoshka_run_<name>{run}`."""

POOL = (
    Shown("ready/", "ready", "replicas that answer", label="teacher"),
    Shown("wanted/", "wanted", "replicas that there should be", label="teacher"),
    Shown("restarts/", "restarts", "times a replica came back in another process", label="teacher"),
    Shown("failed_starts/", "failed_starts", "starts that failed, one after the other", label="teacher"),
)
"""Of a pool of teachers, by its driver: `pathryoshka_teacher_<name>{run, teacher}`; `run` owns the pool."""

FLIGHT = (Shown("views/", "views", "views that were sent and not yet answered", label="teacher"),)
"""Of teachers, by the stage that asks them: `pathryoshka_teacher_in_flight_views{run, teacher}`."""


class Gauges:
    """Holds what is shown and keeps setting it, in a thread of its own.

    Args:
        prefix: of the names, without Ray's `ray_`.
        labels: of every gauge, beside a gauge's own.
    """

    def __init__(self, prefix: str, table: Sequence[Shown], labels: tuple[str, ...]) -> None:
        self.gauges = {
            shown: Gauge(f"{prefix}_{shown.name}", shown.said, (*labels, *filter(None, [shown.label])))
            for shown in table
        }
        self.held: dict[tuple[Shown, tuple[tuple[str, str], ...]], float] = {}
        self.stopped = threading.Event()
        threading.Thread(target=self.keep, name=prefix, daemon=True).start()

    def show(self, labels: Mapping[str, str], values: Mapping[str, float]) -> None:
        """Notes what `values` has of the table; costs a few microseconds, so also where it is hot."""
        for shown in self.gauges:
            for more, value in shown.read(values):
                self.held[shown, tuple({**labels, **more}.items())] = value

    def keep(self) -> None:
        while not self.stopped.wait(AGAIN_S):
            for (shown, labels), value in list(self.held.items()):
                self.gauges[shown].set(value, tags=dict(labels))
