"""Changing an index: build, add, delete, compact, verify. One writer at a time, and all of a change or none of it.

New files are written under names that nothing refers to; then the manifest, in one atomic write, names them. A writer
that is killed leaves files that no manifest names, which `compact` sweeps away, and a lease that ends by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pathryoshka import config, storage
from pathryoshka.export.facts import local_folder, read_facts
from pathryoshka.search.index import Index, open_index
from pathryoshka.search.manifest import (
    DTYPES,
    NAME,
    Deleted,
    File,
    Manifest,
    SearchError,
    Segment,
    read_manifest,
    refuse_foreign,
    short_id,
    write_manifest,
)
from pathryoshka.search.segment import write_segment
from pathryoshka.search.source import Source, open_source
from pathryoshka.storage.lease import Lease

SEGMENT_ROWS = 2**18
"""Rows of a segment: what is held in memory of it while it is written is 400 bytes a row, and its pictures."""
Batch = tuple[pa.Table, np.ndarray]


def quiet(line: str) -> None:
    pass


@dataclass(frozen=True)
class Writer:
    """The right to change the index at `uri`."""

    uri: str
    cfg: config.Storage
    lease: Lease

    def commit(self, manifest: Manifest) -> Manifest:
        """The moment at which a change is made; never after the lease went to another writer."""
        if self.lease.lost.is_set():
            raise SearchError(f"another writer took {self.uri} over; nothing was changed, run the command again")
        write_manifest(self.uri, manifest, self.cfg)
        return manifest

    def write(self, batches: Iterator[Batch], dtype: str, say: Callable[[str], None]) -> list[Segment]:
        """The segments of these rows, in storage, named by no manifest yet."""
        segments: list[Segment] = []
        for part in in_segments(batches):
            name = f"segment-{uuid.uuid4().hex[:12]}"
            with tempfile.TemporaryDirectory(prefix="pathryoshka-index-") as folder:
                made = write_segment(Path(folder), name, part, dtype)
                if made is not None:
                    storage.upload_folder(Path(folder), storage.join(self.uri, name), self.cfg)
                    segments.append(made)
                    say(f"{self.uri}: {sum(one.rows for one in segments)} tiles written")
        return segments


@contextlib.contextmanager
def writing(uri: str, cfg: config.Storage) -> Iterator[Writer]:
    """The index at `uri`, for one writer. Raises RunTaken where another one is at it."""
    with Lease.acquire(uri, cfg, f"{socket.gethostname()}:{os.getpid()}") as lease:
        yield Writer(uri, cfg, lease)


def build(
    table: str,
    to: str,
    cfg: config.Storage,
    *,
    tiles: tuple[str, ...] = (),
    encoder: str | None = None,
    student: str | None = None,
    dtype: str = DTYPES[0],
    say: Callable[[str], None] = quiet,
) -> Manifest:
    """Makes an index of a table of vectors.

    Args:
        tiles: data sets that the tiles are from: for facts that the table lacks, and for pictures.
        student: export that made the vectors: it is recorded, and its model id counts where the table has none.

    Raises:
        SearchError: an index is there, no table, a table that another model made or that says of no model.
    """
    if dtype not in DTYPES:
        raise SearchError(f"numbers are kept as {' or '.join(DTYPES)}, not {dtype}")
    source = open_source(table, cfg, encoder, tiles)
    model_id = model_of(source, student, cfg)
    manifest = Manifest(
        model_id=model_id, width=source.width, dtype=dtype, student=student and storage.absolute(student),
        tiles=tuple(storage.absolute(uri) for uri in tiles),
    )  # fmt: skip
    with writing(to, cfg) as writer:
        if storage.exists(storage.join(to, NAME), cfg):
            raise SearchError(f"there is an index at {to}; `pathryoshka index add {table} --to {to}` adds to it")
        segments = writer.write(new_rows(source, Known()), dtype, say)
        if not segments:
            raise SearchError(f"{table} has no tile; embed some")
        return writer.commit(manifest.model_copy(update={"segments": tuple(segments), "generation": 1}))


def add(
    table: str,
    to: str,
    cfg: config.Storage,
    *,
    tiles: tuple[str, ...] = (),
    encoder: str | None = None,
    student: str | None = None,
    say: Callable[[str], None] = quiet,
) -> tuple[Manifest, int, int]:
    """Adds the tiles of a table that the index does not have: (its state, tiles added, tiles that were there).

    Raises:
        SearchError: as `build`, and vectors of another model or width.
    """
    read_manifest(to, cfg)  # before a lease is made where there is no index
    source = open_source(table, cfg, encoder, tiles)
    model_id = model_of(source, student, cfg)
    with writing(to, cfg) as writer:
        manifest = read_manifest(to, cfg)
        refuse_foreign(to, manifest, table, model_id, source.width)
        known = Known(open_index(to, cfg))
        segments = writer.write(new_rows(source, known), manifest.dtype, say)
        if not segments:
            return manifest, 0, known.met
        sets = dict.fromkeys((*manifest.tiles, *(storage.absolute(uri) for uri in tiles)))
        update = {"segments": (*manifest.segments, *segments), "tiles": tuple(sets)}
        return writer.commit(changed(manifest, update)), sum(one.rows for one in segments), known.met


def delete(
    uri: str, cfg: config.Storage, slides: tuple[str, ...] = (), patients: tuple[str, ...] = ()
) -> tuple[Manifest, int]:
    """Takes the tiles of slides and patients out: (its state, tiles that went). Their bytes go with `compact`.

    Raises:
        SearchError: none of the index's tiles is of one of them; nothing is deleted then.
    """
    read_manifest(uri, cfg)
    with writing(uri, cfg) as writer:
        index = open_index(uri, cfg)
        for column, names in (("slide_id", slides), ("patient_id", patients)):
            for name in names:
                if not any((one.columns[column].among((name,)) & live).any() for one, live in index.living()):
                    raise SearchError(f"the index at {uri} has no tile of {column.removesuffix('_id')} {name}")
        rows: dict[str, np.ndarray] = {}
        for one, live in index.living():
            goes = one.columns["slide_id"].among(slides) | one.columns["patient_id"].among(patients)
            rows[one.segment.name] = np.flatnonzero(~live | goes)
        gone = write_deleted(uri, rows, cfg)
        num = gone.rows - (index.manifest.deleted.rows if index.manifest.deleted else 0)
        return writer.commit(changed(index.manifest, {"deleted": gone})), num


def compact(uri: str, cfg: config.Storage, say: Callable[[str], None] = quiet) -> tuple[Manifest, int]:
    """Writes small and holed segments anew, as few full ones, and removes every file that is no longer named:
    (its state, bytes removed). After it, nothing of a deleted tile is left."""
    read_manifest(uri, cfg)
    with writing(uri, cfg) as writer:
        index = open_index(uri, cfg)
        manifest = index.manifest
        stay = [one for one, live in index.living() if len(one) == SEGMENT_ROWS and live.all()]
        go = [(one, live) for one, live in index.living() if one not in stay]
        if len(go) > 1 or any(not live.all() for _, live in go):
            segments = writer.write(kept_rows(go), manifest.dtype, say)
            update = {"segments": (*(one.segment for one in stay), *segments), "deleted": None}
            manifest = writer.commit(changed(manifest, update))
        unnamed = {
            name: size for name, size in storage.list_files(uri, cfg).items()
            if name not in manifest.named() and name.startswith(("segment-", "deleted-"))
        }  # fmt: skip
        for name in unnamed:
            storage.delete(storage.join(uri, name), cfg)
        return manifest, sum(unnamed.values())


def verify(uri: str, cfg: config.Storage) -> list[str]:
    """What is wrong with the files of the index, each as one sentence; reads every byte."""
    manifest = read_manifest(uri, cfg)
    files = {f"{s.name}/{name}": file for s in manifest.segments for name, file in s.files.items()}
    if manifest.deleted:
        files[manifest.deleted.name] = manifest.deleted.file
    wrong = []
    for name, file in files.items():
        try:
            data = storage.read_bytes(storage.join(uri, name), cfg)
        except storage.NotFound:
            wrong.append(f"{name} is missing")
            continue
        if len(data) != file.bytes or hashlib.sha256(data).hexdigest() != file.sha256:
            wrong.append(f"{name} is not what was written")
    return wrong


def model_of(source: Source, student: str | None, cfg: config.Storage) -> str:
    """The id of the model that made a table: what the table says, or that of an export that is named as its maker."""
    if student is not None:
        with local_folder(student, cfg) as folder:
            its_id = read_facts(folder, student)["model_id"]
        if source.model_id not in (None, its_id):
            raise SearchError(
                f"{source.uri} is of model {short_id(source.model_id)} and {student} is model {short_id(its_id)}; "
                "name the student that made the vectors"
            )
        return its_id
    if source.model_id is None:
        raise SearchError(f"{source.uri} does not say which model made it; name its export with --student")
    return source.model_id


# ---- rows


@dataclass
class Known:
    """Tiles that are there. `met`: how many of them were met again."""

    index: Index | None = None
    met: int = 0
    seen: set[str] = field(default_factory=set)

    def fresh(self, ids: pa.Array) -> np.ndarray:
        """bool [n]: neither in the index nor met before; notes them as met."""
        there = self.index.which_of(ids) if self.index is not None else set()
        out = np.zeros(len(ids), bool)
        for row, tile_id in enumerate(ids.to_pylist()):
            out[row] = tile_id not in there and tile_id not in self.seen
            self.seen.add(tile_id)
        self.met += int((~out).sum())
        return out


def new_rows(source: Source, known: Known) -> Iterator[Batch]:
    for facts, vectors in source.batches():
        fresh = known.fresh(facts["tile_id"].combine_chunks())
        if fresh.any():
            yield (facts, vectors) if fresh.all() else (facts.filter(pa.array(fresh)), vectors[fresh])


def kept_rows(segments: list) -> Iterator[Batch]:  # type: ignore[type-arg]
    for one, live in segments:
        rows = np.flatnonzero(live)
        for start in range(0, len(rows), 4096):
            some = rows[start : start + 4096]
            facts = one.facts.take(pa.array(some))
            if one.images is not None:
                facts = facts.append_column("image", pc.take(one.images, pa.array(some)))
            yield facts, one.rows(some)


def in_segments(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """The same rows, cut where a segment is full; each part must be read to its end before the next."""
    rest: list[Batch] = []

    def part() -> Iterator[Batch]:
        room = SEGMENT_ROWS
        while room and (found := rest.pop() if rest else next(batches, None)) is not None:
            facts, vectors = found
            if len(vectors) > room:
                rest.append((facts.slice(room), vectors[room:]))
            yield facts.slice(0, room), vectors[:room]
            room -= min(room, len(vectors))

    while True:
        first = rest.pop() if rest else next(batches, None)
        if first is None:
            return
        rest.append(first)
        yield part()


def write_deleted(uri: str, rows: dict[str, np.ndarray], cfg: config.Storage) -> Deleted:
    names = [name for name, some in rows.items() for _ in some]
    table = pa.table({"segment": pa.array(names, pa.string()),
                      "row": pa.array(np.concatenate(list(rows.values())), pa.int32())})  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="ZSTD")
    data = sink.getvalue()
    name = f"deleted-{uuid.uuid4().hex[:12]}.parquet"
    storage.write_bytes(storage.join(uri, name), data, cfg)
    return Deleted(name=name, rows=len(table), file=File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))


def changed(manifest: Manifest, update: dict) -> Manifest:  # type: ignore[type-arg]
    return manifest.model_copy(update={**update, "generation": manifest.generation + 1})
