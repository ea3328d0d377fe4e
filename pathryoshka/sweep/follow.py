"""The driver's side of a sweep: a line and a record for whatever happens to a trial, and the budgets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from pathryoshka.sweep.record import Record, Recorder, Trial
from pathryoshka.sweep.space import Sweep, describe, short
from pathryoshka.sweep.trial import decode

Say = Callable[[str], None]


class Follow(tune.Callback):
    """Keeps the record of the sweep, which is Tune's in other words, and says what happens in lines of ours.

    It is written down with Tune's state, so it knows the board by name: a handle cannot be read in another session.
    """

    def __init__(self, sweep: Sweep, recorder: Recorder, board: str, say: Say) -> None:
        self.sweep, self.recorder, self.board, self.say = sweep, recorder, board, say
        self.before_s: dict[str, float] = {}

    def trial(self, trial: TuneTrial) -> Trial:
        return self.recorder.record.trial(trial.trial_id, decode(self.sweep, trial.config["point"]))

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        mine = self.trial(trial)
        mine.status = "running"
        self.before_s[mine.id] = mine.seconds
        self.recorder.write(force=True)
        self.say(f"trial {mine.number}: {'started' if not mine.views else 'continues'}, {describe(mine.point)}")

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        mine = self.trial(trial)
        mine.seconds = self.before_s.get(mine.id, 0.0) + result["time_total_s"]
        views = int(result["views"])
        if views > mine.views and math.isfinite(result.get("unexplained", math.nan)):
            mine.curve.append((views, result["unexplained"]))
        mine.views = max(mine.views, views)
        if result.get("finished"):
            mine.status = "finished"
            known = {"num_params", "gflops", "full_width", "unexplained", "validation", "probe"}
            mine.values = {
                k: float(v) for k, v in result.items() if k in known or k.startswith(("probe/", "validation/"))
            }
            mine.values["seconds"] = mine.seconds
        self.recorder.write()

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        mine = self.trial(trial)
        if mine.status != "finished":
            mine.status = "stopped"
            self.say(f"trial {mine.number}: stopped after {mine.views} views")
        else:
            said = ", ".join(f"{o.metric} {short(mine.values[o.metric])}" for o in self.sweep.objective)
            self.say(f"trial {mine.number}: finished in {mine.seconds:.0f} s, {said}")
        self.recorder.write(force=True)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.note(trial, "failed and is tried again")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.note(trial, "failed for good").status = "failed"
        self.recorder.write(force=True)

    def note(self, trial: TuneTrial, what: str) -> Trial:
        mine = self.trial(trial)
        mine.failures += 1
        why: Any = ray.get(ray.get_actor(self.board).why.remote(trial.trial_id))
        mine.error = why or "its process on Tune's side ended"
        self.say(f"trial {mine.number}: {what}: {mine.error}")
        return mine


class BudgetSpent(Exception):
    """Leaves Tune's loop in the middle: trials that a Stopper stops are done for Tune, and nobody could resume them."""


class Budget(tune.Stopper):
    """Ends a sweep when what it may cost is spent; `spent` then says what. Trials keep their checkpoints."""

    def __init__(self, sweep: Sweep, recorder: Recorder) -> None:
        self.sweep, self.recorder = sweep, recorder
        self.spent: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self.recorder.write()
        self.spent = spent(self.sweep, self.recorder.record)
        if self.spent is not None:
            raise BudgetSpent(self.spent)
        return False


def spent(sweep: Sweep, record: Record) -> str | None:
    """Which budget is used up, in words, or None."""
    used = (
        ("max_hours", record.seconds / 3600, sweep.max_hours),
        ("max_views", record.views, sweep.max_views),
        ("max_cost", record.trial_hours * sweep.cost_per_hour, sweep.max_cost),
    )
    for name, value, most in used:
        if most is not None and value >= most:
            return f"sweep.{name}={most:g} is spent ({value:g})"
    return None
