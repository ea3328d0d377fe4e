"""Embedding from sources to a finished table: lease, session, graph and writer, wired once.

The same command again does what is missing or failed. A unit that cannot be read is reported with its reason while the
others finish. Ctrl-C and SIGTERM end the session; units that were finished stay, nothing else is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pathryoshka import config, storage, watch
from pathryoshka.embedding import state as states
from pathryoshka.embedding.engine import choose, tiles_of
from pathryoshka.embedding.gather import Gatherer
from pathryoshka.embedding.reading import Reading
from pathryoshka.embedding.recipe import EmbedError, Recipe, settle, transform_of
from pathryoshka.embedding.rows import from_bytes
from pathryoshka.embedding.sources import Unit, find_units
from pathryoshka.embedding.stream import bytes_in_flight, logical_cpus, make_dataset, pools
from pathryoshka.export.facts import check_width, facts_at
from pathryoshka.progress import is_due, line
from pathryoshka.session import ray_session
from pathryoshka.storage.lease import Lease
from pathryoshka.tiles.grid import Cut
from pathryoshka.tiles.slides import check

BATCH, BATCH_GPU = 64, 256
Say = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """What is to be embedded and how; the arguments of `embed`, checked.

    Attributes:
        units: all that were asked for. todo: of these, the ones that are not done.
    """

    to: str
    student: str
    recipe: Recipe
    units: tuple[Unit, ...]
    todo: tuple[Unit, ...]
    done: dict[str, states.State]


def embed(
    places: Sequence[str],
    student: str,
    to: str,
    cfg: config.Storage,
    *,
    width: int | None = None,
    dtype: str = "float32",
    precision: str = "float32",
    device: str = "auto",
    replicas: int | None = None,
    batch_size: int | None = None,
    cut: Cut | None = None,
    csv: str | None = None,
    slide_mpp: float | None = None,
    pseudonymise: bool = False,
    time_limit_s: float = 3600,
    cache_gb: float = 50,
    say: Say = print,
) -> states.Manifest:
    """Embeds slides or tile data sets with an exported student, as the table of vectors at `to`.

    Args:
        places: slides (files, globs, folders, prefixes, CSVs), or tile data sets.
        student: folder or URI of an export. width: one of its widths; none = all of it.
        dtype, precision: of the numbers in the table, and in which the student computes.
        device: auto, cpu or cuda. replicas, batch_size: of the student; none = chosen from what is there.
        cut, csv, slide_mpp, pseudonymise, time_limit_s, cache_gb: of slides, as in `tiles.slides.cut_slides`.

    Returns:
        The manifest; its states say what became of each slide or shard.

    Raises:
        EmbedRefused, ImportRefused, ShardError, LoadError: nothing that can be embedded, another table at `to`.
        RunTaken: another run writes `to`. EmbedError: the lease was lost, or nothing at all could be embedded.
    """
    to, student = storage.absolute(to), storage.absolute(student)
    if cut is not None:
        check(cut)
    facts = facts_at(student, cfg)
    check_width(facts, width, student)
    asked = find_units(places, cfg, cut=cut, csv=csv, slide_mpp=slide_mpp, pseudonymise=pseudonymise)
    recipe = Recipe(
        model_id=facts["model_id"], width=width or facts["width"], dtype=dtype, precision=precision,
        transform=transform_of(facts), tiles=json.loads(json.dumps(asked.tiles)),
    )  # fmt: skip
    storage.ensure_root(to, cfg)
    with contextlib.ExitStack() as stack:
        stack.enter_context(watch.words_for_interrupts(EmbedError))
        lease = stack.enter_context(Lease.acquire(to, cfg, f"{socket.gethostname()}:{os.getpid()}"))
        stack.enter_context(watch.watch(lease))
        settle(to, recipe, cfg)
        done = states.forget(to, asked.units, states.read_states(to, cfg), cfg)
        todo = tuple(unit for unit in asked.units if not states.is_done(unit, done))
        work = Work(to, student, recipe, asked.units, todo, done)
        say(f"embed: {len(asked.units)} {nouns(work)}, {len(asked.units) - len(todo)} of them done before")
        if todo:
            reading = Reading(
                facts["size"], batch_size or 0, cfg, cut or Cut(), slide_mpp, time_limit_s,
                cache_gb * 1e9 / (os.cpu_count() or 1),
            )  # fmt: skip
            stack.enter_context(ray_session(logical_cpus(os.cpu_count() or 1), say=say))
            done |= run(work, reading, device, replicas, say)
        return states.finish(to, recipe, done.values(), cfg)


def nouns(work: Work) -> str:
    return "slides" if work.recipe.tiles["kind"] == "slides" else "shards"


def run(work: Work, reading: Reading, device: str, replicas: int | None, say: Say) -> dict[str, states.State]:
    """The units that are to be done, through readers and students to their parts; states by key."""
    workers = pools(device, replicas, tiles_of(work.todo))
    on_gpu = workers.device == "cuda"
    if not reading.batch:
        reading = replace(reading, batch=BATCH_GPU if on_gpu else BATCH)
    engine = choose(work.student, work.recipe, work.todo, workers.device, reading.storage, say)
    readers = f"{workers.readers} readers" if workers.readers else "each reads for itself"
    say(
        f"embed: {workers.students} students on {workers.device} ({engine.name}), {readers}, batches of "
        f"{reading.batch}, at most {bytes_in_flight(reading, workers) / 2**20:.0f} MiB of views in flight"
    )
    data = make_dataset(work.todo, reading, workers, engine)
    progress = Progress(work, {"read": workers.readers or workers.students, "student": workers.students})
    with Gatherer(work.to, work.todo, work.recipe, engine.name, reading.storage) as gatherer:
        for row in data.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=1):
            about = json.loads(row["about"][0].tobytes())
            gatherer.take(about, from_bytes(row["facts"][0]), row["vectors"][0])
            progress.add(about, gatherer, say)
        gatherer.collect()
        if gatherer.open:
            raise EmbedError(f"{len(gatherer.open)} units did not come to their end; run the same command again")
        say(progress.summary(gatherer))
        return gatherer.states


class Progress:
    """What is said while it runs; the number of tiles is exact for shards, and for slides reckoned from those seen."""

    def __init__(self, work: Work, side_by_side: dict[str, int]) -> None:
        self.work, self.side_by_side = work, side_by_side
        self.known = {i: unit.rows for i, unit in enumerate(work.todo) if unit.rows is not None}
        self.seconds = {"read": 0.0, "student": 0.0}
        self.started = self.said = time.perf_counter()

    def add(self, about: dict[str, object], gatherer: Gatherer, say: Say) -> None:
        self.seconds["read"] += float(about["seconds"])  # type: ignore[arg-type]
        self.seconds["student"] += float(about["student_s"])  # type: ignore[arg-type]
        if "found" in about:
            self.known[about["unit"]] = about["found"]  # type: ignore[index, assignment]
        now = time.perf_counter()
        if is_due(now - self.said, now - self.started):
            self.said = now
            say(self.line(gatherer, now - self.started))

    def line(self, gatherer: Gatherer, elapsed: float) -> str:
        num = len(self.work.todo)
        total = sum(self.known.values()) * num / max(1, len(self.known))
        about = "" if len(self.known) == num else "about "
        how_far = (
            f"embed: {gatherer.num_tiles:,} of {about}{total:,.0f} tiles, {len(gatherer.states)} of {num} "
            f"{nouns(self.work)}"
        )
        return line(how_far, gatherer.num_tiles, total, "tiles", elapsed, self.seconds, self.side_by_side)

    def summary(self, gatherer: Gatherer) -> str:
        elapsed, made = time.perf_counter() - self.started, gatherer.states.values()
        rows = sum(state.part.rows for state in made if state.part)
        failed = sum(state.status == "failed" for state in made)
        unreadable = sum(len(state.unreadable) for state in made)
        how_much = f"{rows:,} tiles of {len(made)} {nouns(self.work)} in {elapsed:.0f} s"
        return f"embed: {how_much}, {rows / elapsed:.0f} tiles/s; {failed} failed, {unreadable} tiles cannot be decoded"
