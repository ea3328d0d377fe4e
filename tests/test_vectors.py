"""Embeddings that are kept: taken again for the same tile, pixels and encoder only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pathryoshka.evaluate.contenders import lazily
from pathryoshka.evaluate.embed import Encode, embed_tiles
from pathryoshka.evaluate.vectors import Kept, place, read_kept, write_kept
from tests.blotches import CFG, SIZE, good, mean_colour, rows, write


class Counted:
    """An encoder that counts the views it is shown."""

    def __init__(self, encode: Encode = good) -> None:
        self.encode, self.views = encode, 0

    def __call__(self, views: np.ndarray) -> np.ndarray:
        self.views += len(views)
        return self.encode(views)


def embed(uri: str, keep: Path, encoder: Encode, key: str = "k" * 40) -> np.ndarray:
    return embed_tiles({"a": encoder}, uri, CFG, size=SIZE, keys={"a": key}, keep=str(keep)).vectors["a"]


def test_a_second_evaluation_asks_nothing_and_says_the_same(tmp_path: Path) -> None:
    uri = write(tmp_path / "tiles", rows(40))
    first, second = Counted(), Counted()
    once, again = embed(uri, tmp_path / "keep", first), embed(uri, tmp_path / "keep", second)
    assert (first.views, second.views) == (80, 0)  # each tile also in other stains
    np.testing.assert_array_equal(once, again)
    assert again.dtype == np.float32


def test_an_encoder_whose_vectors_are_all_kept_is_not_loaded(tmp_path: Path) -> None:
    uri = write(tmp_path / "tiles", rows(12))
    embed(uri, tmp_path / "keep", good)

    def load() -> Encode:
        raise AssertionError("loaded")

    embed(uri, tmp_path / "keep", lazily(load))


def test_tiles_that_came_later_or_changed_are_embedded_and_no_others(tmp_path: Path) -> None:
    uri = write(tmp_path / "tiles", rows(40))
    embed(uri, tmp_path / "keep", good)
    changed = rows(46)
    changed[3]["image"] = changed[4]["image"]
    write(tmp_path / "tiles", changed)
    encoder = Counted()
    vectors = embed(uri, tmp_path / "keep", encoder)
    assert encoder.views == 14
    np.testing.assert_allclose(vectors[3], vectors[4])


def test_another_encoder_has_vectors_of_its_own(tmp_path: Path) -> None:
    uri = write(tmp_path / "tiles", rows(12))
    embed(uri, tmp_path / "keep", good, key="a" * 40)
    other = Counted(mean_colour)
    assert embed(uri, tmp_path / "keep", other, key="b" * 40).shape == (12, 3)
    nameless = Counted()
    embed(uri, tmp_path / "keep", nameless, key="")
    assert (other.views, nameless.views) == (24, 24)


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    uri = write(tmp_path / "tiles", rows(12))
    embed(uri, tmp_path / "keep", good)
    (file,) = (tmp_path / "keep").rglob("*.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(bytes(data))
    encoder = Counted()
    embed(uri, tmp_path / "keep", encoder)
    assert encoder.views == 24 and len(read_kept(str(file), CFG).rows) == 24


def test_they_lie_in_the_one_table_for_vectors(tmp_path: Path) -> None:
    kept = Kept({"b": (2, np.arange(3, dtype=np.float32)), "a": (1, np.ones(3, np.float32))}, {"gflop": 0.5})
    where = place(str(tmp_path), "k" * 64, "s3://bucket/tiles/")
    assert where == place(str(tmp_path), "k" * 64, "s3://bucket/tiles")
    write_kept(where, "uni", kept, CFG)
    table = pq.read_table(where)
    assert table.column_names == ["tile_id", "view_id", "partner_id", "pixels", "uni.summary"]
    assert table["tile_id"].to_pylist() == ["a", "b"] and table["view_id"].to_pylist() == [-1, -1]
    back = read_kept(where, CFG)
    assert back.facts == {"gflop": 0.5} and back.vector("a", 2) is None
    np.testing.assert_array_equal(back.vector("b", 2), [0, 1, 2])
