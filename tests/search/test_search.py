"""Search over embeddings, judged by brute force in float64; indices that grow and shrink."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathryoshka.search import open_index, writing
from pathryoshka.search.filters import Filter
from pathryoshka.search.manifest import SearchError, read_manifest
from pathryoshka.storage.lease import Lease, RunTaken
from tests.indices import CFG, NAMES, NUM, WIDTH, brute, facts, ids, vectors, write_table

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
