"""Embedding without Ray: readers, student, writer and states in a row, batches in any order; files for other tools."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from pathryoshka import cli, config, load, storage
from pathryoshka.embedding import job, stream
from pathryoshka.embedding.exporting import export_slides
from pathryoshka.embedding.recipe import EmbedError, EmbedRefused
from pathryoshka.embedding.rows import VECTOR
from pathryoshka.embedding.state import MANIFEST, Manifest, read_states
from pathryoshka.embedding.stream import Pools
from pathryoshka.embedding.table import read_table
from pathryoshka.export.formats import write_formats
from pathryoshka.features.table import as_matrix
from pathryoshka.storage.lease import Lease, RunTaken
from pathryoshka.tiles.cutting import Slide
from pathryoshka.tiles.grid import Cut
from pathryoshka.tiles.phantom import write_phantom
from pathryoshka.tiles.shards import iter_tiles, read_manifest, write_manifest, write_shard
from pathryoshka.tiles.slides import cut_slides
from pathryoshka.tiles.stats import TileStats
from pathryoshka.tiles.views import decode
from tests.exports import export

CFG = config.Storage(max_attempts=2, lease_ttl_s=2)
CMU = Path(__file__).parent / "data" / "slides" / "CMU-1-Small-Region.svs"
COARSE = Cut(mpp=(1.0,))


class InARow:
    """What stands in for Ray: every piece in this process, rows in a random order."""

    stop_after: int | None = None

    def __init__(self, units: Any, how: Any, pools: Any, engine: Any) -> None:
        self.units, self.how = cloudpickle.loads(cloudpickle.dumps((units, how)))  # as they travel to workers
        self.embed = stream.Embed(engine)

    def iter_batches(self, **_: Any) -> Iterator[dict[str, np.ndarray]]:
        pieces = [(i, n, g, unit.what) for i, unit in enumerate(self.units) for n, g in enumerate(unit.pieces)]
        rows = [row for piece in pieces for row in stream.read_piece(*piece, self.how)]
        if self.stop_after is None:
            random.Random(0).shuffle(rows)
        for i, row in enumerate(rows):
            if i == self.stop_after:
                raise KeyboardInterrupt
            yield self.embed(row)


@pytest.fixture(autouse=True)
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "make_dataset", InARow)
    monkeypatch.setattr(job, "pools", lambda *_: Pools(0, 1, "cpu"))
    monkeypatch.setattr(job, "ray_session", lambda *_, **__: contextlib.nullcontext())


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    to = tmp_path_factory.mktemp("student") / "export"
    export(to, "conv")
    return str(to)


@pytest.fixture
def tiles(tmp_path: Path) -> str:
    write_phantom(str(tmp_path / "tiles"), CFG, num_tiles=90, num_patients=3, num_sites=1, size=48)
    return str(tmp_path / "tiles")


def run(places: list[str], student: str, to: Path, **over: Any) -> tuple[Manifest, list[str]]:
    said: list[str] = []
    given: dict[str, Any] = {"width": 64, "batch_size": 16, "say": said.append, **over}
    return job.embed(places, student, str(to), CFG, **given), said


def plainly(uri: str, student: str) -> dict[str, np.ndarray]:
    """Tile -> vector, by the export itself, one tile after the other."""
    model = load(student, width=64)
    rows = pa.concat_tables(iter_tiles(uri, CFG)).to_pylist()
    return {row["tile_id"]: model.embed(decode(row["image"])[None]).numpy()[0] for row in rows}


def check(to: Path, wanted: dict[str, np.ndarray]) -> pa.Table:
    """Every tile once, with its vector."""
    table = read_table(str(to), CFG)
    ids = table["tile_id"].to_pylist()
    assert sorted(ids) == sorted(wanted)
    np.testing.assert_allclose(as_matrix(table[VECTOR]), np.stack([wanted[i] for i in ids]), atol=1e-5)
    return table


def test_every_tile_once_with_the_vector_of_the_export(tiles: str, student: str, tmp_path: Path) -> None:
    manifest, said = run([tiles], student, tmp_path / "to")
    table = check(tmp_path / "to", plainly(tiles, student))
    assert manifest.rows == 90 and {state.status for state in manifest.states} == {"done"}
    assert table["view_id"].to_pylist() == [-1] * 90 and not table["pixels"].null_count
    facts = {row["tile_id"]: row["patient_id"] for table in iter_tiles(tiles, CFG) for row in table.to_pylist()}
    assert dict(zip(table["tile_id"].to_pylist(), table["patient_id"].to_pylist(), strict=True)) == facts
    assert manifest.recipe.model_id == table.schema.metadata[b"pathryoshka.model_id"].decode()
    assert any("90 tiles of 3 shards" in line for line in said)


def test_the_same_command_again_does_what_is_new_or_changed(tiles: str, student: str, tmp_path: Path) -> None:
    run([tiles], student, tmp_path / "to")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "to" / "parts").iterdir()}
    _, said = run([tiles], student, tmp_path / "to")
    assert said == ["embed: 3 shards, 3 of them done before"]
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "to" / "parts").iterdir()}
    manifest = read_manifest(tiles, CFG)
    first, second, _ = manifest.shards  # one becomes another, one goes
    rows = next(iter(iter_tiles(tiles, CFG))).to_pylist()[:7]
    changed = write_shard(tiles, first.path, pa.Table.from_pylist(rows), CFG)
    write_manifest(tiles, [changed, second], manifest.made_by, CFG)
    again, said = run([tiles], student, tmp_path / "to")
    assert said[0] == "embed: 2 shards, 1 of them done before"
    check(tmp_path / "to", plainly(tiles, student))
    assert len(list((tmp_path / "to" / "parts").iterdir())) == len(again.parts) == 2


@pytest.mark.parametrize(("field", "over"), [("width", {"width": 1024}), ("dtype", {"dtype": "float16"})])
def test_another_recipe_is_refused_by_field(
    tiles: str, student: str, tmp_path: Path, field: str, over: dict[str, Any]
) -> None:
    run([tiles], student, tmp_path / "to")
    with pytest.raises(EmbedRefused, match=f"made with {field} = "):
        run([tiles], student, tmp_path / "to", **over)


def test_half_the_bytes(tiles: str, student: str, tmp_path: Path) -> None:
    run([tiles], student, tmp_path / "to", dtype="float16")
    table = read_table(str(tmp_path / "to"), CFG)
    assert table.schema.field(VECTOR).type.value_type == pa.float16()
    wanted = plainly(tiles, student)
    for tile_id, vector in zip(table["tile_id"].to_pylist(), as_matrix(table[VECTOR]), strict=True):
        np.testing.assert_allclose(vector, wanted[tile_id], atol=1e-3)


def test_what_cannot_be_read_is_named_and_the_rest_is_there(tiles: str, student: str, tmp_path: Path) -> None:
    manifest = read_manifest(tiles, CFG)
    rows = next(iter(iter_tiles(tiles, CFG))).to_pylist()[:5]
    rows[3]["image"] = rows[3]["image"][:200]
    torn = write_shard(tiles, manifest.shards[0].path, pa.Table.from_pylist(rows), CFG, stats=TileStats())
    write_manifest(tiles, [torn, *manifest.shards[1:]], manifest.made_by, CFG)
    Path(tiles, manifest.shards[1].path).write_bytes(b"not what was written")
    made, _ = run([tiles], student, tmp_path / "to")
    by_name = {state.name.partition("/")[2]: state for state in made.states}
    one, two, three = (by_name[shard.path] for shard in manifest.shards)
    assert list(one.unreadable) == [rows[3]["tile_id"]] and one.part is not None and one.part.rows == 4
    assert two.status == "failed" and "corrupt" in str(two.reason) and two.part is None and three.status == "done"
    status = {row["name"]: row for row in pq.read_table(tmp_path / "to" / "status.parquet").to_pylist()}
    assert status[two.name]["reason"] == two.reason and status[one.name]["num_unreadable"] == 1


def test_an_interrupt_keeps_what_was_finished_and_nothing_else(
    tiles: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InARow, "stop_after", 5)
    with pytest.raises(KeyboardInterrupt):
        run([tiles], student, tmp_path / "to")
    states = read_states(str(tmp_path / "to"), CFG)
    parts = list((tmp_path / "to" / "parts").iterdir())
    assert len(states) == len(parts) == 1 and not (tmp_path / "to" / MANIFEST).exists()
    assert [p for p in (tmp_path / "to").rglob("*") if p.name.endswith(".partial")] == []
    monkeypatch.setattr(InARow, "stop_after", None)
    _, said = run([tiles], student, tmp_path / "to")
    assert said[0] == "embed: 3 shards, 1 of them done before"
    check(tmp_path / "to", plainly(tiles, student))


def test_a_table_goes_on_in_another_engine_and_says_so(
    tiles: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (pip install 'pathryoshka[onnx]')")
    monkeypatch.setattr(InARow, "stop_after", 5)
    with pytest.raises(KeyboardInterrupt):
        run([tiles], student, tmp_path / "to")
    monkeypatch.setattr(InARow, "stop_after", None)
    write_formats(shutil.copytree(student, tmp_path / "student"), ("onnx",))
    manifest, said = run([tiles], str(tmp_path / "student"), tmp_path / "to")
    assert sorted(state.engine.split()[0] for state in manifest.states) == ["onnxruntime", "onnxruntime", "torch"]
    assert any("students on cpu (onnxruntime " in line for line in said)
    check(tmp_path / "to", plainly(tiles, student))


def test_two_runs_do_not_write_one_table(tiles: str, student: str, tmp_path: Path) -> None:
    with Lease.acquire(str(tmp_path / "to"), CFG, "somebody:1"), pytest.raises(RunTaken, match="somebody:1"):
        run([tiles], student, tmp_path / "to")


def test_slides_are_embedded_as_their_tiles_would_be(student: str, tmp_path: Path, in_process: None) -> None:
    pytest.importorskip("openslide", reason="SKIPPED: openslide is not installed, no slide was embedded")
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(CMU, slides / "one.svs")
    (slides / "text.svs").write_text("no slide")
    manifest, said = run([str(slides)], student, tmp_path / "direct", cut=COARSE)
    cut_slides([slides / "one.svs"], str(tmp_path / "tiles"), CFG, mpp=1.0, image_format="png")
    table = check(tmp_path / "direct", plainly(str(tmp_path / "tiles"), student))
    by_name = {state.name: state for state in manifest.states}
    assert by_name["one"].status == "done" and by_name["text"].status == "failed"
    assert "no reader knows this format" in str(by_name["text"].reason)
    assert any("1 failed" in line for line in said)
    run([str(tmp_path / "tiles")], student, tmp_path / "cut")
    places = [
        {row["tile_id"]: (row["x"], row["y"], round(row["side"], 2), row["mpp"]) for row in one.to_pylist()}
        for one in (table, read_table(str(tmp_path / "cut"), CFG))
    ]
    assert places[0] == places[1] and len(places[0]) > 5


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slides without a process for them, and cut without Ray."""
    from pathryoshka.embedding import reading
    from pathryoshka.tiles import making

    monkeypatch.setattr(reading, "in_child", lambda function, *args, limit_s: function(*args))
    monkeypatch.setattr(making, "run_tasks", lambda function, items: [function(item) for item in items])


def test_files_for_other_tools(student: str, tmp_path: Path, in_process: None) -> None:
    h5py, anndata = pytest.importorskip("h5py"), pytest.importorskip("anndata")
    pytest.importorskip("openslide", reason="SKIPPED: openslide is not installed, no slide was embedded")
    run([str(CMU)], student, tmp_path / "to", cut=Cut(mpp=(1.0,), stride=112))
    for form in ("trident", "anndata", "zarr"):
        assert "1 slides" in export_slides(str(tmp_path / "to"), form, CFG)
    table = read_table(str(tmp_path / "to"), CFG).to_pandas().set_index(["x", "y"])
    with h5py.File(tmp_path / "to" / "trident" / "CMU-1-Small-Region.h5") as file:
        coords, features = file["coords"][:], file["features"][:]
        told = dict(file["coords"].attrs)
        assert not any(str(tmp_path) in str(value) for value in [*told.values(), *file["features"].attrs.values()])
    assert coords.dtype == np.int64 and features.shape == (len(table), 64)
    assert coords.tolist() == sorted(coords.tolist(), key=lambda at: (at[1], at[0]))
    for place, vector in zip(coords.tolist(), features, strict=True):
        np.testing.assert_array_equal(vector, table.loc[tuple(place), VECTOR])
    assert (told["patch_size"], told["patch_size_level0"], told["overlap"]) == (224, round(224 / 0.499), 112)
    assert told["target_magnification"] == 10 and told["level0_magnification"] == pytest.approx(10 / 0.499, abs=0.01)
    read = anndata.read_h5ad(tmp_path / "to" / "anndata" / "CMU-1-Small-Region.h5ad")
    assert read.shape == (len(table), 64) and {"tile_id", "slide_id", "patient_id", "x", "y"} <= set(read.obs)
    np.testing.assert_allclose(read.obsm["spatial"][:, 0], read.obs["x"] + 112 / 0.499, atol=0.1)
    assert "1 slides" in export_slides(str(tmp_path / "to"), "zarr", CFG)  # again: over what was there
    chunked = anndata.read_zarr(tmp_path / "to" / "zarr" / "CMU-1-Small-Region.zarr")
    np.testing.assert_array_equal(chunked.X, read.X)
    assert chunked.obs.astype(str).equals(read.obs.astype(str)) and chunked.uns["pathryoshka"]["width"] == 64


def test_tiles_without_a_place_have_no_such_files(tiles: str, student: str, tmp_path: Path) -> None:
    run([tiles], student, tmp_path / "to")
    with pytest.raises(EmbedRefused, match="where tiles lie"):
        export_slides(str(tmp_path / "to"), "anndata", CFG)


def test_sources_that_do_not_go_together(tiles: str, student: str, tmp_path: Path) -> None:
    with pytest.raises(EmbedRefused, match="two places"):
        run([tiles, str(CMU)], student, tmp_path / "to")
    with pytest.raises(EmbedRefused, match="cut already"):
        run([tiles], student, tmp_path / "to", cut=COARSE)
    with pytest.raises(ValueError, match="trained for widths"):
        run([tiles], student, tmp_path / "to", width=65)


def test_nothing_at_all_is_an_error_and_no_table(student: str, tmp_path: Path, in_process: None) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(EmbedError, match="text: no reader knows this format"):
        run([str(tmp_path / "text.svs")], student, tmp_path / "to")
    assert not (tmp_path / "to" / MANIFEST).exists()
    assert pq.read_table(tmp_path / "to" / "status.parquet")["status"].to_pylist() == ["failed"]


def test_a_child_that_was_lost_says_so() -> None:
    from pathryoshka.embedding import slide
    from pathryoshka.tiles.tiff import SlideError

    slide.end()
    with pytest.raises(SlideError, match="was lost"):
        slide.more(3)
    with pytest.raises(SlideError):
        slide.begin("/no/such/slide.svs", None, COARSE, None, Slide("x", "x", "x", "x"), 32)


def test_the_verb_says_what_failed_and_exits_with_1(
    tiles: str, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["embed", tiles, "--student", student, "--width", "64", "--to", str(tmp_path / "to")]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert not ended.value.code and "90 tiles of 3 parts, 64 numbers each" in capsys.readouterr().out
    Path(tiles, read_manifest(tiles, CFG).shards[0].path).unlink()
    with pytest.raises(SystemExit) as ended:
        cli.main([*words[:-1], str(tmp_path / "other")])
    said = capsys.readouterr()
    assert ended.value.code == 1 and "not in storage" in said.err and "60 tiles of 2 parts" in said.out


def test_a_manifest_holds_no_path_of_this_machine(tiles: str, student: str, tmp_path: Path) -> None:
    run([tiles], student, tmp_path / "to")
    for path in (p for p in (tmp_path / "to").rglob("*.json") if "lease" not in p.parts):
        assert str(tmp_path) not in path.read_text()
        json.loads(path.read_text())
    assert storage.exists(str(tmp_path / "to" / MANIFEST), CFG)
    assert pq.read_schema(io.BytesIO(next((tmp_path / "to" / "parts").iterdir()).read_bytes())).names[0] == "tile_id"


@pytest.mark.parametrize(("num_tiles", "students"), [(0, 1), (2001, 3), (10**6, 24)])
def test_no_more_students_start_than_there_is_work_for(
    num_tiles: int, students: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session may announce far more CPUs than it has cores."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(stream.ray, "cluster_resources", lambda: {"CPU": 24.0})
    assert stream.pools("auto", None, num_tiles) == stream.Pools(0, students, "cpu")
    assert stream.pools("auto", 2, num_tiles).students == 2
