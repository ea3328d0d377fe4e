"""What the student computes in: which engine is taken, that its vectors are the export's, that it is written down."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs onnxruntime (pip install 'pathryoshka[onnx]')")

from pathryoshka import config, load
from pathryoshka.embedding import engine
from pathryoshka.embedding.engine import ONNX, Engine, at_hand, choose
from pathryoshka.embedding.recipe import EmbedRefused, Recipe
from pathryoshka.embedding.sources import Unit, find_units
from pathryoshka.embedding.stream import Embed
from pathryoshka.export.facts import facts_at
from pathryoshka.export.formats import write_formats
from pathryoshka.export.record import FOLDER, RECORD, FormatsError
from pathryoshka.tiles.phantom import write_phantom
from tests.exports import SIZE, export

CFG = config.Storage()
WIDTH = 64


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An export without formats."""
    to = str(tmp_path_factory.mktemp("plain") / "export")
    export(to, "conv")
    return to


@pytest.fixture(scope="module")
def carrying(plain: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with its ONNX graph."""
    to = str(shutil.copytree(plain, tmp_path_factory.mktemp("carrying") / "export"))
    write_formats(to, ("onnx",))
    return to


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> tuple[Unit, ...]:
    """Of 90 tiles."""
    to = str(tmp_path_factory.mktemp("tiles") / "tiles")
    write_phantom(to, CFG, num_tiles=90, num_patients=3, num_sites=1, size=48)
    return find_units([to], CFG, cut=None).units


def chosen(
    student: str, units: tuple[Unit, ...], device: str = "cpu", said: list[str] | None = None, **over: Any
) -> Engine:
    of = {"model_id": facts_at(student, CFG)["model_id"], "width": WIDTH, "transform": {}, "tiles": {}, **over}
    return choose(student, Recipe(**of), units, device, CFG, [].append if said is None else said.append)


def gives_the_vectors_of(made: Engine, student: str) -> None:
    """In batches that do not come out even, and in none at all; and its tokens."""
    views = np.random.default_rng(0).integers(0, 256, (37, SIZE, SIZE, 3), dtype=np.uint8)
    working = Embed(made).student
    embed, got = working.embed, working.embed(views)
    np.testing.assert_allclose(working.tokens(views), load(student, width=WIDTH).tokens(views).numpy(), atol=1e-4)
    np.testing.assert_allclose(got, load(student, width=WIDTH).embed(views).numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    assert got.dtype == np.float32 and embed(views[:0]).shape == (0, WIDTH)


def test_the_graph_of_the_export_is_taken_on_a_cpu(carrying: str, units: tuple[Unit, ...]) -> None:
    made = chosen(carrying, units)
    assert made.name.startswith("onnxruntime ")
    gives_the_vectors_of(made, carrying)


def test_without_one_a_small_job_is_for_pytorch(plain: str, units: tuple[Unit, ...]) -> None:
    made = chosen(plain, units)
    assert made.name.startswith("torch ")
    gives_the_vectors_of(made, plain)


def test_where_it_pays_a_graph_is_made_and_the_export_stays_as_it_was(
    plain: str, units: tuple[Unit, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WORTHWHILE", 90)
    said: list[str] = []
    made = chosen(plain, units, said=said)
    assert made.name.startswith("onnxruntime ") and "`pathryoshka formats" in said[0]
    assert not Path(plain, FOLDER).exists()
    gives_the_vectors_of(made, plain)


def test_a_network_that_has_no_graph_is_for_pytorch(
    plain: str, units: tuple[Unit, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise FormatsError("it cannot be exported")

    monkeypatch.setattr(engine, "WORTHWHILE", 90)
    monkeypatch.setattr("pathryoshka.export.formats.graph_of_export", refuse)
    said: list[str] = []
    assert chosen(plain, units, said=said).name.startswith("torch ")
    assert said == ["embed: PyTorch, since it cannot be exported"]


@pytest.mark.parametrize(("device", "precision"), [("cuda", "float32"), ("cpu", "bfloat16")])
def test_gpus_and_bfloat16_are_for_pytorch(carrying: str, units: tuple[Unit, ...], device: str, precision: str) -> None:
    made = chosen(carrying, units, device, precision=precision)
    assert made.name.startswith("torch ")
    assert (made.arguments["device"], made.arguments["precision"]) == (device, precision)


def test_the_graph_of_another_student_is_none(carrying: str, units: tuple[Unit, ...]) -> None:
    assert chosen(carrying, units, model_id="another").name.startswith("torch ")


@pytest.mark.parametrize(("file", "says"), [(ONNX, "model.onnx is damaged"), (RECORD, "formats.json is damaged")])
def test_a_damaged_graph_is_refused(
    carrying: str, units: tuple[Unit, ...], tmp_path: Path, file: str, says: str
) -> None:
    copy = shutil.copytree(carrying, tmp_path / "copy")
    (copy / FOLDER / file).write_bytes((copy / FOLDER / file).read_bytes()[:-9])
    with pytest.raises(EmbedRefused, match=says):
        chosen(str(copy), units)


def test_without_pytorch_a_student_without_a_graph_is_refused(
    plain: str, carrying: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "installed", lambda package: None if package == "torch" else "1")
    assert at_hand(carrying, facts_at(carrying, CFG), "cpu", 1, CFG).name == "onnxruntime 1"
    with pytest.raises(EmbedRefused, match="pathryoshka formats .* --only onnx"):
        at_hand(plain, facts_at(plain, CFG), "cpu", 1, CFG)


@pytest.mark.parametrize(("carries", "device", "engine"), [
    (True, "cpu", "onnxruntime"), (False, "cpu", "torch"), (True, "cuda", "torch"),
])  # fmt: skip
def test_a_service_takes_what_is_at_hand(plain: str, carrying: str, carries: bool, device: str, engine: str) -> None:
    student = carrying if carries else plain
    facts = facts_at(student, CFG)
    made = at_hand(student, facts, device, 2, CFG)
    assert made.name.startswith(f"{engine} ") and made.arguments["num_threads"] == 2
    if device == "cpu":
        views = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
        got = made.student(**made.arguments).embed(views)
        np.testing.assert_allclose(got, load(student).embed(views).numpy(), atol=1e-5)


def test_a_damaged_graph_is_refused_before_a_service_starts_anything(carrying: str, tmp_path: Path) -> None:
    from pathryoshka.serve.service import Running, Service

    copy = shutil.copytree(carrying, tmp_path / "copy")
    (copy / FOLDER / ONNX).write_bytes(b"no graph")
    with pytest.raises(EmbedRefused, match="model.onnx is damaged"):
        Running(Service(model=str(copy))).deploy(str(copy), None)
