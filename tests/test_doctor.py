"""The doctor names what is missing and what to do; each check is shown a machine that lacks what it looks for."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from PIL import Image

from pathryoshka import config, doctor, recipes
from pathryoshka.tiles import shards

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def run(tmp_path: Path) -> config.Run:
    return config.load_run("debug", None, [f"storage.root={tmp_path}/runs"])


def test_every_check_speaks_and_the_lines_count_them(run: config.Run) -> None:
    checks = doctor.examine(run)
    assert [check.name for check in checks] == list(doctor.CHECKS)
    lines = doctor.as_lines(checks).splitlines()
    troubled = [check for check in checks if check.state != "ok"]
    assert len(lines) == len(checks) + len(troubled) + 1
    assert all(check.advice for check in troubled), "a trouble without advice"
    states = [check.state for check in checks]
    assert lines[-1] == f"{states.count('ok')} ok, {states.count('warn')} warn, {states.count('FAIL')} FAIL"
    assert [entry["state"] for entry in json.loads(doctor.as_json(checks))] == states


def test_this_machine_passes_what_the_tests_need(run: config.Run) -> None:
    by_name = {check.name: check for check in doctor.examine(run)}
    assert {name: by_name[name].state for name in ("python", "packages", "storage", "weights")} == {
        "python": "ok",
        "packages": "ok",
        "storage": "ok",
        "weights": "ok",
    }


def test_a_check_that_breaks_is_a_failure_and_the_others_go_on(
    run: config.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: config.Run) -> doctor.Check:
        raise RuntimeError("no such thing")

    monkeypatch.setitem(doctor.CHECKS, "cores", broken)
    checks = doctor.examine(run)
    assert len(checks) == len(doctor.CHECKS)
    found = next(check for check in checks if check.name == "cores")
    assert found.state == "FAIL" and "no such thing" in found.found


def test_old_python(run: config.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OLDEST", (99, 0))
    check = doctor.python(run)
    assert check.state == "FAIL" and "python99.0" in check.advice


def test_memory_and_cores_are_those_of_the_machine() -> None:
    total, free = doctor.memory_bytes()
    assert total <= psutil.virtual_memory().total * 1.001
    assert 0 < free <= total
    assert 1 <= doctor.num_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("total", "free", "state"), [(2, 1, "FAIL"), (64, 1, "warn"), (64, 60, "ok")])
def test_memory(run: config.Run, monkeypatch: pytest.MonkeyPatch, total: int, free: int, state: str) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (total * doctor.GIB, free * doctor.GIB))
    assert doctor.memory(run).state == state


def test_memory_of_a_cluster_is_not_this_machines(run: config.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (2 * doctor.GIB, doctor.GIB))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert doctor.memory(run).state == "ok"


def test_a_recipe_for_gpus_on_a_machine_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "Path", lambda name: Path("/nonexistent"))
    check = doctor.gpu(recipes.paper_b())
    assert check.state == "warn" and "paper_b asks for cuda" in check.found
    assert doctor.gpu(recipes.demo()).state == "ok"


def test_a_gpu_that_torch_cannot_use(run: config.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "Path", lambda name: tmp_path)  # "the driver's folder exists"
    assert doctor.gpu(run).state == "FAIL"


@pytest.mark.parametrize(("free", "state"), [(0.06, "FAIL"), (1, "warn"), (9, "ok")])
def test_shared_memory(run: config.Run, monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(10 * doctor.GIB, 0, int(free * doctor.GIB)))
    check = doctor.shared_memory(run)
    assert check.state == state and (state == "ok") == (check.advice == "")


@pytest.mark.parametrize(
    ("total", "free", "state"), [(100, 1, "FAIL"), (100, 5, "warn"), (1000, 40, "warn"), (100, 50, "ok")]
)
def test_disk(run: config.Run, monkeypatch: pytest.MonkeyPatch, total: int, free: int, state: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(total * doctor.GIB, 0, free * doctor.GIB))
    assert doctor.disk(run).state == state


def test_a_folder_that_ray_has_yet_to_make_is_measured_where_it_will_be(
    run: config.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray" / "here"))
    assert "GiB free" in doctor.disk(run).found


def test_a_taken_port_is_named(run: config.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: "somebody"})
        check = doctor.ports(run)
        assert check.state == "warn" and f"{port} (somebody)" in check.found
    assert doctor.ports(run).state == "ok"


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    run = config.load_run("debug", None, [f"storage.root={tmp_path}/file/runs"])
    check = doctor.bucket(run)
    assert check.state == "FAIL" and "file/runs" in check.advice


def test_tiles_unset_missing_and_there(tmp_path: Path, run: config.Run) -> None:
    assert doctor.tiles(run).state == "warn"
    missing = config.load_run("debug", None, [f"data.tiles={tmp_path}/nothing"])
    check = doctor.tiles(missing)
    assert check.state == "FAIL" and "nothing" in check.found
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8)).save(pixels, "PNG")
    names = {"tile_id": "t", "slide_id": "s", "patient_id": "p", "site": "x", "image": pixels.getvalue()}
    row = {**names, "x": 0, "y": 0, "width": 8, "height": 8, "mpp": 0.5, "tissue": 1.0, "label": None, "split": None}
    table = pa.Table.from_pylist([row], schema=shards.SCHEMA)
    entry = shards.write_shard(str(tmp_path / "set"), "a.parquet", table, run.storage)
    shards.write_manifest(str(tmp_path / "set"), [entry], {}, run.storage)
    check = doctor.tiles(config.load_run("debug", None, [f"data.tiles={tmp_path}/set"]))
    assert check.state == "ok" and check.found.startswith("1 tiles at")


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    demo = config.load_run("demo")
    assert doctor.weights(demo).state == "ok"
    lost = config.load_run("demo", None, [f"teachers.models.lite1.weights={tmp_path}/none.safetensors"])
    check = doctor.weights(lost)
    assert check.state == "FAIL" and "none.safetensors" in check.found and "lite1" in check.advice
    wrong = config.load_run("demo", None, ["teachers.models.lite1.model=efficientnet_lite9"])
    assert "did you mean efficientnet_lite" in doctor.weights(wrong).found


def test_weights_that_the_hub_would_give_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    check = doctor.weights(recipes.paper_s())
    assert check.state == "warn" and "virchow2, uni2_h, h_optimus_1" in check.found


def test_a_compiler_is_told_of_but_not_asked_for(run: config.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check = doctor.compiler(run)
    assert check.state == "ok" and "neither g++ nor ninja" in check.found


def test_missing_extras_are_named(run: config.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find", lambda module: module == "openslide")
    check = doctor.extras(run)
    assert check.state == "warn" and "pathryoshka[s3server]" in check.advice
