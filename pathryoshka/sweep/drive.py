"""The driver of one trial: the same `prepared` and `fit` as in `pathryoshka distill`, in the main thread of a Ray task.

A trial is a run with a name, so whoever starts it again continues from its own checkpoint.
"""

from __future__ import annotations

import time
from typing import Any

from ray.actor import ActorHandle
from ray.train import UserCallback

from pathryoshka import storage
from pathryoshka.runs.driver import fit, prepared
from pathryoshka.sweep.objective import measure
from pathryoshka.sweep.record import outcome_uri
from pathryoshka.sweep.trial import TrialJob


class Report(UserCallback):
    """Hands the log lines of rank 0 to the board, from Ray Train's controller."""

    def __init__(self, board: ActorHandle, trial: str) -> None:
        self.board, self.trial = board, trial

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.board.put.remote(self.trial, metrics[0])


def distil(job: TrialJob, board: ActorHandle) -> dict[str, float]:
    """Trains a trial to its end and measures it; returns its values, at once where it has finished before."""
    run, started = job.run, time.monotonic()
    uri = outcome_uri(run)
    if storage.exists(uri, run.storage):
        return storage.read_json(uri, run.storage)
    lines: list[str] = []
    try:
        with prepared(run, (), lines.append, job.shared) as ready:
            result = fit(ready, lines.append, [Report(board, run.name)])
            values = measure(job.sweep, job.base, ready, result)
    finally:
        text = "".join(f"{line}\n" for line in lines)
        storage.write_bytes(storage.join(run.storage.root, run.name, "log.txt"), text.encode(), run.storage)
    values["seconds"] = time.monotonic() - started
    storage.write_json(uri, values, run.storage)
    return values
