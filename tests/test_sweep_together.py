"""Sweeps that pay for teachers once: trials in lock-step, and trials on a feature store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pathryoshka.config import ConfigError
from pathryoshka.runs import shelving
from pathryoshka.session import ray_session
from pathryoshka.sweep.record import read_record
from pathryoshka.sweep.run import run_sweep
from pathryoshka.sweep.space import Sweep
from pathryoshka.sweep.together import groups_of
from tests.runs import short_tmp
from tests.stores import run_of
from tests.test_sweep import left

LRS = {"optim.lr": {"choice": [1e-2, 1e-3, 3e-3]}}


def sweep_of(**over: Any) -> Sweep:
    return Sweep.model_validate({"space": LRS, "lockstep": 2, **over})


def test_points_are_grouped_and_those_that_need_other_streams_refused(tmp_path: Path) -> None:
    base = run_of(tmp_path)
    groups = groups_of(sweep_of(), base)
    assert [[run.name for _, run in group] for group in groups] == [["t0000", "t0001"], ["t0002"]]
    assert groups[1][0][1].optim.lr == 3e-3
    probe = {"metric": "probe", "mode": "max"}
    with pytest.raises(ConfigError, match=r"differ in views\.stain: they cannot train in lock-step"):
        groups_of(sweep_of(space={"views.stain": {"choice": [0.0, 0.1]}}, objective=probe), base)
    with pytest.raises(ValueError, match="lockstep trains trials to the end together"):
        sweep_of(scheduler="asha")


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    os.environ["RAY_TMPDIR"] = str(short_tmp())
    with ray_session(24, dashboard=True):
        yield


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_trials_from_a_store_in_lock_step_and_one_by_one_load_no_teacher(session: None, tmp_path: Path) -> None:
    small = {"num_workers": 1, "log_every": 5, "checkpoint_every": 100}
    base = run_of(tmp_path, name="together", train=small, data={"deterministic": True})
    shelving.fill(base, lambda _: None)
    said: list[str] = []
    record = run_sweep(sweep_of(), base, say=said.append)
    assert [trial.status for trial in record.trials.values()] == ["finished"] * 3
    assert all(
        trial.views == 400 and trial.curve and trial.values["unexplained"] < 1.1 for trial in record.trials.values()
    )
    assert sum("not loaded" in line for line in said) == 4, "two teachers, two groups"
    assert read_record(base) == record and not left()["groups"]
    # what Ray Data keeps in the process that makes data sets, for as long as it lives, apart
    assert not [actor for actor in left()["actors"] if not actor.startswith(("_StatsActor", "ActorLocationTracker"))]
    again: list[str] = []
    run_sweep(sweep_of(), base, resume=True, say=again.append)
    assert not any("in lock-step with" in line for line in again), "nothing finished is run again"
    alone = base.model_copy(update={"name": "alone"})
    single = run_sweep(sweep_of(lockstep=0, max_concurrent=1), alone, say=said.append)
    for mine, other in zip(record.trials.values(), single.trials.values(), strict=True):
        assert mine.point == other.point
        assert mine.values["unexplained"] == other.values["unexplained"], "the same views in the same order"
