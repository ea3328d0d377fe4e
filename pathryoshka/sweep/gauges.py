"""Gauges of each trial for Prometheus, through Ray's own exporter: what Tune itself does not export.

They live in the sweep's board, so that one process serves all its trials; a trial that ended keeps its last values.
"""

from __future__ import annotations

from ray.util.metrics import Gauge

NAMES = {
    "loss": ("loss", "weighted loss of a trial"),
    "tiles_per_s": ("tiles_per_s", "views a trial trains on a second"),
    "wait_share": ("wait_share", "share of time that a trial's workers wait for data"),
    "views": ("views", "views presented to a trial's student"),
    "store/hit_rate": ("store_hit_rate", "share of views whose features came from the store"),
}
"""Key of a log line -> (name below `ray_pathryoshka_trial_`, description)."""


def unexplained(values: dict[str, float]) -> dict[str, float]:
    """{teacher: fraction unexplained} of a log line."""
    return {key.split("/")[1]: v for key, v in values.items() if key.startswith("unexplained/") and key.count("/") == 1}


class Gauges:
    def __init__(self, sweep: str) -> None:
        self.sweep, tags = sweep, ("sweep", "trial")
        self.gauges = {
            key: Gauge(f"pathryoshka_trial_{name}", description=said, tag_keys=tags)
            for key, (name, said) in NAMES.items()
        }
        said = "fraction of a teacher's variance that a trial's student does not predict"
        self.teachers = Gauge("pathryoshka_trial_unexplained", description=said, tag_keys=(*tags, "teacher"))

    def show(self, trial: str, values: dict[str, float]) -> None:
        tags = {"sweep": self.sweep, "trial": trial}
        for key, gauge in self.gauges.items():
            if key in values:
                gauge.set(values[key], tags=tags)
        for teacher, value in unexplained(values).items():
            self.teachers.set(value, tags={**tags, "teacher": teacher})
