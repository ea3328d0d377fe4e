"""What became of each unit, one small file each, written once its part is; and the manifest, written last.

A table is what its manifest says. A run that was killed left parts and states: units whose state says that they are
done are not done again, a part without a state is made anew, with the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pathryoshka import config, storage
from pathryoshka.embedding.recipe import EmbedError, EmbedRefused, Recipe
from pathryoshka.embedding.sources import Unit
from pathryoshka.tiles.slides import READERS
from pathryoshka.tiles.stats import Frozen

PARTS, STATES, MANIFEST, STATUS = "parts", "states", "_manifest.json", "status.parquet"
VERSION = 1


class Part(Frozen):
    """A file of the table, relative to it."""

    path: str
    rows: int
    bytes: int
    sha256: str


class State(Frozen):
    """What became of a slide or a shard."""

    key: str
    name: str
    source: str
    asked: str
    slide_ids: tuple[str, ...]
    status: Literal["done", "skipped", "failed"]
    """Skipped: there is not a single tile to embed."""
    reason: str | None = None
    part: Part | None = None
    unreadable: dict[str, str] = {}
    """Tile -> why it cannot be decoded; it has no row."""
    engine: str
    """In which its vectors were made, with its version; no part of what makes two of them different."""


class Manifest(Frozen):
    """A table of embeddings: its recipe and its parts.

    Attributes:
        rows: of all parts. states: of all units, by key; failed ones have no part.
    """

    version: int = VERSION
    recipe: Recipe
    rows: int
    states: tuple[State, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(state.part for state in self.states if state.part)


def write_state(to: str, state: State, cfg: config.Storage) -> None:
    storage.write_bytes(storage.join(to, STATES, f"{state.key}.json"), state.model_dump_json(indent=1).encode(), cfg)


def read_states(to: str, cfg: config.Storage) -> dict[str, State]:
    """State of each unit, by key; one that cannot be read is none."""
    base = storage.join(to, STATES)

    def read(name: str) -> State | None:
        try:
            return State.model_validate_json(storage.read_bytes(storage.join(base, name), cfg))
        except (ValidationError, storage.NotFound):
            return None

    with ThreadPoolExecutor(READERS) as pool:
        return {state.key: state for state in pool.map(read, storage.list_files(base, cfg)) if state}


def is_done(unit: Unit, states: dict[str, State]) -> bool:
    state = states.get(unit.key)
    return state is not None and state.status != "failed" and state.asked == unit.asked


def finish(to: str, recipe: Recipe, states: Iterable[State], cfg: config.Storage) -> Manifest:
    """Writes status.parquet and the manifest, and deletes parts that nobody names any more.

    Raises:
        EmbedError: there is not a single row.
    """
    ordered = tuple(sorted(states, key=lambda state: state.key))
    rows = sum(state.part.rows for state in ordered if state.part)
    write_status(to, ordered, cfg)
    if not rows:
        some = "; ".join(f"{state.name}: {state.reason}" for state in ordered[:3])
        raise EmbedError(f"not a single tile could be embedded ({some}); {STATUS} says it of each")
    manifest = Manifest(recipe=recipe, rows=rows, states=ordered)
    storage.write_json(storage.join(to, MANIFEST), manifest.model_dump(mode="json"), cfg)
    named = {part.path for part in manifest.parts}
    for path in storage.list_files(storage.join(to, PARTS), cfg):
        if f"{PARTS}/{path}" not in named:
            storage.delete(storage.join(to, PARTS, path), cfg)
    return manifest


def forget(to: str, units: Sequence[Unit], states: dict[str, State], cfg: config.Storage) -> dict[str, State]:
    """The states without those of shards that a data set among the sources no longer has; their files go, too."""
    now, sources = {unit.key for unit in units}, {unit.source for unit in units} - {""}
    gone = [key for key, state in states.items() if state.source in sources and key not in now]
    for key in gone:
        storage.delete(storage.join(to, STATES, f"{key}.json"), cfg)
    return {key: state for key, state in states.items() if key not in gone}


def write_status(to: str, states: Sequence[State], cfg: config.Storage) -> None:
    """A row a unit: what users look at when something failed."""
    rows: list[dict[str, Any]] = [
        {
            "name": state.name,
            "status": state.status,
            "reason": state.reason,
            "num_tiles": state.part.rows if state.part else 0,
            "num_unreadable": len(state.unreadable),
            "part": state.part.path if state.part else None,
        }
        for state in states
    ]
    schema = pa.schema(
        [(name, pa.string()) for name in ("name", "status", "reason")]
        + [(name, pa.int64()) for name in ("num_tiles", "num_unreadable")]
        + [("part", pa.string())]
    )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="ZSTD")
    storage.write_bytes(storage.join(to, STATUS), sink.getvalue(), cfg)


def read_manifest(to: str, cfg: config.Storage) -> Manifest:
    """The table at `to`.

    Raises:
        EmbedRefused: there is none, or one that cannot be read.
    """
    where = storage.join(to, MANIFEST)
    try:
        return Manifest.model_validate(storage.read_json(where, cfg))
    except storage.NotFound:
        raise EmbedRefused(f"there are no embeddings at {to}; make some with `pathryoshka embed`") from None
    except ValidationError:
        raise EmbedRefused(f"{where} is no manifest of embeddings of this version; embed the tiles again") from None
