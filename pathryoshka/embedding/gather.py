"""The driver's side of the stream: batches of a unit are put together and written, each unit exactly once.

Only the driver writes, so a lease on the table is enough to keep two runs apart. What it holds are the vectors of units
that are under way, some hundred bytes a tile.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pathryoshka import config, storage
from pathryoshka.embedding.recipe import Recipe
from pathryoshka.embedding.rows import FACTS, part_bytes
from pathryoshka.embedding.sources import Unit
from pathryoshka.embedding.state import PARTS, Part, State, write_state

WRITERS = 4
WAITING = 8
"""Units being written or waiting for it before the stream is held up."""


@dataclass
class Open:
    """A unit under way.

    Attributes:
        batches: (piece, number) -> facts and fp32 [n, width]. totals: piece -> number of its batches, once it ended.
        reason: why it failed.
    """

    batches: dict[tuple[int, int], tuple[pa.Table, np.ndarray]] = field(default_factory=dict)
    totals: dict[int, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    reason: str | None = None


class Gatherer:
    """A context manager; leaving it finishes what is being written.

    Attributes:
        states: of the units that are finished, by key. num_tiles: that have arrived.
    """

    def __init__(self, to: str, units: Sequence[Unit], recipe: Recipe, engine: str, cfg: config.Storage) -> None:
        self.to, self.units, self.recipe, self.engine, self.cfg = to, units, recipe, engine, cfg
        self.open: dict[int, Open] = {}
        self.writing: deque[Future[State]] = deque()
        self.states: dict[str, State] = {}
        self.num_tiles = 0
        self.pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="write-part")

    def __enter__(self) -> Gatherer:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=error[0] is not None)

    def take(self, about: dict[str, Any], facts: pa.Table, vectors: np.ndarray) -> None:
        """One row of the stream.

        Raises:
            StorageError: a unit cannot be written.
        """
        index, piece = about["unit"], about["piece"]
        one = self.open.setdefault(index, Open())
        if "number" in about:
            at = (piece, about["number"])
            assert at not in one.batches, f"batch {at} of {self.units[index].name} came twice"
            one.batches[at] = (facts, vectors[: len(facts)])
            one.unreadable |= about["failures"]
            self.num_tiles += len(facts)
        if "total" in about:
            one.totals[piece] = about["total"]
            one.reason = one.reason or about["reason"]
        if len(one.totals) == len(self.units[index].pieces) and len(one.batches) == sum(one.totals.values()):
            del self.open[index]
            self.writing.append(self.pool.submit(self.write, self.units[index], one))
        self.collect(WAITING)

    def collect(self, down_to: int = 0) -> None:
        """Waits until at most so many units are being written."""
        while len(self.writing) > down_to or (self.writing and self.writing[0].done()):
            state = self.writing.popleft().result()
            self.states[state.key] = state

    def write(self, unit: Unit, one: Open) -> State:
        """Part first, then the state that makes it count."""
        part, reason = None, one.reason
        batches = [one.batches[at] for at in sorted(one.batches)]
        facts = pa.concat_tables([FACTS.empty_table(), *(facts for facts, _ in batches)])
        if reason is None and len(facts):
            data = part_bytes(self.recipe, facts.combine_chunks(), np.concatenate([v for _, v in batches if len(v)]))
            digest = hashlib.sha256(data).hexdigest()
            # named by content as well: a reader of the last manifest never finds other bytes under an old name
            part = Part(
                path=f"{PARTS}/{unit.key}-{digest[:8]}.parquet", rows=len(facts), bytes=len(data), sha256=digest
            )
            storage.write_bytes(storage.join(self.to, part.path), data, self.cfg)
        if reason is None and part is None:
            reason = "none of its tiles can be decoded" if one.unreadable else "it has no tissue to embed"
        status = "failed" if one.reason or (one.unreadable and not part) else "done" if part else "skipped"
        state = State(
            key=unit.key,
            name=unit.name,
            source=unit.source,
            asked=unit.asked,
            slide_ids=unit.slide_ids,
            status=status,
            reason=reason,
            part=part,
            unreadable=one.unreadable,
            engine=self.engine,
        )
        write_state(self.to, state, self.cfg)
        return state
