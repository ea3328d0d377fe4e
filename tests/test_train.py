"""What the training loop decides on the host: schedule, ledger, when to stop, what may change, which devices."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pathryoshka import config, storage
from pathryoshka.changes import refuse_changes
from pathryoshka.config import ConfigError
from pathryoshka.distill.learner import learning_rate
from pathryoshka.distill.train import add_to_ledger, why_stop
from pathryoshka.recipes import recipe_by_name
from pathryoshka.runs import devices
from pathryoshka.runs.devices import DeviceError, logical_cpus, refuse_too_few_devices
from pathryoshka.tiles.ledger import Ledger, LedgerError


def run_of(**over: object) -> config.Run:
    return config.make_run(config.overlay(recipe_by_name("debug").model_dump(), over))


def test_learning_rate_warms_up_and_falls_in_presented_views() -> None:
    run = run_of(
        plan={"num_views": 10_000},
        optim={"lr": 2.0, "warmup_share": 0.1, "min_lr_share": 0.1},
        train={"global_batch": 32},
    )
    rates = [learning_rate(run, n) for n in range(0, 10_001, 50)]
    assert rates[0] == pytest.approx(2.0 * 32 / 1032)
    assert max(rates) == pytest.approx(2.0) and rates[20] == pytest.approx(2.0)
    assert learning_rate(run, 5500) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2))))
    assert rates[-1] == pytest.approx(0.2)
    assert (np.diff(rates[20:]) < 0).all()


def micro(seqs: list[int], failed: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    weight = [0.0 if s < 0 or s in failed else 1.0 for s in seqs]
    digest = [0 if s < 0 else 2**63 + s for s in seqs]
    return {"seq": np.array(seqs), "weight": np.array(weight, np.float32), "digest": np.array(digest, np.uint64)}


def test_ledger_counts_padding_never_and_failures_apart() -> None:
    ledger = add_to_ledger(Ledger(), [micro([0, 1, 2]), micro([5, 4, -1], failed=(4,))])
    assert ledger.ranges == ((0, 3), (4, 6))
    assert ledger.failed == 1
    assert ledger.content == (5 * 2**63 + 0 + 1 + 2 + 4 + 5) % 2**64
    with pytest.raises(LedgerError):
        add_to_ledger(ledger, [micro([2])])


def test_stops_by_naming_the_teacher_and_what_is_kept() -> None:
    assert why_stop({"loss": 1.0, "nonfinite/uni2_h": 0, "nonfinite/loss": 0}, 7) is None
    words = why_stop({"nonfinite/uni2_h": 3, "nonfinite/loss": 1}, 7)
    assert words and "teacher uni2_h" in words and "last checkpoint is kept" in words
    words = why_stop({"nonfinite/uni2_h": 0, "nonfinite/loss": 1}, 7)
    assert words and "Lower optim.lr" in words


def test_what_may_change_under_one_name(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    refuse_changes(run_of(optim={"lr": 0.5}), uri, ["abc"], ())
    refuse_changes(run_of(), uri, ["abc"], ())  # nothing was made of the first one yet
    storage.write_json(storage.join(uri, "standardisers.json"), {}, config.Storage())
    refuse_changes(run_of(train={"num_workers": 1, "log_every": 3}, teachers={"max_in_flight": 3}), uri, ["abc"], ())
    with pytest.raises(ConfigError, match=r"student.widths = \[16, 32, 48\], not \[24, 48\]"):
        refuse_changes(run_of(student={"widths": [24, 48]}), uri, ["abc"], ())
    refuse_changes(run_of(student={"widths": [24, 48]}), uri, ["abc"], ("student.widths",))
    with pytest.raises(ConfigError, match=r"data.manifests = \['abc'\], not \['def'\]"):
        refuse_changes(run_of(student={"widths": [24, 48]}), uri, ["def"], ())


def test_a_local_session_has_a_cpu_for_every_stage() -> None:
    run = run_of(train={"num_workers": 2}, data={"read_tasks": 3})
    assert logical_cpus(run) >= 2 + 2 + 3 + 1  # two teachers, two workers, three readers, and FanOut


def test_a_student_is_not_on_a_cpu_and_a_gpu() -> None:
    run = config.resolve("debug", {"train": {"device": "cpu", "resources_per_worker": {"GPU": 1, "CPU": 1}}})
    with pytest.raises(DeviceError, match=r"train\.device=cpu, but train\.resources_per_worker asks for a GPU"):
        refuse_too_few_devices(run)


def test_too_few_devices_are_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(devices.ray, "cluster_resources", lambda: {"CPU": 8.0})
    gpu = {"model": "mock", "device": "cuda", "replicas": 3}
    run = run_of(teachers={"models": {"mock0": gpu}})
    with pytest.raises(DeviceError, match=r"the pools need 3 GPU and this machine has 0; .*device=cpu"):
        refuse_too_few_devices(run)


def test_elastic_workers_ask_for_a_resource_that_teachers_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(devices.ray._private.state.state, "get_max_resources_from_cluster_config", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    elastic = run_of(train={"num_workers": [1, 2]})
    refuse_too_few_devices(elastic)  # a session of its own has room for all workers
    monkeypatch.setenv("RAY_ADDRESS", "a cluster")
    with pytest.raises(DeviceError, match=r"num_workers=\[1, 2\] .*resources_per_worker=\{student: 1, CPU: 1\}"):
        refuse_too_few_devices(elastic)
    refuse_too_few_devices(run_of(train={"num_workers": [1, 2], "resources_per_worker": {"student": 1}}))


def test_ema_and_zero_3_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="zero_stage to 0, 1 or 2"):
        run_of(student={"ema": 0.9}, train={"zero_stage": 3})
