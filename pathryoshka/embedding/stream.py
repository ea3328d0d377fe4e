"""The Ray Data graph: pieces -> students that read for themselves -> rows for the driver, who writes; where students
have GPUs, readers (CPU tasks) stand before them.

A row is a batch of one unit and a block is a row, so nothing is cut or joined on the way. Order does not matter: each
row says which batch of which piece it is. What is in flight is bounded by `bytes_in_flight`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray import cloudpickle
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions, ExecutionResources, TaskPoolStrategy

from pathryoshka.embedding.engine import Engine
from pathryoshka.embedding.reading import OWN_FAILURES, Found, Reading, shard_tiles, slide_tiles
from pathryoshka.embedding.rows import Tiles, facts_table, to_bytes
from pathryoshka.embedding.sources import Shard, Unit
from pathryoshka.patience import Patience
from pathryoshka.session import on_cluster

MAX_BLOCKS = 10_000
"""Ray keeps a little state for each input block; more pieces go several to a block."""
LEAST_LIMIT = 16 * 2**20
TILES_A_START = 1000
"""What the start of a student on a CPU costs, in tiles: a session may announce many more CPUs than there are cores."""


@dataclass(frozen=True)
class Pools:
    """Who works.

    Attributes:
        readers: beside the students of GPUs; a student on a CPU reads for itself. device: cpu or cuda.
    """

    readers: int
    students: int
    device: str


def logical_cpus(cores: int) -> int:
    """CPUs that a session of one's own announces: readers or students, and some for whatever Ray adds."""
    return 2 * cores + 1


def pools(device: str, replicas: int | None, num_tiles: int) -> Pools:
    """As many as the session has room for.

    Args:
        device: auto, cpu or cuda. replicas: of the student; none = one a GPU, or on CPUs one a core, but no more than
            its start is worth. num_tiles: that are to be embedded.
    """
    have = ray.cluster_resources()
    alone = not on_cluster()
    cores = (os.cpu_count() or 1) if alone else max(1, int(have.get("CPU", 1)))
    gpus = int(have.get("GPU", 0))
    if device == "cuda" or (device == "auto" and gpus):
        return Pools(cores, replicas or max(1, gpus), "cuda")
    return Pools(0, replicas or max(1, min(cores, -(-num_tiles // TILES_A_START))), "cpu")


def bytes_in_flight(how: Reading, pools: Pools) -> int:
    """Bytes of batches that Ray Data may hold: each reader's finished one, the one being made and two in Ray's
    generator; and of each student the one at hand and the next."""
    return max(LEAST_LIMIT, how.batch * how.size**2 * 3 * (4 * pools.readers + 2 * pools.students))


def make_dataset(units: Sequence[Unit], how: Reading, pools: Pools, engine: Engine) -> Dataset:
    """Rows as `Embed` gives them, of all pieces of the units; the engine's student is made once in each actor."""
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = -1  # one slide may take long to open
    context.target_max_block_size = 4096  # any row is larger, so every row is a block of its own
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.custom_execution_callback_classes = [Patience]
    limit = ExecutionResources.for_limits(object_store_memory=bytes_in_flight(how, pools))
    context.execution_options = ExecutionOptions(preserve_order=False, resource_limits=limit)
    items = [
        {"item": cloudpickle.dumps((i, number, groups, unit.what))}
        for i, unit in enumerate(units)
        for number, groups in enumerate(unit.pieces)
    ]
    pieces = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS))
    if pools.device == "cpu":
        return pieces.map_batches(
            ReadAndEmbed,
            fn_constructor_args=(how, engine),
            batch_size=1,
            num_cpus=1,
            compute=ActorPoolStrategy(size=pools.students, max_tasks_in_flight_per_actor=2),
        )
    rows = pieces.map_batches(
        read_pieces,  # type: ignore[arg-type]
        batch_size=1,
        fn_kwargs={"how": how},
        compute=TaskPoolStrategy(size=pools.readers),
        num_cpus=1,
    )
    return rows.map_batches(
        Embed,
        fn_constructor_args=(engine,),
        batch_size=1,
        num_cpus=0,  # another number than a reader's, or Ray would read and embed in one actor
        num_gpus=1,
        # two calls at once: one copies while the other computes
        compute=ActorPoolStrategy(
            size=pools.students, max_concurrent_calls_per_actor=2, max_tasks_in_flight_per_actor=2
        ),
    )


def read_pieces(batch: dict[str, np.ndarray], how: Reading) -> Iterator[dict[str, np.ndarray]]:
    """Rows of pieces: batches of views, numbered, and at the end of each piece a row that says how many there were."""
    for item in batch["item"]:
        index, piece, groups, what = cloudpickle.loads(item)
        yield from read_piece(index, piece, groups, what, how)


def read_piece(index: int, piece: int, groups: tuple[int, ...], what: Any, how: Reading) -> Iterator[dict[str, Any]]:
    number, reason, started = 0, None, time.perf_counter()
    made = shard_tiles(what, groups, how) if isinstance(what, Shard) else slide_tiles(what, how)
    nothing = Tiles(facts_table([]), np.zeros((1, how.size, how.size, 3), np.uint8), {})
    try:
        for one in made:
            about: dict[str, Any] = {"unit": index, "piece": piece, "seconds": time.perf_counter() - started}
            if isinstance(one, Found):
                yield as_row(nothing, about | {"found": one.num_tiles})
            else:
                yield as_row(one, about | {"number": number})
                number += 1
            started = time.perf_counter()
    except OWN_FAILURES as error:
        reason = str(error)
    seconds = time.perf_counter() - started
    yield as_row(nothing, {"unit": index, "piece": piece, "total": number, "reason": reason, "seconds": seconds})


def as_row(tiles: Tiles, about: dict[str, Any]) -> dict[str, np.ndarray]:
    about = about | {"failures": tiles.failures}
    views = tiles.views if len(tiles.views) else np.zeros((1, *tiles.views.shape[1:]), np.uint8)
    return {"about": as_column(json.dumps(about).encode()), "facts": to_bytes(tiles.facts)[None], "views": views[None]}


def as_column(data: bytes) -> np.ndarray:
    """Bytes as the only row of a column: uint8 [1, n], which keeps trailing zeros as numpy's strings do not."""
    return np.frombuffer(data, np.uint8)[None]


class Embed:
    """The student, in an actor: a row with views becomes a row with vectors."""

    def __init__(self, engine: Engine) -> None:
        self.student = engine.student(**engine.arguments)

    def __call__(self, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        about = json.loads(row["about"][0].tobytes())
        vectors = np.zeros((1, 1), np.float32)  # of a row without tiles, which says something of its piece
        if "number" in about:
            vectors = self.student.embed(row["views"][0])
        about["student_s"] = time.perf_counter() - started
        return {"about": as_column(json.dumps(about).encode()), "facts": row["facts"], "vectors": vectors[None]}


class ReadAndEmbed:
    """A reader and a student in one actor, for CPUs: a core is busy with whatever is to be done, views stay where they
    are, and there is one process to start for a core instead of two, 4 s of CPU each on two busy cores. What is read
    next is fetched meanwhile."""

    def __init__(self, how: Reading, engine: Engine) -> None:
        self.how, self.embed = how, Embed(engine)

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        yield from map(self.embed, read_pieces(batch, self.how))
