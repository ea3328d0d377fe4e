"""From a picture to a picture, by the verbs; an index in object storage."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pathryoshka import cli, config, storage
from pathryoshka.export.load import load
from pathryoshka.search import open_index, writing
from pathryoshka.tiles.shards import write_manifest, write_shard
from tests.exports import export
from tests.indices import CFG, NAMES, NUM, damage, facts, ids, vectors, write_table

DATA = Path(__file__).parents[1] / "data"


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
    s3_storage: tuple[config.Storage, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, uri = s3_storage
    x_ND = vectors(NUM)
    table = write_table(tmp_path / "t.parquet", x_ND, facts(NUM))
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
