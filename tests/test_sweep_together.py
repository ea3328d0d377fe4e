"""Sweeps that pay for teachers once: trials in lock-step, and trials on a feature store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pathryoshka.config import ConfigError
from pathryoshka.distill.checkpoint import current_ledger, uri_of
from pathryoshka.runs import shelving
from pathryoshka.session import ray_session
from pathryoshka.sweep import population
from pathryoshka.sweep.record import Recorder, Trial, read_record
from pathryoshka.sweep.run import run_sweep
from pathryoshka.sweep.space import Sweep
from pathryoshka.sweep.together import arrived, entries_of, rungs_of, survivors
from pathryoshka.sweep.trial import trial_run
from tests.runs import short_tmp
from tests.stores import run_of
from tests.test_sweep import left

LRS = {"optim.lr": {"choice": [1e-2, 1e-3, 3e-3]}}


def sweep_of(**over: Any) -> Sweep:
    return Sweep.model_validate({"space": LRS, "lockstep": 2, **over})


def test_points_are_in_order_and_those_that_need_other_streams_refused(tmp_path: Path) -> None:
    base = run_of(tmp_path)
    entries = entries_of(sweep_of(), base, {})
    assert [run.name for _, run in entries] == ["t0000", "t0001", "t0002"]
    assert entries[2][0] == {"optim.lr": 3e-3} and entries[2][1].optim.lr == 3e-3
    probe = {"metric": "probe", "mode": "max"}
    with pytest.raises(ConfigError, match=r"differ in views\.stain: they cannot train in lock-step"):
        entries_of(sweep_of(space={"views.stain": {"choice": [0.0, 0.1]}}, objective=probe), base, {})
    stains = {"views.stain": {"choice": [0.0, 0.1]}, "optim.lr": {"choice": [1e-2, 1e-3]}}
    assert len(entries_of(sweep_of(space=stains, objective=probe), base, {})) == 4, "each group has a stream of its own"
    with pytest.raises(ValueError, match="use search: grid or random, scheduler: halving or pbt"):
        sweep_of(scheduler="asha")
    with pytest.raises(ValueError, match="halving is for trials in lock-step; say how many"):
        sweep_of(scheduler="halving", lockstep=0)


def test_rungs_are_shares_of_the_plan_and_the_best_of_each_go_on(tmp_path: Path) -> None:
    assert rungs_of(sweep_of(), 1000) == [1000]
    at_end = Trial(id="t", number=0, point={}, curve=[(500, 0.9), (1000, 0.8)])
    assert arrived(at_end, 900) and not arrived(at_end, None), "a rung may round up to the end; it is measured there"
    assert not arrived(None, 100) and arrived(at_end.model_copy(update={"status": "finished"}), None)
    halving = sweep_of(scheduler="halving", rungs={"grace_share": 0.1, "reduction": 3})
    assert rungs_of(halving, 1000) == [100, 300, 900, 1000]
    assert rungs_of(sweep_of(scheduler="halving", rungs={"grace_share": 1.0}), 1000) == [1000]
    entries = entries_of(halving, run_of(tmp_path), {})
    curves = {"t0000": [(60, 0.8), (120, 0.7)], "t0001": [(60, 0.5), (120, 0.71)], "t0002": [(60, 0.1)]}
    trials = {
        name: Trial(id=name, number=n, point=entries[n][0], curve=curve, views=curve[-1][0])
        for n, (name, curve) in enumerate(curves.items())
    }
    said: list[str] = []
    left = survivors(entries, trials, 100, 3, said.append)
    assert [run.name for _, run in left] == ["t0000"], "at least one, by what the first line from the rung on says"
    assert trials["t0001"].status == "stopped" and trials["t0002"].status == "running", "who did not come is not judged"
    assert said == ["trial 1: stopped after 120 views, 0.7100 unexplained"]
    assert survivors(entries, trials, 100, 3, said.append) == left and len(said) == 1, "resumed, it decides the same"
    assert [run.name for _, run in survivors(entries, trials, 50, 1.5, said.append)] == ["t0001", "t0002"]


def test_a_population_moves_numbers_only() -> None:
    assert rungs_of(sweep_of(scheduler="pbt", rungs={"grace_share": 0.1}), 1000) == [*range(100, 1001, 100)]
    with pytest.raises(ValueError, match=r"pbt cannot move student\.widths while a student trains"):
        sweep_of(scheduler="pbt", space={"student.widths": {"choice": [[16, 48], [48]]}})
    with pytest.raises(ValueError, match="pbt is for trials in lock-step"):
        sweep_of(scheduler="pbt", lockstep=0)
    space = {
        "optim.lr": {"choice": [1e-2, 1e-3, 3e-3]},
        "loss.weights.mock0": {"uniform": [0.5, 1.1]},
        "loss.relation": {"uniform": [0.0, 1.0]},
    }
    sweep = sweep_of(scheduler="pbt", search="random", space=space)
    rng = np.random.default_rng(0)
    point = {"optim.lr": 3e-3, "loss.weights.mock0": 1.0, "loss.relation": 0.0}
    seen = [population.moved(point, sweep, rng) for _ in range(40)]
    assert {p["optim.lr"] for p in seen} == {1e-3, 1e-2}, "the next one of its list to either side"
    assert {p["loss.weights.mock0"] for p in seen} == {0.8, 1.1}, "a quarter more would be outside"
    assert {p["loss.relation"] for p in seen} == {0.0}
    top = population.moved(point | {"optim.lr": 1e-2}, sweep, rng)
    assert top["optim.lr"] in (3e-3, 1e-2)


def test_the_worst_take_over_from_the_best() -> None:
    scores: dict[str, float | None] = {"a": 0.4, "b": 0.1, "c": 0.3, "d": 0.2}
    assert population.pairs(scores, 4) == [("a", "b")]
    assert population.pairs(scores, 2) == [("a", "b"), ("c", "d")]
    assert population.pairs(scores, 1.1) == [("a", "b"), ("c", "d")], "nobody is both"
    assert population.pairs(scores | {"d": None}, 4) == [("d", "b")], "who did not get there is worst"
    assert population.pairs({"a": None, "b": 0.1, "c": None, "d": 0.2}, 1.1) == [("a", "b"), ("c", "b"), ("d", "b")]
    assert population.pairs({"a": None, "b": None}, 4) == [] == population.pairs({"a": 0.3}, 4)


def test_a_rung_that_was_cut_off_moves_the_same_checkpoints_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = run_of(tmp_path, name="population")
    sweep = sweep_of(scheduler="pbt", rungs={"reduction": 2}, space={"optim.lr": {"uniform": [1e-4, 1e-1]}},
                     search="random", num_trials=4)  # fmt: skip
    entries = entries_of(sweep, base, {})
    recorder = Recorder(base)
    for n, (point, run) in enumerate(entries):
        recorder.record.trial(run.name, point).curve = [(60, 0.1 * n)]
    copied: list[tuple[str, str]] = []

    def take_over(run: Any, other: Any) -> None:
        copied.append((run.name, other.name))
        if len(copied) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(population, "take_over", take_over)
    runs, said = [run for _, run in entries], list[str]()
    scores = {name: trial.curve[0][1] for name, trial in recorder.record.trials.items()}
    with pytest.raises(KeyboardInterrupt):
        population.evolve(sweep, runs, scores, 60, recorder, said.append)
    assert copied == [("t0002", "t0001"), ("t0003", "t0000")]
    again = Recorder(base)
    assert population.decided(again.record, 60) and not population.decided(again.record, 120)
    points = {name: trial.point for name, trial in again.record.trials.items()}
    before = dict(entries[3][0])
    assert points["t0003"]["optim.lr"] in [pytest.approx(points["t0000"]["optim.lr"] * by) for by in (0.8, 1.25)]
    assert again.record.trials["t0003"].taken[0].before == before
    population.evolve(sweep, runs, scores, 60, again, said.append)
    assert copied[2:] == copied[:2], "what a killed sweep may not have finished is done again"
    assert {name: trial.point for name, trial in read_record(base).trials.items()} == points
    population.evolve(sweep, runs, scores, 60, again, said.append)
    assert len(copied) == 4 and "takes over trial 0 (0.0000)" in said[-1]
    now = entries_of(sweep, base, again.record.trials)
    assert now[3][1].optim.lr == points["t0003"]["optim.lr"] and now[0] == entries[0]


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


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_halving_stops_what_is_behind_and_goes_on_without_what_is_not_finite(session: None, tmp_path: Path) -> None:
    """Two groups whose order of views may differ, a student that explodes, a sweep that is resumed in the middle."""
    base = run_of(tmp_path, name="halving", train={"num_workers": 1, "log_every": 5, "checkpoint_every": 100})
    shelving.fill(base, lambda _: None)
    space = {"optim.lr": {"choice": [1e-3, 1e30, 3e-3, 1e-9, 1e-2]}}
    how = {"space": space, "scheduler": "halving", "lockstep": 3, "rungs": {"grace_share": 0.25, "reduction": 2}}
    said: list[str] = []
    first = run_sweep(sweep_of(**how, max_views=200), base, say=said.append)
    assert any("the sweep ends: sweep.max_views=200 is spent" in line for line in said), said
    assert [t.status for t in first.trials.values()] == ["stopped", "failed", "stopped"], said
    assert "the loss was not finite" in first.trials["t0001"].error
    at_first = {name: trial.curve for name, trial in first.trials.items()}
    trials = run_sweep(sweep_of(**how), base, resume=True, say=said.append).trials
    rung, next_rung = at_first["t0000"][-1][0], 200
    assert 100 <= rung < 200 and at_first["t0002"][-1][0] == rung and at_first["t0000"]
    assert trials["t0001"].status == "failed", "tried again, by itself"
    assert (trials["t0003"].status, trials["t0003"].views) == ("stopped", rung), "a student that does not learn"
    ends = sorted((trials[name].views, trials[name].status) for name in ("t0000", "t0002", "t0004"))
    assert ends[0] == (rung, "stopped") and ends[1][1] == "stopped" and ends[2] == (400, "finished"), said
    assert next_rung <= ends[1][0] < 400
    for name, curve in at_first.items():
        assert trials[name].curve[: len(curve)] == curve, "nothing was trained again"
    assert not left()["groups"]


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_population_takes_over_what_is_better_and_goes_on(session: None, tmp_path: Path) -> None:
    """Two groups on streams of their own, a student that explodes, one that does not learn, a sweep resumed between."""
    base = run_of(tmp_path, name="pbt", train={"num_workers": 1, "log_every": 5, "checkpoint_every": 100})
    shelving.fill(base, lambda _: None)
    space = {"optim.lr": {"choice": [1e-3, 1e30, 3e-3, 1e-9]}}
    how = {"space": space, "scheduler": "pbt", "lockstep": 2, "rungs": {"grace_share": 0.5, "reduction": 2}}
    said: list[str] = []
    first = run_sweep(sweep_of(**how, max_views=600), base, say=said.append)
    assert any("the sweep ends: sweep.max_views=600 is spent" in line for line in said), said
    assert first.evolved == [200] and first.trials["t0001"].failures == 1
    assert [t.of for n in ("t0001", "t0003") for t in first.trials[n].taken] == ["t0002", "t0000"], said
    record = run_sweep(sweep_of(**how), base, resume=True, say=said.append)
    assert [t.status for t in record.trials.values()] == ["finished"] * 4, said
    assert record.trials["t0003"].curve[0] == first.trials["t0003"].curve[0], "its own past is still told"
    ends = {name: trial.values["unexplained"] for name, trial in record.trials.items()}
    still = record.trials["t0003"].curve[0][1]
    assert ends["t0003"] < still and ends["t0001"] < still
    for name, trial in record.trials.items():
        run = trial_run(sweep_of(**how), base, trial.point, name)
        _, ledger = current_ledger(uri_of(run), run.storage)
        assert ledger.ranges == ((0, 400),), "each view once, whoever's past it was"
    assert not left()["groups"]
