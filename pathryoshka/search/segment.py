"""A segment: rows on disk as plain arrays, read in place, and compared with what was written before they count.

    vectors.bin   [N, D] float16 or float32, rows of length 1
    codes.bin     uint8 [N, 64], what short-lists are made of
    sums.bin      uint32 [N], CRC-32 of each row of vectors.bin
    facts.arrow   Arrow IPC: tile, slide, patient, site, label, place on the slide, place in the tile data set
    images.arrow  Arrow IPC: small pictures, where the table had some

All but vectors and pictures are hashed when the segment is opened. Of the vectors, ten times as many bytes, only what
is looked at is checked, row by row; an exact search, which looks at all of them, hashes the file first.
"""

from __future__ import annotations

import hashlib
import mmap
import zlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from pathryoshka.search.filters import COLUMNS, Coded
from pathryoshka.search.manifest import SHORT, File, SearchError, Segment
from pathryoshka.search.scan import Coding, Scanner, head

VECTORS, CODES, SUMS, FACTS, IMAGES = "vectors.bin", "codes.bin", "sums.bin", "facts.arrow", "images.arrow"
CODED = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [pa.field("tile_id", pa.string(), nullable=False)]
    + [pa.field(name, CODED) for name in COLUMNS]
    + [pa.field(name, pa.float32()) for name in ("left", "top", "side")]  # pixels of level 0
    + [pa.field("set", CODED), pa.field("shard", CODED), pa.field("group", pa.int32()), pa.field("row", pa.int32())]
)
EXACT_ROWS = 2**14
"""Rows that an exact search turns into float32 at a time."""


# ---- writing


def write_segment(
    folder: Path, name: str, batches: Iterable[tuple[pa.Table, np.ndarray]], dtype: str
) -> Segment | None:
    """Writes the files of a segment into `folder`; None where there is no row.

    Args:
        batches: facts (columns of SCHEMA, and `image` where there are pictures) and fp32 [n, D] of length 1.
    """
    tables, heads, sums = [], [], []
    with open(folder / VECTORS, "wb") as out:
        for table, vectors in batches:
            rows = np.ascontiguousarray(vectors, dtype=np.dtype(dtype).newbyteorder("<"))
            out.write(rows.data)
            sums += row_sums(rows)
            heads.append(head(rows, min(SHORT, rows.shape[1])))
            tables.append(table)
    if not sums:
        return None
    whole = pa.concat_tables([plain(table) for table in tables], promote_options="default").combine_chunks()
    together = np.concatenate(heads)
    coding = Coding.of(together)
    coding.codes(together).tofile(folder / CODES)
    np.array(sums, "<u4").tofile(folder / SUMS)
    # coded here: no name outlives its last row, and every name stands once
    coded = [whole[f.name].combine_chunks().dictionary_encode() if f.type == CODED else whole[f.name] for f in SCHEMA]
    write_arrow(folder / FACTS, pa.table(coded, schema=SCHEMA))
    if "image" in whole.column_names and whole["image"].null_count < len(whole):
        write_arrow(folder / IMAGES, whole.select(["image"]))
    files = {path.name: File(bytes=path.stat().st_size, sha256=file_digest(path)) for path in sorted(folder.iterdir())}
    centre = tuple(round(float(x), 7) for x in coding.centre)
    return Segment(name=name, rows=len(sums), files=files, centre=centre, scale=coding.scale)


def plain(table: pa.Table) -> pa.Table:
    """Strings where there were codes."""
    return pa.table({n: table[n].cast(pa.string()) if table.schema.field(n).type == CODED else table[n]
                     for n in table.column_names})  # fmt: skip


def write_arrow(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch)


def row_sums(rows: np.ndarray) -> list[int]:
    flat = rows.view(np.uint8).ravel()
    step = rows.shape[1] * rows.itemsize
    return [zlib.crc32(flat.data[start : start + step]) for start in range(0, len(flat), step)]


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- reading


class Opened:
    """A segment that has been opened: its files are mapped, its codes are in memory."""

    def __init__(self, where: str, folder: Path, segment: Segment, width: int, dtype: str) -> None:
        """`where` names the index to whoever is told what is wrong.

        Raises:
            SearchError: a file is missing, has another length, or other bytes than were written.
        """
        self.where, self.folder, self.segment = where, folder, segment
        for name, file in segment.files.items():
            self.check(name, file, whole=name in (CODES, SUMS, FACTS))
        codes = np.fromfile(folder / CODES, np.uint8).reshape(segment.rows, -1)
        self.scanner = Scanner(codes, Coding(np.array(segment.centre, np.float32), segment.scale))
        self.sums = np.fromfile(folder / SUMS, "<u4")
        kind = np.dtype(dtype).newbyteorder("<")
        self.vectors = np.memmap(folder / VECTORS, kind, "r", shape=(segment.rows, width))
        self.facts = mapped(folder / FACTS)
        self.columns = {name: Coded.of(self.facts[name].combine_chunks()) for name in (*COLUMNS, "set", "shard")}
        self.images = mapped(folder / IMAGES)["image"] if IMAGES in segment.files else None
        self.advise()

    def __len__(self) -> int:
        return self.segment.rows

    def check(self, name: str, file: File, whole: bool) -> None:
        path = self.folder / name
        if not path.is_file():
            self.refuse(name, "is missing")
        if path.stat().st_size != file.bytes:
            self.refuse(name, f"has {path.stat().st_size} bytes, {file.bytes} were written")
        if whole and file_digest(path) != file.sha256:
            self.refuse(name, "has other bytes than were written")

    def refuse(self, name: str, what: str) -> None:
        raise SearchError(
            f"the index at {self.where} is corrupt: {self.segment.name}/{name} {what}; "
            "`pathryoshka index verify` looks at the rest, build it again from its tables"
        )

    def advise(self) -> None:
        """Rows are looked at here and there: reading ahead would read all of a large file."""
        raw = getattr(self.vectors, "_mmap", None)
        if raw is not None and hasattr(mmap, "MADV_RANDOM"):
            raw.madvise(mmap.MADV_RANDOM)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """fp32 [n, D] of these rows, each compared with its sum. Raises SearchError for a row that was damaged."""
        found = np.ascontiguousarray(self.vectors[rows])
        if len(found) and not np.array_equal(np.array(row_sums(found), np.uint32), self.sums[rows]):
            self.refuse(VECTORS, "has rows that are not what was written")
        return found.astype(np.float32)

    @cached_property
    def whole(self) -> bool:
        """True once vectors.bin as a whole was compared with what was written; SearchError where it differs."""
        self.check(VECTORS, self.segment.files[VECTORS], whole=True)
        return True

    def image(self, row: int) -> bytes | None:
        return self.images[row].as_py() if self.images is not None else None


def mapped(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
