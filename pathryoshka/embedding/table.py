"""Reading a finished table of embeddings: part by part, each compared with what was written."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pathryoshka import config, storage
from pathryoshka.embedding.recipe import EmbedRefused
from pathryoshka.embedding.rows import part_schema
from pathryoshka.embedding.state import Manifest, Part, State, read_manifest


def read_part(to: str, part: Part, cfg: config.Storage) -> pa.Table:
    """The rows of one part.

    Raises:
        EmbedRefused: it is missing, or its bytes are not those that were written.
    """
    where = storage.join(to, part.path)
    try:
        data = storage.read_bytes(where, cfg)
    except storage.NotFound:
        data = b""
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise EmbedRefused(
            f"{where} is {'damaged' if data else 'missing'}; delete its state in {to}/states and run the same "
            "`pathryoshka embed` again"
        )
    return pq.read_table(io.BytesIO(data))


def read_table(to: str, cfg: config.Storage) -> pa.Table:
    """The whole table at `to`, in memory."""
    manifest = read_manifest(to, cfg)
    tables = [read_part(to, part, cfg) for part in manifest.parts]
    return pa.concat_tables([part_schema(manifest.recipe).empty_table(), *tables])


def by_slide(manifest: Manifest) -> dict[str, list[Part]]:
    """Slide -> the parts that hold its rows."""
    found: dict[str, list[Part]] = {}
    for state in manifest.states:
        if state.part:
            for slide_id in state.slide_ids:
                found.setdefault(slide_id, []).append(state.part)
    return found


def iter_slides(to: str, manifest: Manifest, cfg: config.Storage) -> Iterator[tuple[str, pa.Table]]:
    """(slide, its rows), one slide in memory at a time.

    Raises:
        EmbedRefused: as `read_part`.
    """
    for slide_id, parts in by_slide(manifest).items():
        tables = [read_part(to, part, cfg) for part in parts]
        table = pa.concat_tables(tables)
        yield slide_id, table.filter(pa.compute.equal(table["slide_id"], slide_id))


def failed(states: Sequence[State]) -> list[State]:
    """The units of which not everything is there."""
    return [state for state in states if state.status == "failed" or state.unreadable]
