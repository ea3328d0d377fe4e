"""The published trio is a config: recipe paper_b, with teachers of the true architectures and random weights, each cut
to one block and saved as its authors save it, trains its true student and exports it, with the real command on CPUs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pathryoshka import config
from pathryoshka.distill import checkpoint
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.export.verify import verify
from pathryoshka.runs import results
from pathryoshka.storage.server import S3Server
from pathryoshka.teachers.zoo import ROWS
from pathryoshka.tiles.phantom import write_phantom
from tests import layouts
from tests.runs import Driver, outcome

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]
TRIO = ("virchow2", "uni2_h", "h_optimus_1")
STEPS = 8


@pytest.fixture(scope="module")
def tree(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a user without a GPU has to set beside the recipe: where things are, and sizes."""
    uri, folder = f"s3://{s3.bucket}/paper_b", tmp_path_factory.mktemp("teachers")
    write_phantom(f"{uri}/tiles", config.Storage(), num_tiles=64, num_patients=4, num_sites=1, splits={"distil": 1.0})
    cpu = {"device": "cpu", "replicas": 1, "precision": "fp32", "compile": False, "batch_size": 4}
    weights = {name: str(layouts.save(ROWS[name], folder / name, depth=1)[0]) for name in TRIO}
    return {
        "recipe": "paper_b",
        "data": {"tiles": [f"{uri}/tiles"], "read_tasks": 1, "prefetch_batches": 1},
        "plan": {"num_views": 4 * STEPS, "window": 1},
        "teachers": {"models": {name: {**cpu, "weights": at} for name, at in weights.items()}, "max_in_flight": 2},
        "standardise": {"num_views": 64},
        "student": {"start": "random", "heads": {"hidden": 256}},
        "train": {"device": "cpu", "num_workers": 1, "global_batch": 4, "micro_batch": 4, "precision": "fp32",
                  "log_every": 2, "max_failures": 0},
        "storage": {"root": f"{uri}/runs"},
    }  # fmt: skip


def test_paper_b_trains_and_exports(tree: dict[str, Any], tmp_path: Path) -> None:
    driver = Driver(tree, tmp_path / "run").start()
    assert driver.wait(1200) == 0, driver.text()[-5000:]
    said = driver.text()
    for name in TRIO:
        row = ROWS[name]
        dims = f"summary {row.summary_dim}, tokens {row.token_dim}"
        assert re.search(rf"teacher {name}: {name} with 1 of {row.depth} blocks, [\d.]+ M parameters, {dims}, ", said)
        assert re.search(rf"licence of {name}: {row.licence}; ", said)
    ledger, last = outcome(tree, "paper_b")
    assert last.startswith(f"{STEPS:08d}-") and ledger.ranges == ((0, 4 * STEPS),)
    run = config.make_run(config.overlay(config.load_run("paper_b").model_dump(), tree))
    assert (run.student.model, run.student.widths) == ("vit_base_patch14_reg4_dinov2", (64, 128, 256, 384, 768))
    lines = read_metrics(checkpoint.uri_of(run), run.storage)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    for name in TRIO:
        shares = [line[f"unexplained/{name}"] for line in lines]
        assert all(0 < share < 5 for share in shares), shares
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert verify(results.export_run(run, tmp_path / "export"))
