"""Search over embeddings, judged by brute force in float64; what it refuses; what a killed writer leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pathryoshka import cli, config, storage
from pathryoshka.export.load import load
from pathryoshka.lease import Lease, RunTaken
from pathryoshka.search import Index, open_index, writing
from pathryoshka.search import index as index_room
from pathryoshka.search.filters import Filter
from pathryoshka.search.manifest import SearchError, read_manifest
from pathryoshka.tiles.shards import write_manifest, write_shard
from tests.exports import export
from tests.indices import MODEL, WIDTH, brute, facts, vectors, write_table

CFG = config.Storage(lease_ttl_s=1)
NUM = 3000
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def x_ND() -> np.ndarray:
    return vectors(NUM)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, x_ND: np.ndarray) -> str:
    return write_table(tmp_path_factory.mktemp("table") / "t.parquet", x_ND, facts(NUM))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, table: str) -> Path:
    """Three segments; not to be changed."""
    to = tmp_path_factory.mktemp("index") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SEGMENT_ROWS", 1300)
        writing.build(table, str(to), CFG)
    return to


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(built, tmp_path / "index"))


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short-lists in an index so small that it would be searched exactly."""
    monkeypatch.setattr(index_room, "FEW", 0)
    monkeypatch.setattr("pathryoshka.search.scan.PART_ROWS", 500)


def ids(
    index: Index, query: np.ndarray, width: int = WIDTH, k: int = 10, only: Filter | None = None, **options: Any
) -> list[str]:
    return [hit.tile_id for hit in index.search(query, [width], k, only, **options)[width]]


NAMES = np.array(facts(NUM)["tile_id"])


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize("width", [16, 64, WIDTH])
@pytest.mark.parametrize("exact", [True, False])
def test_an_exact_search_is_brute_force(built: Path, x_ND: np.ndarray, width: int, exact: bool) -> None:
    index = open_index(str(built), CFG)
    assert len(index) == NUM and len(index.segments) == 3
    for query in vectors(5, seed=1):
        hits = index.search(query, [width], 20, exact=exact)[width]
        rows = brute(x_ND, query, width)[:40]
        # halves round a cosine by 1e-4: neighbours so close to each other may change places
        cosines = {NAMES[row]: score(x_ND, query, row, width) for row in rows}
        np.testing.assert_allclose([hit.score for hit in hits], [cosines[NAMES[r]] for r in rows[:20]], atol=2e-4)
        np.testing.assert_allclose([hit.score for hit in hits], [cosines[h.tile_id] for h in hits], atol=2e-4)


def score(x_ND: np.ndarray, query: np.ndarray, row: int, width: int) -> float:
    x, q = x_ND[row, :width].astype(float), query[:width].astype(float)
    return float(x @ q / np.sqrt((x @ x) * (q @ q)))


@pytest.mark.usefixtures("listing")
@pytest.mark.parametrize(("width", "least"), [(16, 0.9), (32, 0.97), (64, 0.99), (WIDTH, 0.99)])
def test_a_short_list_finds_nearly_all(built: Path, x_ND: np.ndarray, width: int, least: float) -> None:
    index = open_index(str(built), CFG)
    queries = vectors(30, seed=2)
    found = [len({*ids(index, q, width, listed=150)} & {*NAMES[brute(x_ND, q, width)[:10]]}) / 10 for q in queries]
    assert np.mean(found) >= least


@pytest.mark.usefixtures("listing")
def test_several_widths_at_once_are_each_of_them_alone(built: Path) -> None:
    index = open_index(str(built), CFG)
    query = vectors(1, seed=3)[0]
    together = index.search(query, [16, 32, 64, 80, WIDTH], 7)
    assert all(together[width] == index.search(query, [width], 7)[width] for width in together)


@pytest.mark.usefixtures("listing")
def test_halves_and_singles_find_the_same(built: Path, table: str, tmp_path: Path, x_ND: np.ndarray) -> None:
    writing.build(table, str(tmp_path / "singles"), CFG, dtype="float32")
    singles = open_index(str(tmp_path / "singles"), CFG)
    for query in vectors(5, seed=4):
        assert ids(singles, query, exact=True) == list(NAMES[brute(x_ND, query, WIDTH)[:10]])
        assert len({*ids(singles, query)} & {*ids(open_index(str(built), CFG), query)}) >= 9


FILTERS = {
    "patient": (Filter(not_patients=("tp3", "tp5")), lambda f, i: f["patient_id"][i] not in ("tp3", "tp5")),
    "slide": (Filter(not_slides=("t7",)), lambda f, i: f["slide_id"][i] != "t7"),
    "site": (Filter(sites=("north",)), lambda f, i: f["site"][i] == "north"),
    "labels": (Filter(labels=("l1", "l2")), lambda f, i: f["label"][i] in ("l1", "l2")),
    "all": (
        Filter(("tp3",), ("t7",), ("south",), ("l0",)),
        lambda f, i: f["patient_id"][i] != "tp3" and f["slide_id"][i] != "t7" and f["site"][i] == "south"
        and f["label"][i] == "l0",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("listing")
@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_leaves_the_best_of_the_others_and_as_many(built: Path, x_ND: np.ndarray, name: str) -> None:
    only, allows = FILTERS[name]
    known = facts(NUM)
    allowed = np.array([allows(known, i) for i in range(NUM)])
    index = open_index(str(built), CFG)
    for query in (x_ND[95], x_ND[160], vectors(1, seed=5)[0]):  # the first two are of tp3 and tp5
        found = ids(index, query, only=only, listed=200)
        assert len(found) == 10 and all(allowed[tile_id == NAMES].all() for tile_id in found)
        assert len({*found} & {*NAMES[brute(x_ND, query, WIDTH, allowed)[:10]]}) >= 9


@pytest.mark.usefixtures("listing")
def test_the_nearest_may_all_be_of_one_patient(tmp_path: Path) -> None:
    """Two thousand copies of the query are of the patient that is left out; ten others are found all the same."""
    x = vectors(2600, seed=6)
    x[:2000] = x[0] + 1e-4 * x[:2000]
    known = facts(2600)
    known["patient_id"] = ["same" if i < 2000 else known["patient_id"][i] for i in range(2600)]
    writing.build(write_table(tmp_path / "t.parquet", x, known), str(tmp_path / "i"), CFG)
    found = open_index(str(tmp_path / "i"), CFG).search(x[0], [WIDTH], 10, Filter(not_patients=("same",)), listed=50)
    assert len(found[WIDTH]) == 10 and all(hit.patient_id != "same" for hit in found[WIDTH])


# ---------------------------------------------------------------- changing it


def test_added_tiles_are_found_and_those_that_are_there_are_not_added_again(
    own: Path, table: str, tmp_path: Path
) -> None:
    more = vectors(50, seed=7)
    name = write_table(tmp_path / "more.parquet", more, facts(50, "new"))
    before = open_index(str(own), CFG)
    made, added, met = writing.add(name, str(own), CFG)
    assert (made.rows, added, met) == (NUM + 50, 50, 0)
    assert ids(open_index(str(own), CFG), more[13], k=1) == ["new1/13"]
    assert ids(before, more[13], k=1) != ["new1/13"] and len(before) == NUM  # what was opened stays as it was
    assert writing.add(name, str(own), CFG)[1:] == (0, 50) == (0, writing.add(table, str(own), CFG)[2] - NUM + 50)


@pytest.mark.usefixtures("listing")
def test_deleted_tiles_are_gone_and_can_come_back(own: Path, table: str, x_ND: np.ndarray) -> None:
    made, gone = writing.delete(str(own), CFG, slides=("t7",), patients=("tp3", "tp43"))
    assert (made.rows, gone) == (NUM - 70, 70)
    assert writing.delete(str(own), CFG, patients=("tp44",))[0].rows == NUM - 100
    index = open_index(str(own), CFG)
    for row in (75, 95, 1300, 1325):
        assert NAMES[row] not in ids(index, x_ND[row], k=50) and index.find(str(NAMES[row])) is None
    with pytest.raises(SearchError, match="no tile of patient tp3"):
        writing.delete(str(own), CFG, patients=("tp3",))
    assert writing.add(table, str(own), CFG)[1:] == (100, NUM - 100)
    assert ids(open_index(str(own), CFG), x_ND[95], k=1) == [NAMES[95]]


def test_compacting_removes_what_was_deleted_and_what_nobody_names(own: Path, x_ND: np.ndarray) -> None:
    writing.delete(str(own), CFG, patients=("tp3",))
    before = open_index(str(own), CFG)
    (own / "segment-of-a-killed-writer").mkdir()
    (own / "segment-of-a-killed-writer/vectors.bin").write_bytes(b"x" * 1000)
    made, freed = writing.compact(str(own), CFG)
    assert made.rows == NUM - 30 and len(made.segments) == 1 and made.deleted is None and freed > 1000
    assert {p.relative_to(own).as_posix() for p in own.rglob("*") if p.is_file()} == made.named() | {
        "index.json", *(f"lease/{p.name}" for p in (own / "lease").iterdir())
    }  # fmt: skip
    assert all(b"t9/9" not in p.read_bytes() for p in own.rglob("facts.arrow"))
    after = open_index(str(own), CFG)
    assert all({"tp3"}.isdisjoint(one.columns["patient_id"].values) for one in after.segments)
    for query in (x_ND[95], *vectors(3, seed=8)):
        assert ids(after, query) == ids(before, query)  # which still reads the files that are gone
    assert writing.compact(str(own), CFG) == (made, 0)


def test_of_a_folder_with_a_manifest_what_it_names_is_the_table(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    places = {"x": pa.array(range(0, 2000, 100), pa.int32()), "y": pa.array([7] * 20, pa.int32()),
              "side": pa.array([448.0] * 20, pa.float32())}  # fmt: skip
    x = vectors(20)
    write_table(tmp_path / "parts/a.parquet", x, facts(20), **places)
    few = {name: column[:3] for name, column in places.items()}
    write_table(tmp_path / "parts/of-a-killed-run.parquet", x[:3], facts(3, "no"), **few)
    pq.write_table(pa.table({"slide": ["t0"], "status": ["done"]}), tmp_path / "status.parquet")
    part = {"path": "parts/a.parquet", "rows": 20, "bytes": (tmp_path / "parts/a.parquet").stat().st_size}
    (tmp_path / "_manifest.json").write_text(json.dumps({"states": [{"part": part}, {"part": None}]}))
    assert writing.build(str(tmp_path), str(tmp_path / "index"), CFG).rows == 20
    where, rows = open_index(str(tmp_path / "index"), CFG).on_slide("t1")
    assert where.tolist() == [[float(100 * i), 7.0, 448.0] for i in range(10, 20)]
    np.testing.assert_allclose(rows, x[10:], atol=5e-4)


def test_a_second_writer_is_refused(own: Path, table: str) -> None:
    with Lease.acquire(str(own), CFG, "another"), pytest.raises(RunTaken, match="being written by another"):
        writing.add(table, str(own), CFG)


def test_a_writer_that_lost_its_lease_changes_nothing(own: Path, tmp_path: Path) -> None:
    name = write_table(tmp_path / "more.parquet", vectors(5), facts(5, "new"))
    before = (own / "index.json").read_bytes()
    with writing.writing(str(own), CFG) as writer:
        writer.lease.lost.set()
        with pytest.raises(SearchError, match="another writer took"):
            writer.commit(read_manifest(str(own), CFG))
    assert (own / "index.json").read_bytes() == before and name


KILLED = """
import sys
from pathlib import Path
from pathryoshka import config, storage
from pathryoshka.search import writing
writing.SEGMENT_ROWS = 300
upload, done = storage.upload_folder, []
def slow(local, uri, cfg):
    upload(local, uri, cfg)
    print("uploaded", flush=True)
    done.append(uri)
    if len(done) == 2:
        import time; time.sleep(600)
storage.upload_folder = slow
writing.add(sys.argv[1], sys.argv[2], config.Storage(lease_ttl_s=1))
"""


@pytest.mark.slow
def test_a_writer_killed_in_the_middle_of_an_add_leaves_the_old_state(own: Path, tmp_path: Path) -> None:
    more = vectors(1000, seed=9)
    name = write_table(tmp_path / "more.parquet", more, facts(1000, "new"))
    before = read_manifest(str(own), CFG)
    files = len([*own.glob("segment-*")])
    process = subprocess.Popen([sys.executable, "-c", KILLED, name, str(own)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["uploaded\n"] * 2
    process.kill()  # SIGKILL, after two segments of four
    process.wait()
    assert len([*own.glob("segment-*")]) == files + 2  # it had begun
    assert read_manifest(str(own), CFG) == before and len(open_index(str(own), CFG)) == NUM
    assert not writing.verify(str(own), CFG)
    began = time.monotonic()
    assert writing.add(name, str(own), CFG)[1:] == (1000, 0)  # its lease ends by itself
    assert time.monotonic() - began < 60
    assert ids(open_index(str(own), CFG), more[700], k=1) == ["new70/700"]
    made, freed = writing.compact(str(own), CFG)
    assert made.rows == NUM + 1000 and freed > 300 * WIDTH * 2 * 2


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["facts.arrow", "codes.bin", "sums.bin"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_file_is_refused_by_name(own: Path, name: str, how: str) -> None:
    file = next(own.glob("segment-*")) / name
    damage(file, how)
    with pytest.raises(SearchError, match=f"corrupt: {file.parent.name}/{name}"):
        open_index(str(own), CFG)
    assert any(name in line for line in writing.verify(str(own), CFG))


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "remove":
        file.unlink()
        return
    data[len(data) // 2] ^= 4
    file.write_bytes(data if how == "flip" else data[:-1])


@pytest.mark.usefixtures("listing")
@pytest.mark.parametrize("exact", [True, False])
def test_a_damaged_vector_is_refused_when_it_is_looked_at(own: Path, x_ND: np.ndarray, exact: bool) -> None:
    first = read_manifest(str(own), CFG).segments[0].name
    file = own / first / "vectors.bin"
    data = bytearray(file.read_bytes())
    data[500 * WIDTH * 2 + 7] ^= 1
    file.write_bytes(data)
    index = open_index(str(own), CFG)
    with pytest.raises(SearchError, match="corrupt: .*vectors.bin"):
        index.search(x_ND[500], k=1, exact=exact)
    assert writing.verify(str(own), CFG) == [f"{first}/vectors.bin is not what was written"]


def test_a_damaged_list_of_deleted_rows_is_refused(own: Path) -> None:
    writing.delete(str(own), CFG, patients=("tp3",))
    damage(next(own.glob("deleted-*")), "flip")
    with pytest.raises(SearchError, match="deleted tiles would be found again"):
        open_index(str(own), CFG)


def test_a_manifest_that_was_changed_is_refused(own: Path, tmp_path: Path) -> None:
    file = own / "index.json"
    file.write_text(file.read_text().replace(MODEL, "b2" * 32))
    with pytest.raises(SearchError, match="index.json is damaged: it is not what was written"):
        open_index(str(own), CFG)
    file.write_text(json.dumps({"index": {"format": 9}, "sha256": ""}))
    with pytest.raises(SearchError, match="has format 9 and this program reads 1"):
        open_index(str(own), CFG)
    file.write_bytes(b"{")
    with pytest.raises(SearchError, match="is damaged or is no manifest"):
        open_index(str(own), CFG)
    with pytest.raises(SearchError, match="no index at .*index build"):
        open_index(str(tmp_path / "nowhere"), CFG)


def test_foreign_vectors_are_refused_and_what_differs_is_named(own: Path, tmp_path: Path) -> None:
    other = write_table(tmp_path / "o.parquet", vectors(5), facts(5, "o"), model="b2" * 32)
    with pytest.raises(SearchError, match="of model b2b2.* of model a1a1"):
        writing.add(other, str(own), CFG)
    wide = write_table(tmp_path / "w.parquet", vectors(5, 128), facts(5, "w"))
    with pytest.raises(SearchError, match="has 128 numbers a vector and the index .* has 96"):
        writing.add(wide, str(own), CFG)
    nameless = write_table(tmp_path / "n.parquet", vectors(5), facts(5, "n"), model=None)
    with pytest.raises(SearchError, match="does not say which model made it"):
        writing.add(nameless, str(own), CFG)
    with pytest.raises(SearchError, match="the query has 128 numbers .* has 96"):
        open_index(str(own), CFG).search(vectors(1, 128)[0])
    with pytest.raises(SearchError, match="has 96 numbers a vector, not 97"):
        open_index(str(own), CFG).search(vectors(1)[0], [97])
    with pytest.raises(SearchError, match="there is an index at"):
        writing.build(wide, str(own), CFG)


def bad_tables(folder: Path) -> dict[str, tuple[str, str]]:
    """What is wrong -> (table, what is said)."""
    x = vectors(4)
    nan = np.where(np.arange(4)[:, None] == 2, np.nan, x).astype(np.float32)
    no_patient = {k: v for k, v in facts(4).items() if k != "patient_id"}
    both = {"uni.summary": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH)}
    (folder / "text.parquet").write_text("no table")
    return {
        "model": (write_table(folder / "1.parquet", x, facts(4), model=None), "which model made it; .*--student"),
        "nan": (write_table(folder / "2.parquet", nan, facts(4)), "tile t0/2 .* zero or not finite"),
        "patient": (write_table(folder / "3.parquet", x, no_patient), "patient_id of its tiles; .*--tiles"),
        "two": (write_table(folder / "4.parquet", x, facts(4), **both), "uni.summary, .*--encoder"),
        "none": (write_table(folder / "5.parquet", x, facts(4), column="other"), "no column of vectors"),
        "text": (str(folder / "text.parquet"), "is no Parquet table"),
        "nothing": (str(folder / "no.parquet"), "no table of vectors at"),
    }


def test_tables_that_cannot_be_indexed_are_refused_in_one_sentence(tmp_path: Path) -> None:
    for table, words in bad_tables(tmp_path).values():
        with pytest.raises(SearchError, match=words):
            writing.build(table, str(tmp_path / "index"), CFG)
    assert not (tmp_path / "index" / "index.json").exists()


# ---------------------------------------------------------------- from a picture to a picture, by the verbs


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student, real tiles as a data set, and the table of their vectors, which knows nothing of patients."""
    folder = tmp_path_factory.mktemp("lab")
    export(folder / "export")
    export(folder / "other", name="vit_avg")
    files = sorted((DATA / "crc7k").glob("*.jpg"))
    tiles = pa.table({
        "tile_id": [file.stem for file in files], "slide_id": [f"s{i % 8}" for i in range(len(files))],
        "patient_id": [f"p{i % 8}" for i in range(len(files))],
        "site": ["north" if i % 2 else "south" for i in range(len(files))],
        "image": pa.array([file.read_bytes() for file in files], pa.binary()),
        "x": pa.nulls(len(files)), "y": pa.nulls(len(files)), "mpp": pa.nulls(len(files)),
        "width": [224] * len(files), "height": [224] * len(files), "tissue": [1.0] * len(files),
        "label": [file.name.split("_")[0] for file in files], "split": pa.nulls(len(files)),
    })  # fmt: skip
    shard = write_shard(str(folder / "tiles"), "a.parquet", tiles, CFG)
    write_manifest(str(folder / "tiles"), [shard], {}, CFG)
    model = load(folder / "export")
    x = np.concatenate([model.embed(np.array(Image.open(file).convert("RGB"))[None]) for file in files])
    write_table(folder / "vectors.parquet", x, {"tile_id": tiles["tile_id"].to_pylist()}, model=model.model_id)
    return {path.name: path for path in folder.iterdir()}


def test_the_verbs_end_to_end(lab: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, query = str(tmp_path / "index"), next((DATA / "crc7k").glob("TUM*.jpg"))
    assert run("index", "build", str(lab["vectors.parquet"]), "--to", index, "--tiles", str(lab["tiles"]),
               "--student", str(lab["export"])) == 0  # fmt: skip
    assert "70 tiles, 48 numbers each" in capsys.readouterr().out
    assert run("search", str(query), "--index", index, "--top", "5", "--picture", str(tmp_path / "found.png")) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["score", "tile", "slide", "patient", "site", "label"] and len(said) == 7
    first = said[1].split()
    assert float(first[0]) > 0.999 and first[1] == query.stem
    with Image.open(tmp_path / "found.png") as drawn:
        tile = np.array(Image.open(query).convert("RGB").resize((160, 160)), int)
        for left in (12, 12 + 172):  # the query, and itself as its nearest neighbour
            assert np.abs(np.array(drawn.crop((left, 12, left + 160, 172)), int) - tile).mean() < 12
    patient = first[3]
    assert run("search", str(query), "--index", index, "--width", "16", "--not-patient", patient, "--site", "north",
               "--label", "TUM", "--exact") == 0  # fmt: skip
    hits = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert hits and all(hit[3] != patient and hit[4:] == ["north", "TUM"] for hit in hits)
    assert run("index", "delete", index, "--patient", patient) == 0
    assert run("index", "compact", index) == 0 and run("index", "verify", index) == 0
    assert run("index", "add", str(lab["vectors.parquet"]), "--to", index, "--tiles", str(lab["tiles"])) == 0
    out = capsys.readouterr().out
    assert "every byte is what was written" in out and "70 in all" in out
    assert run("index", "list", index) == 0
    assert "70 tiles, 48 numbers each (float16)" in capsys.readouterr().out


def test_what_the_verbs_refuse(lab: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, query = str(tmp_path / "index"), str(next((DATA / "crc7k").glob("*.jpg")))
    assert run("index", "build", str(lab["vectors.parquet"]), "--to", index, "--tiles", str(lab["tiles"])) == 0
    (tmp_path / "no.png").write_text("no picture")
    for words, said in {
        (query, "--index", index): "does not say where its student is; name it with --student",
        (query, "--index", index, "--student", str(lab["other"])): "their vectors cannot be compared",
        (query, "--index", index, "--student", str(lab["export"]), "--width", "17"): "trained for widths 16, 32, 48",
        (query, "--index", index, "--student", str(tmp_path)): "is not a Pathryoshka export",
        (query, "--index", index, "--student", str(lab["export"]), "--not-patient", "p99"): "has patient p99; there",
        (str(tmp_path / "no.png"), "--index", index, "--student", str(lab["export"])): "no.png is no picture",
        (str(tmp_path / "gone.png"), "--index", index, "--student", str(lab["export"])): "gone.png cannot be read",
        (query, "--index", str(tmp_path / "nowhere")): "no index at",
        (query, "--index", str(lab["vectors.parquet"])): "is a file, not an index; make one of it",
    }.items():
        capsys.readouterr()
        assert run("search", *words) == 1
        error = capsys.readouterr().err
        assert said in error and len(error.strip().splitlines()) == 1, error
    assert run("index", "delete", index) == 2
    damage(next(Path(index).glob("segment-*/vectors.bin")), "flip")
    assert run("index", "verify", index) == 1
    assert run("index", "delete", index, "--slide", "nothing") == 1


def test_in_object_storage(
    s3_storage: tuple[config.Storage, str], table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    x_ND: np.ndarray,
) -> None:  # fmt: skip
    cfg, uri = s3_storage
    monkeypatch.setenv("PATHRYOSHKA_CACHE", str(tmp_path / "cache"))
    where = f"{uri}/index"
    storage.write_bytes(f"{uri}/table/part.parquet", Path(table).read_bytes(), cfg)
    writing.build(f"{uri}/table", where, cfg)
    writing.add(write_table(tmp_path / "m.parquet", vectors(20, seed=7), facts(20, "new")), where, cfg)
    writing.delete(where, cfg, patients=("tp3",))
    index = open_index(where, cfg)
    assert len(index) == NUM - 10 and ids(index, x_ND[10], k=1) == [NAMES[10]]
    assert ids(index, vectors(20, seed=7)[4], k=1) == ["new0/4"] and NAMES[95] not in ids(index, x_ND[95])
    copied = [p.stat().st_mtime_ns for p in sorted((tmp_path / "cache").rglob("*.bin"))]
    open_index(where, cfg)
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "cache").rglob("*.bin"))] == copied  # once is enough
    made, _ = writing.compact(where, cfg)
    assert not writing.verify(where, cfg) and len(open_index(where, cfg)) == made.rows == NUM - 10
    assert set(storage.list_files(where, cfg)) - made.named() == {
        "index.json", *(n for n in storage.list_files(where, cfg) if n.startswith("lease/"))
    }  # fmt: skip
    assert os.listdir(tmp_path / "cache" / "index")
