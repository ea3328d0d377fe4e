"""Exactly once, whatever dies: each planned seq is trained on once, on the very bytes of an unbroken run.

The real command in a process of its own, S3, mock teachers, at least three epochs; one kill of each kind. Steps rolled
back to the last checkpoint are trained again and show in rollbacks.json.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pathryoshka import config, storage
from pathryoshka.s3server import S3Server
from pathryoshka.tiles.ledger import Ledger
from pathryoshka.tiles.phantom import write_phantom
from tests.runs import Driver, outcome, settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def tiles(s3: S3Server) -> str:
    uri = f"s3://{s3.bucket}/kills/tiles"
    write_phantom(uri, config.Storage(), num_tiles=400, num_patients=10, num_sites=2, size=48, splits={"distil": 1.0})
    return uri


@pytest.fixture(scope="module")
def unbroken(s3: S3Server, tiles: str, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """The ledger of a run that nothing happened to."""
    tree = settings(f"s3://{s3.bucket}/kills/unbroken", tiles)
    driver = Driver(tree, tmp_path_factory.mktemp("unbroken")).start()
    assert driver.wait() == 0, driver.text()[-3000:]
    ledger, _ = outcome(tree)
    assert ledger.ranges == ((0, 1200),)
    return ledger


@pytest.fixture
def tree(s3: S3Server, tiles: str, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name).strip("-")
    # slow teachers, so that there is a middle to be killed in
    slow = {"models": {f"mock{n}": {"mock_seconds": 0.02} for n in range(2)}}
    yield settings(f"s3://{s3.bucket}/kills/{name}", tiles, teachers=slow)


def check(tree: dict[str, Any], unbroken: Ledger) -> None:
    ledger, _ = outcome(tree)
    assert ledger.ranges == unbroken.ranges
    assert ledger.content == unbroken.content


def rollbacks(tree: dict[str, Any]) -> list[dict[str, int]]:
    cfg = config.Storage(**tree["storage"])
    uri = storage.join(cfg.root, "debug", "rollbacks.json")
    return storage.read_json(uri, cfg) if storage.exists(uri, cfg) else []


def test_a_teacher_actor(tree: dict[str, Any], unbroken: Ledger, tmp_path: Path) -> None:
    driver = Driver(tree, tmp_path).start()
    driver.wait_for("step 5/")
    victims = driver.processes("ray::Replica")
    assert len(victims) == 2
    victims[0].kill()
    assert driver.wait() == 0, driver.text()[-3000:]
    check(tree, unbroken)
    assert rollbacks(tree) == []  # the stream asked the restarted teacher again; training never stopped


def test_a_train_worker(tree: dict[str, Any], unbroken: Ledger, tmp_path: Path) -> None:
    driver = Driver(tree, tmp_path).start()
    driver.wait_for("step 10/")
    victims = driver.processes("ray::RayTrainWorker") or driver.processes("ray::_RayTrainWorker")
    assert len(victims) == 2, [p.cmdline() for p in driver.processes("ray::")]
    victims[1].kill()
    assert driver.wait() == 0, driver.text()[-3000:]
    check(tree, unbroken)


@pytest.mark.parametrize(
    "workers", [1, pytest.param(2, marks=pytest.mark.full), pytest.param(3, marks=pytest.mark.full)]
)
def test_the_driver_and_then_another_number_of_workers(
    tree: dict[str, Any], unbroken: Ledger, tmp_path: Path, workers: int
) -> None:
    driver = Driver(tree, tmp_path).start()
    driver.wait_for("step 10/")
    time.sleep(1)
    driver.kill()
    again = Driver(config.overlay(tree, {"train": {"num_workers": workers}}), tmp_path / "again").start()
    assert again.wait() == 0, again.text()[-3000:]
    assert "continuing from step" in again.text()
    check(tree, unbroken)


def test_the_s3_server_for_twenty_seconds(s3: S3Server, tree: dict[str, Any], unbroken: Ledger, tmp_path: Path) -> None:
    driver = Driver(config.overlay(tree, {"storage": {"lease_ttl_s": 60}}), tmp_path).start()
    driver.wait_for("step 5/")
    s3.stop()
    time.sleep(20)
    s3.start()
    assert driver.wait(420) == 0, driver.text()[-3000:]
    check(tree, unbroken)
