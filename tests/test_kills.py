"""Exactly once, whatever dies: each planned seq is trained on once, on the very bytes of an unbroken run.

The real command in a process of its own, S3, mock teachers, at least three epochs; one kill of each kind. Steps rolled
back to the last checkpoint are trained again and show in rollbacks.json.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray.cluster_utils import Cluster

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.recipes import recipe_by_name
from pathryoshka.runs.results import final_weights
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.ledger import Ledger
from pathryoshka.tiles.phantom import write_phantom
from tests.runs import Driver, outcome, settings, short_tmp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def tiles(s3: S3Server) -> str:
    uri = f"s3://{s3.bucket}/kills/tiles"
    write_phantom(uri, config.Storage(), num_tiles=400, num_patients=10, num_sites=2, size=48, splits={"distil": 1.0})
    return uri


@dataclass(frozen=True)
class Unbroken:
    """What a deterministic run that nothing happened to ended with."""

    ledger: Ledger
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def unbroken(s3: S3Server, tiles: str, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    tree = settings(f"s3://{s3.bucket}/kills/unbroken", tiles, data={"deterministic": True})
    driver = Driver(tree, tmp_path_factory.mktemp("unbroken")).start()
    assert driver.wait() == 0, driver.text()[-3000:]
    ledger, _ = outcome(tree)
    assert ledger.ranges == ((0, 1200),)
    return Unbroken(ledger, weights(tree, tmp_path_factory.mktemp("weights")))


def weights(tree: dict[str, Any], scratch: Path) -> dict[str, torch.Tensor]:
    run = config.make_run(config.overlay(recipe_by_name("debug").model_dump(), tree))
    return final_weights(run, scratch)


@pytest.fixture
def tree(s3: S3Server, tiles: str, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name).strip("-")
    # slow teachers, so that there is a middle to be killed in
    slow = {"models": {f"mock{n}": {"mock_seconds": 0.02} for n in range(2)}}
    yield settings(f"s3://{s3.bucket}/kills/{name}", tiles, teachers=slow)


def check(tree: dict[str, Any], unbroken: Unbroken) -> None:
    ledger, _ = outcome(tree)
    assert ledger.ranges == unbroken.ledger.ranges
    assert ledger.content == unbroken.ledger.content


def rollbacks(tree: dict[str, Any]) -> list[dict[str, int]]:
    cfg = config.Storage(**tree["storage"])
    uri = storage.join(cfg.root, "debug", "rollbacks.json")
    return storage.read_json(uri, cfg) if storage.exists(uri, cfg) else []


def test_a_teacher_actor(tree: dict[str, Any], unbroken: Unbroken, tmp_path: Path) -> None:
    driver = Driver(tree, tmp_path).start()
    driver.wait_for("step 5/")
    victims = driver.processes("ray::Replica")
    assert len(victims) == 2
    victims[0].kill()
    assert driver.wait() == 0, driver.text()[-3000:]
    check(tree, unbroken)
    assert rollbacks(tree) == []  # the stream asked the restarted teacher again; training never stopped


def test_a_train_worker(tree: dict[str, Any], unbroken: Unbroken, tmp_path: Path) -> None:
    driver = Driver(tree, tmp_path).start()
    driver.wait_for("step 10/")
    victims = driver.processes("ray::RayTrainWorker") or driver.processes("ray::_RayTrainWorker")
    assert len(victims) == 2, [p.cmdline() for p in driver.processes("ray::")]
    victims[1].kill()
    assert driver.wait() == 0, driver.text()[-3000:]
    check(tree, unbroken)
    assert re.search(r"train worker \d.* ended: .*worker process has died", driver.text())
    lost = [f"{each['views']:,} views after it are trained on again" for each in rollbacks(tree)]
    assert all(words in driver.text() for words in lost)


@pytest.mark.parametrize("workers", [1, *(pytest.param(n, marks=pytest.mark.full) for n in (2, 3))])
def test_the_driver_and_then_another_number_of_workers(
    tree: dict[str, Any], unbroken: Unbroken, tmp_path: Path, workers: int
) -> None:
    tree = config.overlay(tree, {"data": {"deterministic": True}})
    driver = Driver(tree, tmp_path).start()
    driver.wait_for("step 10/")
    time.sleep(1)
    driver.kill()
    again = Driver(config.overlay(tree, {"train": {"num_workers": workers}}), tmp_path / "again").start()
    assert again.wait() == 0, again.text()[-3000:]
    assert "continuing from step" in again.text()
    check(tree, unbroken)
    if workers == 2:
        resumed = weights(tree, tmp_path / "weights")
        assert resumed.keys() == unbroken.weights.keys()
        assert [name for name, value in resumed.items() if not torch.equal(value, unbroken.weights[name])] == []


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head too small for the whole run with two workers, to which nodes can be added."""
    head = {"num_cpus": 4, "include_dashboard": False, "temp_dir": str(short_tmp() / "cluster")}
    head["resources"] = {"student": 1}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.mark.full
def test_the_raylet_of_a_second_node(
    cluster: Cluster, tree: dict[str, Any], unbroken: Unbroken, tmp_path: Path
) -> None:
    """What lived on the lost node (workers, teachers, blocks) comes again on the node that takes its place."""
    second = cluster.add_node(num_cpus=8)
    driver = Driver(tree, tmp_path, env={"RAY_ADDRESS": cluster.address}).start()
    driver.wait_for("step 10/", timeout=420)
    raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
    there = [title for p in raylet.children() if (title := " ".join(p.cmdline())).startswith("ray::")]
    assert any(not title.startswith("ray::IDLE") for title in there), there
    raylet.kill()
    cluster.add_node(num_cpus=8)
    assert driver.wait(600) == 0, driver.text()[-3000:]
    check(tree, unbroken)


@pytest.mark.full
def test_a_node_that_joins_gives_the_run_another_worker(
    cluster: Cluster, tree: dict[str, Any], unbroken: Unbroken, tmp_path: Path
) -> None:
    """Nothing dies, but Ray Train restarts the workers: elastic `num_workers` keeps every seq, too."""
    slower = {"models": {f"mock{n}": {"mock_seconds": 0.1} for n in range(2)}}  # Ray looks for new nodes once a minute
    elastic = {"num_workers": [1, 2], "resources_per_worker": {"student": 1, "CPU": 0.5}}
    tree = config.overlay(tree, {"train": elastic, "teachers": slower, "storage": {"lease_ttl_s": 30}})
    driver = Driver(tree, tmp_path, env={"RAY_ADDRESS": cluster.address}).start()
    driver.wait_for("step 5/", timeout=420)
    cluster.add_node(num_cpus=4, resources={"student": 1})
    assert driver.wait(600) == 0, driver.text()[-3000:]
    check(tree, unbroken)
    uri, cfg = storage.join(tree["storage"]["root"], "debug"), config.Storage(**tree["storage"])
    ref = checkpoint.choose(uri, cfg)
    assert ref is not None and checkpoint.read_state(uri, ref, cfg)["world_size"] == 2


def test_the_s3_server_for_twenty_seconds(
    s3: S3Server, tree: dict[str, Any], unbroken: Unbroken, tmp_path: Path
) -> None:
    driver = Driver(config.overlay(tree, {"storage": {"lease_ttl_s": 60}}), tmp_path).start()
    driver.wait_for("step 5/")
    s3.stop()
    time.sleep(20)
    s3.start()
    assert driver.wait(420) == 0, driver.text()[-3000:]
    check(tree, unbroken)
