"""How shards become a data set: pieces of work side by side on Ray, then one manifest, or nothing.

A piece (a chunk of images, a slide) writes its shards itself and reports what it could not read. Only the last write,
the manifest, makes a data set of them; when too much failed, the shards are removed again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import ray
from ray import cloudpickle
from ray.data import TaskPoolStrategy

from pathryoshka import config, storage
from pathryoshka.tiles.shards import MANIFEST, Manifest, ShardEntry, ShardError, read_manifest, write_manifest
from pathryoshka.tiles.sources import ImportRefused

FAILURES = "_failures.json"
log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """A tile or slide that was left out."""

    what: str
    reason: str


@dataclass(frozen=True)
class Written:
    """What one task wrote and what it left out."""

    shards: tuple[ShardEntry, ...]
    failures: tuple[Failure, ...]


def make_data_set(
    to: str,
    cfg: config.Storage,
    made_by: Mapping[str, Any],
    task: Callable[[Any], Written],
    items: Sequence[Any],
    *,
    max_failed: float,
    total: int,
) -> Manifest:
    """Runs `task` on every item, side by side on Ray, and makes what they wrote a data set, or leaves nothing behind.

    Raises:
        ImportRefused: another data set at `to`; more failures than `max_failed`; no tile at all.
    """
    made_by = json.loads(json.dumps(made_by))
    if storage.exists(storage.join(to, MANIFEST), cfg):
        try:
            there = read_manifest(to, cfg)
        except ShardError as error:
            raise ImportRefused(f"{error}; to do so, delete {to} first") from None
        if there.made_by == made_by:
            left_out = len(read_failures(to, cfg))
            log.info("%s is there already: %d tiles, %d left out; delete it to make it anew", to, there.rows, left_out)
            return there
        differing = [k for k in sorted({*made_by, *there.made_by}) if made_by.get(k) != there.made_by.get(k)]
        raise ImportRefused(
            f"another tile data set is at {to} (other {', '.join(differing)}); choose another place or delete it"
        )
    results = run_tasks(task, items)
    written = [result for result in results if isinstance(result, Written)]
    shards = [shard for result in written for shard in result.shards]
    failures = sorted((f for result in written for f in result.failures), key=lambda f: f.what)
    try:
        for result in results:
            if isinstance(result, Exception):
                raise result
        some = "; ".join(f"{f.what}: {f.reason}" for f in failures[:3])
        if not shards:
            raise ImportRefused(f"none of {total} could be read ({some}); nothing was written")
        if len(failures) > max_failed:
            raise ImportRefused(
                f"{len(failures)} of {total} cannot be read, {int(max_failed)} may be left out ({some}); repair or "
                "remove them, or raise max_failed_share; nothing was written"
            )
        if failures:
            storage.write_json(storage.join(to, FAILURES), [asdict(f) for f in failures], cfg)
            log.warning("left out %d of %d, listed in %s", len(failures), total, FAILURES)
        return write_manifest(to, shards, made_by, cfg)
    except BaseException:
        for path in (FAILURES, *(shard.path for shard in shards)):
            storage.delete(storage.join(to, path), cfg)
        raise


def read_failures(uri: str, cfg: config.Storage) -> list[Failure]:
    """What the making of the data set at `uri` left out, and why."""
    where = storage.join(uri, FAILURES)
    return [Failure(**entry) for entry in storage.read_json(where, cfg)] if storage.exists(where, cfg) else []


def run_tasks(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result | Exception]:
    """`function(item)` for every item, in the order of the items; what one raises takes the place of its result.

    All items run whatever some of them raise: the caller decides with everything known and nothing still running.
    Ray is started if it is not, and repeats a task whose worker or node died, so `function` must bear repetition.
    """
    if not items:
        return []

    def task(row: dict[str, Any]) -> dict[str, Any]:
        outcome: Any
        try:
            outcome = function(cloudpickle.loads(row["item"]))
        except Exception as error:
            outcome = error
        return {"index": row["index"], "outcome": cloudpickle.dumps(outcome)}

    rows = [{"index": i, "item": cloudpickle.dumps(item)} for i, item in enumerate(items)]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    data.context.enable_progress_bars = False
    data.context.execution_options.verbose_progress = False
    data.context.execution_no_progress_timeout_s = -1  # one slide may take an hour
    outcomes: dict[int, Result | Exception] = {}
    # a local session announces more CPUs than there are cores; work that only computes gains nothing from them
    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    tasks = TaskPoolStrategy(size=os.cpu_count() if alone else None)
    for done, row in enumerate(data.map(task, compute=tasks).iter_rows(), 1):
        outcomes[row["index"]] = cloudpickle.loads(row["outcome"])
        if done * 10 // len(rows) > (done - 1) * 10 // len(rows):
            log.info("%d of %d pieces done", done, len(rows))
    return [outcomes[i] for i in range(len(rows))]
