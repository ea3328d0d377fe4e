"""One actor a sweep, beside its driver: starts and stops the trials' drivers, hands on what they log, shows it.

It belongs to the sweep and not to a trial, so that whatever happens to Tune's actor of a trial, somebody is left to end
that trial in order. Ending one is Ctrl-C in its driver (`ray.cancel`), which closes what the production command closes:
the worker group and its placement group, the pool, the directory, the console, the lease.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle

from pathryoshka.observability.gauges import TRIAL, Gauges


@dataclass
class Running:
    """A trial's driver: its task, log lines nobody has taken yet, and what it ended with."""

    task: ray.ObjectRef
    lines: list[dict[str, float]] = field(default_factory=list)
    values: dict[str, float] | None = None
    error: str | None = None
    interrupted: bool = False


@ray.remote
class Board:
    def __init__(self, sweep: str) -> None:
        self.sweep = sweep
        self.gauges = Gauges("pathryoshka_trial", TRIAL, ("sweep", "trial"))
        self.trials: dict[str, Running] = {}

    def start(self, trial: str, job: Any) -> None:
        """Starts the trial's driver, unless it runs: a trial whose Tune actor died finds its training where it was."""
        from pathryoshka.sweep.trial import drive

        if trial not in self.trials or self.ended(trial):
            me = ray.get_runtime_context().current_actor
            task = drive.options(name=f"trial {trial}").remote(job, me)  # type: ignore[attr-defined]
            self.trials[trial] = Running(task)

    def put(self, trial: str, values: dict[str, float]) -> None:
        """A log line, from Ray Train's controller."""
        if trial in self.trials:
            self.trials[trial].lines.append(values)
            self.show(trial, values)

    def show(self, trial: str, values: dict[str, float]) -> None:
        self.gauges.show({"sweep": self.sweep, "trial": trial}, values)

    def take(self, trial: str) -> tuple[list[dict[str, float]], dict[str, float] | None, str | None]:
        """(lines since the last call, values if it finished, sentence if it failed)."""
        running = self.trials[trial]
        self.ended(trial)
        lines, running.lines = running.lines, []
        return lines, running.values, running.error

    def stop(self, trial: str, force: bool = False) -> bool:
        """Interrupts the trial's driver, once, for a second Ctrl-C would hit its tidying; whether it has ended.

        `force` kills it, and leaves the tidying to Ray.
        """
        if trial not in self.trials or self.ended(trial):
            return True
        running = self.trials[trial]
        if force or not running.interrupted:
            running.interrupted = True
            ray.cancel(running.task, force=force, recursive=False)
        return False

    def why(self, trial: str) -> str | None:
        """Why the trial's driver failed, if it did."""
        return self.trials[trial].error if trial in self.trials and self.ended(trial) else None

    def running(self) -> list[str]:
        return [trial for trial in self.trials if not self.ended(trial)]

    def ended(self, trial: str) -> bool:
        running = self.trials[trial]
        if running.values is None and running.error is None:
            done, _ = ray.wait([running.task], timeout=0)
            if not done:
                return False
            try:
                running.values = ray.get(running.task)
            except Exception as error:
                running.error = sentence(error)
        return True


def sentence(error: Exception) -> str:
    """Last line of what went wrong in a trial's process."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__


def stop_all(board: ActorHandle, say: Any, patience_s: float = 60) -> None:
    """Ends every trial that still runs, in order where that takes less than `patience_s`."""
    deadline, stopped = time.monotonic() + patience_s, False
    trials: list[str] = ray.get(board.running.remote())
    while trials:
        if not stopped:
            stopped = True
            say(f"ending {len(trials)} trials that still run")
            ray.get([board.stop.remote(trial) for trial in trials])
        elif time.monotonic() > deadline:
            ray.get([board.stop.remote(trial, True) for trial in trials])
            break
        time.sleep(0.2)
        trials = ray.get(board.running.remote())
