"""What Tune is handed, and how many trials fit, without a Ray session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune

from pathryoshka import config
from pathryoshka.recipes import debug, paper_b
from pathryoshka.runs.devices import DeviceError
from pathryoshka.sweep import run as rooms
from pathryoshka.sweep.run import concurrency, may_share, param_space, scheduler_of, session_cpus, start_record
from pathryoshka.sweep.space import Sweep, points, run_of
from pathryoshka.sweep.trial import decode, trial_run

LR = {"optim.lr": {"loguniform": [1e-4, 1e-2]}}
SPACE = {**LR, "student.widths": {"choice": [[16, 48], [48]]}, "student.heads.hidden": {"integers": [0, 2]}}


def test_known_points_are_a_grid_of_whole_points() -> None:
    sweep = Sweep.model_validate({"space": SPACE, "search": "random", "num_trials": 5})
    space, search = param_space(sweep)
    assert search is None
    assert [decode(sweep, held) for held in space["point"]["grid_search"]] == points(sweep)


@pytest.mark.parametrize("two", [False, True])
def test_optuna_learns_from_what_finished_trials_say(two: bool) -> None:
    """Each suggestion makes a run; told that a small rate is better, it comes to suggest small ones."""
    more = [{"metric": "num_params"}] if two else []
    tree = {"space": SPACE, "search": "optuna", "objective": [{"metric": "unexplained"}, *more]}
    sweep = Sweep.model_validate(tree)
    space, search = param_space(sweep)
    assert search.set_search_properties(None, None, space)
    rates = []
    for n in range(40):
        point = decode(sweep, search.suggest(f"t{n}")["point"])
        assert run_of(debug(), point).student.widths in ((16, 48), (48,))
        rates.append(point["optim.lr"])
        if n % 5 == 4:  # stopped by the scheduler: no values
            search.on_trial_complete(f"t{n}", {"views": 3})
            continue
        values = {"objective/unexplained": point["optim.lr"], "objective/num_params": 1.0}
        search.on_trial_complete(f"t{n}", values)
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    late, early = sorted(rates[-15:])[7], sorted(rates[:10])[5]
    assert late < early / 2


def test_asha_counts_in_views_up_to_the_longest_plan() -> None:
    sweep = Sweep.model_validate({"space": LR, "search": "random", "scheduler": "asha", "rungs": {"grace_share": 0.1}})
    asha = scheduler_of(sweep, debug())
    assert isinstance(asha, tune.schedulers.ASHAScheduler)
    assert (asha._time_attr, asha._max_t, asha._metric) == ("views", 512, "unexplained")
    assert asha._brackets[0]._rungs[-1][0] == 51


@pytest.mark.parametrize(("every", "first"), [(25, 12), (5, 5)])
def test_a_trial_logs_where_asha_compares(every: int, first: int) -> None:
    base = config.make_run(config.overlay(debug().model_dump(), {"plan": {"num_views": 4800}, "train": {
        "global_batch": 64, "micro_batch": 32, "log_every": every}}))  # fmt: skip
    sweep = Sweep.model_validate({"space": LR, "search": "random", "scheduler": "asha"})
    trial = trial_run(sweep, base, {"optim.lr": 1e-3}, "t0")
    assert trial.train.log_every == first
    rung = scheduler_of(sweep, base)._brackets[0]._rungs[-1][0]
    assert rung == 720 and first * 64 < rung + 64
    alone = Sweep.model_validate({"space": LR, "search": "random"})
    assert trial_run(alone, base, {"optim.lr": 1e-3}, "t0").train.log_every == every


def test_teachers_are_shared_unless_a_trial_changes_what_they_answer() -> None:
    assert may_share(Sweep.model_validate({"space": SPACE, "search": "random"}))
    probe = {"objective": {"metric": "probe", "mode": "max"}}
    for key, shared in {"views.size": False, "student.model": False, "teachers.max_in_flight": True}.items():
        assert may_share(Sweep.model_validate({"space": {key: {"choice": [1, 2]}}, **probe})) is shared
    subsets = {"teachers.models": {"subsets": [["mock0"], ["mock0", "mock1"]]}}
    assert may_share(Sweep.model_validate({"space": subsets, **probe}))


def devices(monkeypatch: pytest.MonkeyPatch, **have: float) -> None:
    monkeypatch.setattr(rooms.ray, "cluster_resources", lambda: have)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")


def test_as_many_trials_as_the_devices_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """paper_b: 14 GPUs of teachers, shared or not, and 2 of the student; 16 readers and 5 CPUs more a trial."""
    sweep, runs = Sweep.model_validate({"space": LR, "search": "random"}), [paper_b()] * 9
    devices(monkeypatch, CPU=1000, GPU=30)
    assert concurrency(sweep, runs, True) == 8 and concurrency(sweep, runs, False) == 1
    devices(monkeypatch, CPU=50, GPU=30)
    assert concurrency(sweep, runs, True) == 2
    assert concurrency(sweep.model_copy(update={"max_concurrent": 1}), runs, True) == 1
    devices(monkeypatch, CPU=1000, GPU=15)
    with pytest.raises(DeviceError, match="a trial needs 2 GPU, and 1 are free beside the shared teachers"):
        concurrency(sweep, runs, True)


def test_a_session_of_this_machine_has_cpus_for_its_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms.os, "cpu_count", lambda: 8)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sweep, runs = Sweep.model_validate({"space": LR, "search": "random"}), [debug()] * 9
    cpus = session_cpus(sweep, runs, True)
    monkeypatch.setattr(rooms.ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    assert concurrency(sweep, runs, True) == 4  # two workers each on eight cores
    assert cpus >= 4 * (2 + 2 + 3) + 2


def test_a_sweep_is_begun_once_and_resumed_as_it_was(tmp_path: Path) -> None:
    base = config.make_run(config.overlay(debug().model_dump(), {"storage": {"root": str(tmp_path)}}))

    def sweep(**over: Any) -> Sweep:
        return Sweep.model_validate({"space": {"optim.lr": {"choice": [1e-3, 1e-2]}}, **over})

    with pytest.raises(config.ConfigError, match="no sweep .* to resume"):
        start_record(sweep(), base, resume=True)
    start_record(sweep(), base, resume=False)
    with pytest.raises(config.ConfigError, match="exists; go on with --resume"):
        start_record(sweep(), base, resume=False)
    start_record(sweep(max_hours=9), base, resume=True)
    with pytest.raises(config.ConfigError, match="exists with another sweep.space"):
        start_record(sweep(space={"optim.lr": {"choice": [1e-3]}}), base, resume=True)
    other = config.make_run(config.overlay(base.model_dump(), {"train": {"seed": 9}}))
    with pytest.raises(config.ConfigError, match="exists with train.seed = 0, not 9"):
        start_record(sweep(), other, resume=True)
    start_record(sweep(), config.make_run(config.overlay(base.model_dump(), {"train": {"log_every": 9}})), resume=True)
