"""The whole path in one shared Ray session: tiles on S3, mock teachers, two DeepSpeed workers, scores, export."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pathryoshka import config, storage
from pathryoshka.config import ConfigError
from pathryoshka.distill import checkpoint
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.distill.stream import bytes_in_flight, make_dataset
from pathryoshka.export.verify import verify
from pathryoshka.runs import results
from pathryoshka.runs.inputs import make_stream, plan_of, tiles_of
from pathryoshka.runs.job import distill
from pathryoshka.session import ray_session
from pathryoshka.storage.server import S3Server
from pathryoshka.teachers.pool import TeacherError, TeacherPool
from pathryoshka.tiles.ledger import Ledger
from pathryoshka.tiles.phantom import write_phantom
from tests.bench.sampling import store_bytes
from tests.runs import settings, short_tmp

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    os.environ["RAY_TMPDIR"] = str(short_tmp())
    with ray_session(10):
        yield


@pytest.fixture(scope="module")
def tiles(s3: S3Server) -> str:
    uri = f"s3://{s3.bucket}/e2e/tiles"
    sizes = {"num_tiles": 360, "num_patients": 12, "num_sites": 2, "size": 48}
    write_phantom(uri, config.Storage(), splits={"distil": 0.5, "test": 0.5}, **sizes)
    return uri


def run_of(s3: S3Server, tiles: str, name: str, **over: Any) -> config.Run:
    tree = settings(f"s3://{s3.bucket}/e2e/runs", tiles, name=name, **over)
    tree["data"]["splits"] = ["distil"]
    tree["evaluate"] = {"tiles": [tiles], "splits": ["test"], "folds": 3}
    return config.make_run(config.overlay(config.load_run("debug").model_dump(), tree))


@pytest.fixture(scope="module")
def run(session: None, s3: S3Server, tiles: str) -> config.Run:
    """A finished run."""
    run = run_of(s3, tiles, "whole", plan={"num_views": 600, "window": 2})
    said: list[str] = []
    result = distill(run, say=said.append)
    assert result.checkpoint.startswith("00000013-")
    assert any("each exactly once" in line for line in said)
    assert any("in flight at most" in line for line in said)
    return run


def test_it_learned_and_said_so(run: config.Run) -> None:
    lines = read_metrics(checkpoint.uri_of(run), run.storage)
    assert [line["step"] for line in lines] == [5, 10, 13]
    assert lines[-1]["views"] == 600
    assert lines[-1]["unexplained/mock0"] < lines[0]["unexplained/mock0"]
    for key in ("tiles_per_s", "wait_share", "rate/read", "rate/mock0", "rate/student", "seconds_left"):
        assert key in lines[-1]


def test_same_command_again_has_nothing_to_do(run: config.Run) -> None:
    said: list[str] = []
    result = distill(run, say=said.append)
    assert result.checkpoint.startswith("00000013-")
    assert any("continuing from step 13" in line for line in said)


def test_a_changed_run_under_the_same_name_is_refused(run: config.Run) -> None:
    changed = config.make_run(config.overlay(run.model_dump(), {"optim": {"lr": 0.5}}))
    with pytest.raises(ConfigError, match=r"optim.lr = 0.001, not 0.5; use another name.*--allow-change optim.lr"):
        distill(changed, say=lambda _: None)


def test_scores_report_and_export(run: config.Run, tmp_path: Path) -> None:
    scores = results.evaluate_run(run, say=lambda _: None)
    encoders = {row.encoder for row in scores.rows}
    assert {"student", "start", "random", "mock0", "mock1"} <= encoders
    assert {row.width for row in scores.rows if row.encoder == "student"} == set(run.student.widths)
    page = tmp_path / "report.html"
    results.report_run(run, page)
    text = page.read_text()
    assert "PHANTOM" in text.upper() and 'src="http' not in text
    folder = results.export_run(run, tmp_path / "export")
    assert verify(folder)


def test_views_that_cannot_be_made_count_as_failed_but_delivered(s3: S3Server, session: None, tiles: str) -> None:
    """A tile that does not decode is a row of weight zero with a reason; above the limit the run is refused."""
    import pyarrow as pa

    from pathryoshka.tiles.shards import iter_tiles, write_manifest, write_shard
    from pathryoshka.tiles.stats import TileStats

    uri, cfg = f"s3://{s3.bucket}/e2e/broken", config.Storage()
    table = pa.concat_tables(list(iter_tiles(tiles, cfg, ("distil",)))[:2])
    images = table["image"].to_pylist()
    images[3] = images[3][:100]  # a truncated JPEG
    table = table.set_column(table.schema.get_field_index("image"), table.schema.field("image"), pa.array(images))
    write_manifest(uri, [write_shard(uri, "broken", table, cfg, stats=TileStats())], {"test": True}, cfg)
    over: dict[str, Any] = {"plan": {"num_views": 96, "window": 1}}
    lenient = run_of(s3, uri, "lenient", **over, data={"tiles": [uri], "max_failed_share": 0.5})
    distill(lenient, say=lambda _: None)
    _, ledger = checkpoint.current_ledger(checkpoint.uri_of(lenient), cfg)
    assert ledger.count == 96 and ledger.failed >= 1
    failures = storage.join(checkpoint.uri_of(lenient), "failures")
    reasons = [r for f in storage.list_files(failures, cfg) for r in storage.read_json(storage.join(failures, f), cfg)]
    assert len(reasons) == ledger.failed and all(r["tile_id"] and r["reason"] for r in reasons)


def test_a_teacher_that_never_starts_fails_the_run_with_its_own_error(
    s3: S3Server, session: None, tiles: str, tmp_path: Path
) -> None:
    page = tmp_path / "weights.pth"
    page.write_text("<!DOCTYPE html><html>404 not found</html>")
    broken = {"model": "efficientnet_lite0", "weights": str(page), "device": "cpu"}
    run = run_of(s3, tiles, "brokenteacher", teachers={"models": {"broken": broken}})
    with pytest.raises((TeacherError, Exception), match=r"broken failed to start 3 times; its last error: .*weights"):
        distill(run, say=lambda _: None)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, pytest.param(3, marks=pytest.mark.full)])
def test_deterministic_runs_end_in_the_same_bits(
    session: None, s3: S3Server, tiles: str, tmp_path: Path, zero_stage: int
) -> None:
    weights = []
    for name in ("first", "second"):
        over: dict[str, Any] = {"data": {"deterministic": True}, "train": {"zero_stage": zero_stage}}
        run = run_of(s3, tiles, f"bits-{name}-{zero_stage}", plan={"num_views": 480, "window": 2}, **over)
        distill(run, say=lambda _: None)
        weights.append(results.final_weights(run, tmp_path / name))
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def test_what_is_in_flight_stays_under_the_printed_bound(session: None, s3: S3Server, tiles: str) -> None:
    """A student slower than everything before it: 100 MB of views, of which only as much as was announced waits."""
    over = {"plan": {"num_views": 2048, "window": 1}, "views": {"size": 128}, "data": {"read_tasks": 2}}
    run = run_of(s3, tiles, "flight", train={"num_workers": 1, "global_batch": 32, "micro_batch": 32}, **over)
    names = run.teachers.models
    stream = make_stream(run, tiles_of(run), plan_of(run, tiles_of(run)), (4, 4), dict.fromkeys(names, (64, 48)))
    before, peak, seen = store_bytes(), 0, 0
    with TeacherPool(run.name, run.teachers, (4, 4), run.views.size, run.storage) as pool:
        pool.wait_ready()
        rows = make_dataset(stream, Ledger()).iter_batches(batch_size=1, prefetch_batches=run.data.prefetch_batches)
        for row in rows:
            time.sleep(0.1)
            seen += int((row["weight"] > 0).sum())
            peak = max(peak, store_bytes() - before)
    bound = sum(bytes_in_flight(stream, 1, run.data.prefetch_batches).values())
    assert seen == 2048
    print(f"{peak / 2**20:.1f} MiB of {bound / 2**20:.1f}")
    assert bound / 3 < peak <= bound < 2048 * 128 * 128 * 3 / 2
