"""Whole runs on a feature store: filled, killed and filled on; read by training with and without teachers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.features import upkeep
from pathryoshka.features.coverage import read_coverage
from pathryoshka.recipes import recipe_by_name
from pathryoshka.runs import results
from pathryoshka.runs.job import distill
from pathryoshka.session import ray_session
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.ledger import Ledger
from pathryoshka.tiles.phantom import write_phantom
from tests.runs import Driver, settings, short_tmp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CFG = config.Storage()


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(short_tmp()))
        with ray_session(10):
            yield


def tree_of(s3: S3Server, **over: Any) -> dict[str, Any]:
    base = f"s3://{s3.bucket}/stored"
    if not storage.exists(f"{base}/tiles/_manifest.json", CFG):
        splits = {"distil": 1.0}
        write_phantom(f"{base}/tiles", CFG, num_tiles=400, num_patients=10, num_sites=2, size=48, splits=splits)
    tree = settings(f"{base}/runs", f"{base}/tiles", data={"deterministic": True}, store={"uri": f"{base}/store"})
    tree = config.overlay(tree, {"views": {"per_tile": 2}, "train": {"num_workers": 1, "log_every": 1}})
    tree = config.overlay(tree, {"plan": {"num_views": 480}, "store": {"part_rows": 64}})
    return config.overlay(tree, over)


def run_of(tree: dict[str, Any], name: str, **over: Any) -> config.Run:
    return config.make_run(
        config.overlay(recipe_by_name("debug").model_dump(), config.overlay(tree, {"name": name, **over}))
    )


def losses(run: config.Run) -> list[float]:
    return [line["loss"] for line in read_metrics(checkpoint.uri_of(run), run.storage)]


def test_a_filling_that_is_killed_goes_on_where_its_journal_ends(s3: S3Server, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket}/stored/killed"
    slow = {"mock0": {"mock_seconds": 0.02}, "mock1": {"mock_seconds": 0.02}}
    tree = tree_of(s3, store={"uri": uri}, teachers={"models": slow})
    first = Driver(tree, tmp_path / "first", {}, ("store", "fill")).start()
    first.wait_for("views/s, slowest stage mock")
    first.kill()
    done = read_coverage(f"{uri}/teachers/mock0", CFG).num_views
    assert 0 < done < 800
    again = Driver(tree, tmp_path / "again", {}, ("store", "fill")).start()
    assert again.wait() == 0, again.text()[-3000:]
    said = next(line for line in again.text().splitlines() if "views kept in" in line)
    assert 0 < int(said.split()[1]) <= 800 - done
    for holding in upkeep.holdings(uri, CFG):
        assert holding.coverage.num_views == 800 and not dict(upkeep.broken(uri, holding, CFG))
        upkeep.collect(uri, holding, CFG)


def test_training_from_the_store_is_training_with_teachers(session: None, s3: S3Server, tmp_path: Path) -> None:
    from pathryoshka.runs import shelving

    tree = tree_of(s3)
    stored, live = run_of(tree, "stored"), run_of(tree, "live", store={"uri": None})
    said: list[str] = []
    shelving.fill(stored, said.append)
    assert any("bytes a view" in line for line in said) and any("800 views kept" in line for line in said)
    started = time.perf_counter()
    shelving.fill(stored, said.append)
    assert said[-1] == "store: every view is there" and time.perf_counter() - started < 30
    said.clear()
    distill(stored, say=said.append)
    assert sum("100% of its features out of" in line and "not loaded" in line for line in said) == 2
    distill(live, say=lambda _: None)
    assert losses(stored) == losses(live) and len(losses(live)) == 10
    same = [results.final_weights(run, tmp_path / run.name) for run in (stored, live)]
    for key, value in same[0].items():
        assert torch.equal(value, same[1][key]), key
    lines = read_metrics(checkpoint.uri_of(stored), stored.storage)
    assert (
        all(line["store/hit_rate"] == 1 for line in lines)
        and "store/hit_rate" not in read_metrics(checkpoint.uri_of(live), live.storage)[0]
    )

    # a part of the store is gone: teachers are asked for it, and nothing else changes
    uri = str(stored.store.uri)
    for holding in upkeep.holdings(uri, CFG):
        paths = sorted(holding.coverage.parts())
        upkeep.drop(uri, holding, set(paths[::3] if holding.name == "mock0" else []), CFG)
    mixed = run_of(tree, "mixed")
    said.clear()
    distill(mixed, say=said.append)
    assert any("mock0" in line and "asked for the rest" in line for line in said)
    assert any("mock1" in line and "not loaded" in line for line in said)
    for a, b in zip(losses(mixed), losses(live), strict=True):
        assert abs(a - b) < 1e-3 * b
    hits = [line["store/hit_rate"] for line in read_metrics(checkpoint.uri_of(mixed), mixed.storage)]
    assert min(hits) > 0.5 and max(hits) < 1
    ledgers = [checkpoint.current_ledger(checkpoint.uri_of(run), CFG)[1] for run in (stored, live, mixed)]
    assert ledgers[0] == ledgers[1] == ledgers[2] != Ledger()


@pytest.mark.full
def test_teachers_asked_beside_coarser_tokens_answer_as_coarsely(session: None, s3: S3Server) -> None:
    from pathryoshka.runs import shelving

    uri = f"s3://{s3.bucket}/stored/coarse"
    tree = tree_of(s3, store={"uri": uri, "tokens": "projected", "directions": 4})
    whole, mixed = run_of(tree, "coarse"), run_of(tree, "coarse-mixed")
    shelving.fill(whole, lambda _: None)
    distill(whole, say=lambda _: None)
    for holding in upkeep.holdings(uri, CFG):
        assert 0.1 < holding.recipe.lost < 1, "so much that exact tokens in between would show"
        upkeep.drop(uri, holding, set(sorted(holding.coverage.parts())[::2]), CFG)
    distill(mixed, say=lambda _: None)
    assert losses(mixed) == pytest.approx(losses(whole), rel=1e-3)
