"""Evaluation beside training: when a checkpoint is looked at, which one is the best, and a whole run that does it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.distill.checkpoint import Ref
from pathryoshka.runs import results
from pathryoshka.runs.during import Beside, evaluations
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.phantom import write_phantom
from tests.runs import Driver, settings
from tests.test_checkpoint import write

CFG = config.Storage()


def beside(run: str, said: list[str] | None = None, **over: object) -> Beside:
    during = {"every": 10, "tiles": ["t"], "share": 0.5, **over}
    return Beside(config.make_run({"evaluate": {"during": during}}), run, (said if said is not None else []).append)


def test_checkpoints_are_looked_at_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    run, watcher = str(tmp_path), beside(str(tmp_path))
    assert watcher.due() is None
    write(run, 5, 1)
    assert watcher.due() is None and watcher.due(final=True) == Ref(5, 1)
    write(run, 10, 1)
    write(run, 15, 1)
    assert watcher.due() == Ref(15, 1)
    watcher.last = 15
    write(run, 20, 1)
    assert watcher.due() is None and watcher.due(final=True) == Ref(20, 1)


def test_no_more_time_than_its_share(tmp_path: Path) -> None:
    write(str(tmp_path), 10, 1)
    watcher = beside(str(tmp_path))
    watcher.started = time.monotonic() - 100
    watcher.spent = 51
    assert watcher.due() is None and watcher.due(final=True) is not None
    watcher.spent = 49
    assert watcher.due() == Ref(10, 1)


def test_the_best_is_that_of_the_highest_mean_score(tmp_path: Path) -> None:
    run, said = str(tmp_path), list[str]()
    watcher = beside(run, said)
    refs = [write(run, step, 1) for step in (10, 20, 30)]
    for ref, value in zip(refs, (0.5, 0.8, 0.6), strict=True):
        watcher.note(ref, {"a/linear/8": value, "a/linear/24": value + 0.1, "a/knn/24": 0.99}, 1.0)
    best = checkpoint.best(run, CFG)
    assert best is not None and best["checkpoint"] == refs[1].name and best["score"] == pytest.approx(0.85)
    assert [line["step"] for line in evaluations(run, CFG)] == [10, 20, 30]
    assert "the best so far" in said[1] and "the best so far" not in said[2]
    assert beside(run).last == 30  # a run that goes on knows what was looked at


def test_a_checkpoint_that_is_gone_is_not_the_best(tmp_path: Path) -> None:
    watcher = beside(str(tmp_path))
    watcher.note(Ref(7, 1), {"a/linear/8": 0.9}, 1.0)
    assert checkpoint.best(str(tmp_path), CFG) is None


def test_it_needs_tiles_to_choose_by() -> None:
    with pytest.raises(config.ConfigError, match="evaluate.during.every needs evaluate.during.tiles"):
        config.make_run({"evaluate": {"during": {"every": 10}}})


@pytest.mark.full
@pytest.mark.timeout(400)
def test_a_run_is_looked_at_while_it_trains(s3: S3Server, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket}/during"
    split = {"distil": 0.6, "choose": 0.4}
    write_phantom(f"{uri}/tiles", CFG, num_tiles=400, num_patients=10, num_sites=1, size=48, splits=split)
    tree = settings(f"{uri}/runs", f"{uri}/tiles", data={"splits": ["distil"]}, plan={"num_views": 2400})
    during = {"every": 5, "tiles": [f"{uri}/tiles"], "splits": ["choose"], "share": 1.0}
    tree = config.overlay(tree, {"evaluate": {"during": during, "folds": 3}, "train": {"keep": 1}})
    driver = Driver(tree, tmp_path).start()
    assert driver.wait(300) == 0, driver.text()[-3000:]
    run = config.make_run(config.overlay(config.load_run("debug").model_dump(), tree))
    where = checkpoint.uri_of(run)
    found = evaluations(where, run.storage)
    assert found and found[-1]["step"] == 50  # the end is looked at
    assert all(f"tiles/{p}/{w}" in found[-1]["scores"] for p in ("linear", "knn") for w in (16, 48))
    best = checkpoint.best(where, run.storage)
    assert best is not None and best["score"] == max(line["score"] for line in found)
    there = [ref.name for ref in checkpoint.complete(where, run.storage)]
    assert best["checkpoint"] in there and len(there) <= 2  # the last one, and the best if it is another
    assert "evaluated step" in driver.text() and "of the time" in driver.text()
    chosen = run.model_copy(update={"export": config.Export(checkpoint="best")})
    assert results.checkpoint_of(chosen).name == best["checkpoint"]
    assert storage.exists(storage.join(where, "evaluations.json"), run.storage)
