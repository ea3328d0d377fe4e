"""The Ray Data graph: what is left of a plan -> views -> teachers -> micro-batches for the train workers.

A row of this data set is one micro-batch and a Ray block is one row, so nothing is ever cut or joined again: blocks go
round-robin to the workers, every worker gets the same number, and with `preserve_order` the same ones. What is in
flight is bounded by the sizes of stages: `bytes_in_flight` says by how much, the job prints it, Ray Data is held to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions, ExecutionResources, TaskPoolStrategy

from pathryoshka import storage
from pathryoshka.distill.fanout import FanOut
from pathryoshka.features import reader
from pathryoshka.features.codec import Codec
from pathryoshka.features.store import Stored
from pathryoshka.patience import Patience
from pathryoshka.tiles.ledger import Ledger, Work, remaining, undone
from pathryoshka.tiles.segments import Batch, Source, padding_batch, segment_batches

PADDING = -1
MAX_BLOCKS = 10_000
"""Ray keeps a little state for each input block; a longer plan puts several segments in one."""
LEAST_LIMIT = 16 * 2**20
"""Bytes below which Ray Data's scheduling, not the bound, would set the pace."""


@dataclass(frozen=True)
class Stream:
    """Everything the graph needs; picklable.

    Attributes:
        failures_uri: where readers write which tiles failed, one file a segment.
        directory: name of the teacher pool's directory actor.
        dims: teacher -> (summary width, token width), in column order.
        stored: of these, the ones whose features a store keeps, in whole or in part.
        codecs: how tokens are made coarser, also those that are asked live, of teachers that were fitted so.
    """

    source: Source
    failures_uri: str
    directory: str
    dims: dict[str, tuple[int, int]]
    global_batch: int
    read_tasks: int
    max_in_flight: int
    deterministic: bool
    stored: dict[str, Stored] = field(default_factory=dict)
    codecs: dict[str, Codec] = field(default_factory=dict)

    @property
    def live(self) -> tuple[str, ...]:
        """Teachers that are asked."""
        return tuple(name for name in self.dims if name not in self.stored or not self.stored[name].complete)

    def work(self, ledger: Ledger) -> Work:
        return remaining(self.source.plan, ledger, micro_batch=self.source.micro_batch, global_batch=self.global_batch)


def make_dataset(stream: Stream, ledger: Ledger) -> Dataset:
    """The plan minus the ledger as a lazy data set; carries the ledger's digest in the column `origin`."""
    work = stream.work(ledger)
    items = [{"segment": k} for k in work.segments] + [{"segment": PADDING}] * work.padding
    return with_teachers(stream, from_items(stream, items, read_segments, ledger=ledger))


def from_items(stream: Stream, items: list[dict[str, Any]], read: Callable[..., Any], **options: Any) -> Dataset:
    """What readers make of items; `read` is called with `stream` and the options for each."""
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = -1  # a long checkpoint or validation is not a stall
    context.target_max_block_size = 4096  # any row is larger, so every row is a block of its own
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.custom_execution_callback_classes = [Patience]
    context.execution_options = execution_options(stream)
    data: Dataset = ray.data.from_items(items, override_num_blocks=max(1, min(len(items), MAX_BLOCKS)))
    return data.map_batches(
        read,
        batch_size=1,
        fn_kwargs={"stream": stream, **options},
        compute=TaskPoolStrategy(size=stream.read_tasks),
        num_cpus=1,
    )


def with_teachers(stream: Stream, views: Dataset) -> Dataset:
    """Micro-batches of views with the features that they do not have yet."""
    if not stream.live:
        return views
    return views.map_batches(
        FanOut,
        fn_constructor_args=(stream.directory, stream.live, stream.codecs),
        batch_size=1,
        num_cpus=0.1,
        compute=ActorPoolStrategy(
            size=1,
            max_concurrent_calls_per_actor=stream.max_in_flight,
            max_tasks_in_flight_per_actor=stream.max_in_flight,
        ),
    )


def execution_options(stream: Stream) -> ExecutionOptions:
    """Left alone, Ray Data reads ahead until half of its share of the object store is full: at a rate that only the
    teachers limit, readers then take the cores from them, for views that nobody waits for."""
    limits = ExecutionResources.for_limits(object_store_memory=bytes_in_flight(stream)["stages"])
    return ExecutionOptions(preserve_order=stream.deterministic, resource_limits=limits)


def read_segments(batch: dict[str, np.ndarray], stream: Stream, ledger: Ledger) -> Iterator[dict[str, np.ndarray]]:
    """One row naming a segment -> its micro-batches as rows."""
    source, origin = stream.source, ledger.digest()
    for index in batch["segment"]:
        segment = source.plan.segment(max(0, int(index)))
        todo = undone(segment, ledger) if index != PADDING else np.zeros(0, np.int64)
        started = time.perf_counter()
        shelf = reader.fetch(stream.stored, source, segment, todo) if stream.stored else None
        waited = time.perf_counter() - started
        failures: list[tuple[str, str]] = []
        for made in segment_batches(source, segment, ledger) if index != PADDING else [padding_batch(source)]:
            failures += made.failures
            started = time.perf_counter()
            features = reader.columns_of(shelf, made) if shelf else {}
            waited += time.perf_counter() - started
            yield as_row(made, origin) | batched(features | ({"seconds.store": np.float32(waited)} if shelf else {}))
            waited = 0.0
        if failures:
            # Named by segment and written whole, so a segment read again says the same again.
            uri = storage.join(stream.failures_uri, f"segment_{index:08d}.json")
            storage.write_json(uri, [{"tile_id": t, "reason": r} for t, r in failures], source.storage)


def as_row(made: Batch, origin: int) -> dict[str, np.ndarray]:
    return {
        "views": made.views[None],
        "seq": made.seq[None],
        "weight": made.weight[None],
        "token_pos": made.token_pos[None],
        "digest": made.digest[None],
        "origin": np.array([origin], np.int64),
        "seconds.read": np.array([made.seconds], np.float32),
    }


def batched(columns: dict[str, Any]) -> dict[str, np.ndarray]:
    """Each value as the only row of a column."""
    return {name: np.asarray(value)[None] for name, value in columns.items()}


def bytes_per_row(stream: Stream) -> tuple[int, int]:
    """Bytes of a micro-batch before and after the teachers."""
    source = stream.source
    k = source.kept_tokens
    views = source.views.size**2 * 3 + 8 + 4 + 4 * k + 8
    features = {name: 2 * (ds + k * dt) for name, (ds, dt) in stream.dims.items()}
    stored = sum(features[name] for name in stream.stored)
    return source.micro_batch * (views + stored), source.micro_batch * (views + sum(features.values()))


def bytes_in_flight(stream: Stream, num_workers: int = 1, prefetch: int = 1) -> dict[str, int]:
    """Bytes, by place, that may be on their way at a moment; a session of ours frees within a tenth of a second what
    was used, a cluster in its own time (`RAY_free_objects_period_milliseconds`, a second unless set).

    `stages` is what Ray Data is told to keep to: each reader's finished micro-batch, the one being made and two in
    Ray's generator, and what FanOut takes and gives. Outside of its sight are, of each micro-batch at FanOut, the
    `copies`: its views, shared with the teachers, and their answers; and at the `workers` what they prefetch, the one
    being fetched, the one ahead at the coordinator that deals them out, one unpacked, and those of the step.
    """
    before, after = bytes_per_row(stream)
    in_step = -(-stream.global_batch // (stream.source.micro_batch * num_workers))
    return {
        "stages": max(before * 4 * stream.read_tasks + after * stream.max_in_flight, LEAST_LIMIT),
        "copies": after * stream.max_in_flight,
        "workers": after * (prefetch + 3 + in_step) * num_workers,
    }


def micro_batch_of(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """A row as it comes out of `iter_batches(batch_size=1)`, without its leading 1."""
    return {name: value[0] for name, value in row.items()}
