"""Sweeps for real, in small: trials that finish, one that ASHA stops, one that fails; a killed driver; what is left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.util import placement_group_table
from ray.util.state import list_actors

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.session import ray_session
from pathryoshka.storage.server import S3Server
from pathryoshka.sweep.record import read_record, sweep_uri, trials_root
from pathryoshka.sweep.run import run_sweep
from pathryoshka.sweep.space import Sweep, load_sweep
from pathryoshka.tiles.phantom import write_phantom
from tests.bench.sampling import store_bytes
from tests.runs import Driver, settings, short_tmp

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def tiles(s3: S3Server) -> str:
    uri = f"s3://{s3.bucket}/sweep/tiles"
    split = {"distil": 0.7, "test": 0.3}
    write_phantom(uri, config.Storage(), num_tiles=400, num_patients=10, num_sites=2, size=48, splits=split)
    return uri


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    os.environ["RAY_TMPDIR"] = str(short_tmp())
    with ray_session(24, dashboard=True):
        yield


def tree_of(s3: S3Server, tiles: str, name: str, sweep: dict[str, Any]) -> dict[str, Any]:
    tree = settings(f"s3://{s3.bucket}/sweep/runs", tiles, name=name, plan={"num_views": 480})
    small = {"num_workers": 1, "log_every": 2, "checkpoint_every": 5, "max_failures": 0}
    return config.overlay(tree, {"train": small, "data": {"splits": ["distil"]}, "sweep": sweep})


def load(tree: dict[str, Any], folder: Path) -> tuple[Sweep, config.Run]:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree))
    return load_sweep(file)


def attempts(base: config.Run, trial: str) -> int:
    uri = storage.join(trials_root(base), trial, "attempts")
    return len([name for name in storage.list_files(uri, base.storage) if name[0].isdigit() and "-" not in name])


def left() -> dict[str, list[str]]:
    """Placement groups and actors that are alive."""
    groups = [g["name"] or g["placement_group_id"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
    where = ray.get_runtime_context().gcs_address
    actors = [
        f"{a.class_name} {a.name}" for a in list_actors(address=where, filters=[("state", "!=", "DEAD")], limit=1000)
    ]
    # one a session each, which Ray Data keeps for whoever comes next
    keeps = ("_StatsActor", "ActorLocationTracker", "_AutoscalingCoordinatorActor")
    return {"groups": groups, "actors": [actor for actor in actors if not actor.startswith(keeps)]}


@pytest.mark.usefixtures("session")
def test_asha_a_failure_and_what_is_left(s3: S3Server, tiles: str, tmp_path: Path) -> None:
    before = store_bytes()
    sweep = {
        "space": {"optim.lr": {"choice": [1e-2, 1e-9, 1e30]}},
        "scheduler": "asha",
        "rungs": {"grace_share": 0.4, "reduction": 2},
        "max_concurrent": 1,
        "objective": {"metric": "validation", "mode": "min"},
        "validation": {"tiles": [tiles], "splits": ["test"], "num_views": 64},
    }
    swept, base = load(tree_of(s3, tiles, "asha", sweep), tmp_path)
    said: list[str] = []
    record = run_sweep(swept, base, say=said.append)
    deadline = time.monotonic() + 10
    while (now := left()) and any(now.values()) and time.monotonic() < deadline:
        time.sleep(0.5)
    print(*said, now, f"object store: {store_bytes() - before} bytes", sep="\n")
    good, bad, mad = (record.trials[name] for name in sorted(record.trials, key=lambda n: record.trials[n].number))
    assert [t.status for t in (good, bad, mad)] == ["finished", "stopped", "failed"]
    assert (
        good.values["validation"] < 0.95 and good.views == 480 and set(good.values) >= {"validation/16", "num_params"}
    )
    assert 192 <= bad.views < 480 and not bad.values
    assert mad.failures == 2 and "the loss was not finite" in mad.error and attempts(base, mad.id) == 2
    assert now == {"groups": [], "actors": []}
    assert store_bytes() - before < 2**20
    assert any(f"trial {mad.number}: failed and is tried again: the loss was not finite" in line for line in said)
    assert read_record(base) == record
    events = storage.join(sweep_uri(base), "tune", good.id)
    (file,) = [f for f in storage.list_files(events, base.storage) if "tfevents" in f]
    logged = storage.read_bytes(storage.join(events, file), base.storage)
    assert b"_hparams_/session_start_info" in logged and b"point/optim.lr" in logged
    with pytest.raises(config.ConfigError, match="exists; go on with --resume"):
        run_sweep(swept, base, say=said.append)


def wait_for_checkpoint(base: config.Run, trial: str, driver: Driver) -> None:
    until = time.monotonic() + 600
    while not checkpoint.complete(storage.join(trials_root(base), trial), base.storage):
        assert time.monotonic() < until and driver.process.poll() is None, driver.text()[-3000:]
        time.sleep(0.2)


def test_a_killed_trial_a_spent_budget_and_a_killed_driver_run_nothing_twice(
    s3: S3Server, tiles: str, tmp_path: Path
) -> None:
    sweep: dict[str, Any] = {"space": {"optim.lr": {"choice": [1e-2, 1e-3]}}, "max_concurrent": 1, "max_views": 600}
    sweep["objective"] = [{"metric": "probe/16", "mode": "max"}, {"metric": "num_params"}]
    tree = tree_of(s3, tiles, "killed", sweep)
    tree = config.overlay(tree, {"evaluate": {"tiles": [tiles], "splits": ["test"], "folds": 3}})
    tree = config.overlay(tree, {"teachers": {"models": {f"mock{n}": {"mock_seconds": 0.05} for n in range(2)}}})
    driver = Driver(tree, tmp_path, verb=("sweep",)).start()
    driver.wait_for("trial 0: started", timeout=600)
    _, base = load(tree, tmp_path)
    (first,) = read_record(base).trials
    wait_for_checkpoint(base, first, driver)
    (process,) = driver.processes("ray::trial")
    process.kill()
    driver.wait_for("trial 0: failed and is tried again", timeout=300)
    assert driver.wait(900) == 0, driver.text()[-3000:]
    assert "the sweep ends: sweep.max_views=600 is spent" in driver.text()
    record = read_record(base)
    (second,) = set(record.trials) - {first}
    assert record.trials[first].status == "finished" and record.trials[first].failures == 1
    assert record.trials[second].status == "stopped" and 120 <= record.trials[second].views < 480
    assert 0.1 < record.trials[first].values["probe/16"] <= 1
    assert attempts(base, first) == 2 and "continuing from step" in log_of(base, first)

    tree = config.overlay(tree, {"sweep": {"max_views": 6000}})
    again = Driver(tree, tmp_path / "again", verb=("sweep", "--resume")).start()
    again.wait_for("trial 1: continues", timeout=600)
    wait_for_checkpoint(base, second, again)
    again.kill()
    last = Driver(tree, tmp_path / "last", verb=("sweep", "--resume")).start()
    assert last.wait(900) == 0, last.text()[-3000:]
    record = read_record(base)
    assert {name: t.status for name, t in record.trials.items()} == {first: "finished", second: "finished"}
    assert attempts(base, first) == 2 and "trial 0" not in again.text() + last.text()
    assert attempts(base, second) >= 2
    assert "continuing from step" in log_of(base, second) and "each exactly once" in log_of(base, second)


def log_of(base: config.Run, trial: str) -> str:
    return storage.read_bytes(storage.join(trials_root(base), trial, "log.txt"), base.storage).decode()
