"""What an index and its writers refuse, and what a writer leaves that was killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pathryoshka.search import open_index, writing
from pathryoshka.search.manifest import SearchError, read_manifest
from tests.indices import CFG, MODEL, NUM, WIDTH, damage, facts, ids, vectors, write_table

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


@pytest.mark.parametrize("name", ["facts.arrow", "codes.bin", "sums.bin"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_file_is_refused_by_name(own: Path, name: str, how: str) -> None:
    file = next(own.glob("segment-*")) / name
    damage(file, how)
    with pytest.raises(SearchError, match=f"corrupt: {file.parent.name}/{name}"):
        open_index(str(own), CFG)
    assert any(name in line for line in writing.verify(str(own), CFG))


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
