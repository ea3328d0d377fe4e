"""Filling a feature store: lease, pools, stream and writers, wired once; and what keeps one in order.

The same readers and teachers as training. Each row of the stream is a part of the store: read, embedded by every
teacher that lacks it, written; the driver only notes in the journals what has been written, so a filling that stops
anywhere goes on from there, and two fillings of one store are kept apart by its lease.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from ray.data import Dataset, TaskPoolStrategy

from pathryoshka import config, storage, watch
from pathryoshka.distill.stream import Stream, as_row, batched, from_items, micro_batch_of, with_teachers
from pathryoshka.features import codec, coverage
from pathryoshka.features import recipe as recipes
from pathryoshka.features.budget import Budget, bytes_per_view, refuse_too_large
from pathryoshka.features.filling import Part, Shelving, parts_of, segment_of, write_part
from pathryoshka.features.store import Stored, open_store, refuse_other_teachers, refuse_unlimited, teacher_uri
from pathryoshka.progress import is_due, line
from pathryoshka.runs.devices import logical_cpus, refuse_too_few_devices
from pathryoshka.runs.driver import JobError, Say
from pathryoshka.runs.inputs import make_stream, plan_of, student_grid, tiles_of, tokens_kept, with_only
from pathryoshka.session import ray_session
from pathryoshka.storage.lease import Lease
from pathryoshka.teachers.licences import refuse_by_policy, terms
from pathryoshka.teachers.pool import Facts, TeacherPool
from pathryoshka.teachers.zoo import row_by_name
from pathryoshka.tiles.ledger import Ledger
from pathryoshka.tiles.plan import Plan
from pathryoshka.tiles.segments import segment_batches
from pathryoshka.tiles.shards import Manifest

SAMPLE_PARTS, SAMPLE_TOKENS = 8, 20_000
NO_TOKENS = np.zeros((0, 1), np.float16)


@dataclass(frozen=True)
class Todo:
    """What a filling of a run's store would do."""

    run: config.Run
    tiles: dict[str, Manifest]
    plan: Plan
    grid: tuple[int, int]
    stored: dict[str, Stored]
    lacking: dict[str, np.ndarray]
    """Teacher -> bool [num_groups, per_tile], for teachers that lack something."""
    parts: tuple[Part, ...]
    budget: Budget
    held: int


def store_uri(run: config.Run) -> str:
    if run.store.uri is None:
        raise config.ConfigError("store.uri is not set; name the folder or prefix of a feature store")
    return run.store.uri


def look(run: config.Run, say: Say = print) -> Todo:
    """What is there and what is missing, from manifests and journals alone.

    Raises:
        ConfigError, StoreError, ShardError: a store or data set that cannot be used.
    """
    store_uri(run)
    refuse_unlimited(run)
    tiles = tiles_of(run)
    plan, grid = plan_of(run, tiles), student_grid(run)
    kept = tokens_kept(run, grid)
    stored = open_store(run, plan, grid, kept, say)
    everything = coverage.Coverage.of(coverage.SCHEMA.empty_table()).missing(plan)
    lacking = {n: stored[n].coverage.missing(plan) if n in stored else everything for n in run.teachers.models}
    lacking = {name: missing for name, missing in lacking.items() if missing.any()}
    union = np.any(list(lacking.values()), axis=0) if lacking else np.zeros_like(everything)
    parts = parts_of(plan, union, run.store.part_rows)
    rows = np.asarray(plan.group_rows)
    num_bytes = 0
    for name, missing in lacking.items():
        row = row_by_name(run.teachers.models[name].model)
        num_bytes += int(missing.sum(1) @ rows) * bytes_per_view(run.store, kept, row.summary_dim, row.token_dim)
    row_groups = sum(int(missing.sum()) for missing in lacking.values())
    budget = Budget(plan.num_tiles, int(union.sum(1) @ rows), num_bytes, len(parts) * len(lacking), row_groups)
    held = sum(one.coverage.num_bytes for one in stored.values())
    return Todo(run, tiles, plan, grid, stored, lacking, parts, budget, held)


def fill(run: config.Run, say: Say = print) -> None:
    """Embeds the missing views of a run's data with its teachers; the same command again goes on.

    Raises:
        StoreError, ConfigError, JobError, TeacherError, StorageError: one sentence each; what was written counts.
    """
    refuse_by_policy(run.licence.policy, {n: terms(row_by_name(t.model)) for n, t in run.teachers.models.items()})
    uri = store_uri(run)
    storage.ensure_root(uri, run.storage)
    with contextlib.ExitStack() as stack:
        stack.enter_context(watch.words_for_interrupts(JobError))
        owner = f"{socket.gethostname()}:{os.getpid()}"
        lease = stack.enter_context(Lease.acquire(uri, run.storage, owner))
        todo = look(run, say)
        for line in todo.budget.lines():
            say(line)
        refuse_too_large(todo.budget, todo.held, run)
        if not todo.parts:
            say("store: every view is there")
            return
        asked = with_only(run, list(todo.lacking))
        stack.enter_context(ray_session(logical_cpus(asked), say=say))
        refuse_too_few_devices(asked)
        stack.enter_context(watch.watch(lease))
        prefix = f"{run.name}-store"
        pool = TeacherPool(prefix, asked.teachers, todo.grid, run.views.size, run.storage, watch.interrupt, say=say)
        facts = stack.enter_context(pool).wait_ready()
        stream = stream_of(todo, facts, prefix)
        samples = {}
        if run.store.tokens in ("int8", "projected") and stream.source.kept_tokens:
            first = stream_parts(todo, stream, len(todo.parts[:SAMPLE_PARTS]))
            samples = tokens_in(first.iter_batches(batch_size=1, batch_format="numpy"), stream)
        shelves = {name: shelf(todo, name, fact, stream, samples.get(name, NO_TOKENS)) for name, fact in facts.items()}
        write_all(todo, stream, shelves, say)


def stream_of(todo: Todo, facts: dict[str, Facts], prefix: str) -> Stream:
    """The stream of training, a part of the store a micro-batch."""
    dims = {name: (fact.summary_dim, fact.token_dim) for name, fact in facts.items()}
    stream = make_stream(todo.run, todo.tiles, todo.plan, todo.grid, dims)
    rows = max(sum(todo.plan.group_rows[group] for group in part.groups) for part in todo.parts)
    source = replace(stream.source, micro_batch=rows)
    in_flight = max(2, stream.max_in_flight * stream.source.micro_batch // rows)
    return replace(stream, source=source, directory=f"{prefix}/directory", max_in_flight=in_flight)


def tokens_in(rows: Iterable[dict[str, np.ndarray]], stream: Stream) -> dict[str, np.ndarray]:
    """Teacher -> float16 [N, Dt], about `SAMPLE_TOKENS` tokens spread over parts, for codecs to be fitted to."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in stream.dims}
    for row in rows:
        batch = micro_batch_of(row)
        for name, tokens in found.items():
            tokens.append(batch[f"{name}.tokens"][batch["weight"] > 0].reshape(-1, stream.dims[name][1]))
    every = {name: max(1, sum(map(len, tokens)) // SAMPLE_TOKENS) for name, tokens in found.items()}
    return {name: np.concatenate(tokens)[:: every[name]] for name, tokens in found.items()}


def shelf(todo: Todo, name: str, fact: Facts, stream: Stream, tokens_ND: np.ndarray) -> Shelving:
    """Where a teacher's features go; its recipe is written first, so that what follows is never without one."""
    run, kept = todo.run, stream.source.kept_tokens
    uri, missing = teacher_uri(store_uri(run), name), todo.lacking[name]
    if name in todo.stored:
        refuse_other_teachers(todo.stored, {name: fact.fingerprint})
        return Shelving(name, uri, todo.stored[name].codec, missing)
    fitted, lost = codec.fit(run.store.tokens if kept else "none", tokens_ND, run.store.directions)
    tokens: dict[str, Any] = {"format": fitted.format, "per_view": kept, "of": stream.source.num_tokens}
    tokens["codec_sha256"] = hashlib.sha256(fitted.to_bytes()).hexdigest()
    what = recipes.asked(run, fact.fingerprint, stream.source.num_tokens, 0) | {"tokens": tokens}
    lasting = asdict(fact) | {"device": "", "node": "", "pid": 0, "start_s": 0.0, "memory_mib": 0.0}
    recipes.write_recipe(uri, recipes.Recipe(**what, facts=lasting, lost=lost), fitted, run.storage)
    return Shelving(name, uri, fitted, missing)


def stream_parts(todo: Todo, stream: Stream, num_parts: int) -> Dataset:
    """The first parts as rows of a data set: views, who they are, and what every teacher says."""
    items = [{"part": i} for i in range(num_parts)]
    return with_teachers(stream, from_items(stream, items, read_parts, plan=todo.plan, parts=todo.parts))


def read_parts(
    batch: dict[str, np.ndarray], stream: Stream, plan: Plan, parts: tuple[Part, ...]
) -> Iterator[dict[str, np.ndarray]]:
    for index in batch["part"]:
        made = next(segment_batches(stream.source, segment_of(plan, parts[index]), Ledger()))
        names = json.dumps([made.tile_id.tolist(), made.partner_id.tolist()])
        about = {"part": index, "names": names, "pixels": made.pixels, "failed": len(made.failures)}
        yield as_row(made, 0) | batched(about)


def write_parts(
    batch: dict[str, np.ndarray], stream: Stream, plan: Plan, parts: tuple[Part, ...], shelves: dict[str, Shelving]
) -> dict[str, np.ndarray]:
    """A part of every teacher that lacks some of it; what remains of the row is what the journals will say."""
    started = time.perf_counter()
    row = with_names(micro_batch_of(batch))
    part = parts[int(row["part"])]
    written = {
        name: write_part(to, plan, stream.source.shards, part, row, stream.source.storage)
        for name, to in shelves.items()
        if to.missing[list(part.groups), part.view_id].any()
    }
    seconds = {name: row[name] for name in row if name.startswith("seconds.")}
    seconds["seconds.write"] = np.float32(time.perf_counter() - started)
    return batched(
        {"written": json.dumps(written), "views": int((row["weight"] > 0).sum()), "failed": row["failed"]} | seconds
    )


def with_names(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its ids as arrays: Arrow has no tensors of strings."""
    tile_id, partner_id = (np.array(ids, object) for ids in json.loads(str(row["names"])))
    return row | {"tile_id": tile_id, "partner_id": partner_id}


def write_all(todo: Todo, stream: Stream, shelves: dict[str, Shelving], say: Say) -> None:
    """Runs the stream to its end; the journals grow now and then and when it ends, however it ends."""
    run, total = todo.run, todo.budget.num_views
    data = stream_parts(todo, stream, len(todo.parts)).map_batches(
        write_parts,  # type: ignore[arg-type]
        batch_size=1,
        fn_kwargs={"stream": stream, "plan": todo.plan, "parts": todo.parts, "shelves": shelves},
        compute=TaskPoolStrategy(size=stream.read_tasks),
        num_cpus=1,
    )
    pending: dict[str, list[dict[str, Any]]] = {name: [] for name in shelves}
    done, failed, started, noted = 0, 0, time.perf_counter(), time.perf_counter()
    seconds: dict[str, float] = {}
    try:
        for row in data.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=1):
            for name, rows in json.loads(str(row["written"][0])).items():
                pending[name] += rows
            done, failed = done + int(row["views"][0]), failed + int(row["failed"][0])
            for key in (key for key in row if key.startswith("seconds.")):
                seconds[key] = seconds.get(key, 0.0) + float(row[key][0])
            now = time.perf_counter()
            if is_due(now - noted, now - started):  # what a killed filling does again at most
                noted = now
                note(pending, shelves, run.storage)
                say(progress(run, done, total, noted - started, seconds))
    finally:
        note(pending, shelves, run.storage)
    elapsed = time.perf_counter() - started
    say(f"store: {done:,} views kept in {elapsed:.0f} s, {done / elapsed:.0f} views/s; {failed} could not be made")


def note(pending: dict[str, list[dict[str, Any]]], shelves: dict[str, Shelving], cfg: config.Storage) -> None:
    """Makes what was written count."""
    for name, rows in pending.items():
        if rows:
            coverage.append(shelves[name].uri, rows, cfg)
            rows.clear()


def progress(run: config.Run, done: int, total: int, elapsed: float, seconds: dict[str, float]) -> str:
    """Rate, slowest stage and time left."""
    replicas = {name: teacher.replicas for name, teacher in run.teachers.models.items()}
    stages = {key.removeprefix("seconds."): s for key, s in seconds.items()}
    at_once = {stage: replicas.get(stage, run.data.read_tasks) for stage in stages}
    return line(f"store: {done:,} of {total:,} views", done, total, "views", elapsed, stages, at_once)
