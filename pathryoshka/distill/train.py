"""The loop of one train worker: stream -> step -> log -> checkpoint, the same on one CPU and on many GPUs."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from pathryoshka import config, storage
from pathryoshka.distill.checkpoint import common_ledger
from pathryoshka.distill.learner import Entrant, Learner
from pathryoshka.distill.notice import Notice
from pathryoshka.distill.stream import Stream, micro_batch_of
from pathryoshka.memory import keep_freed_memory, peak_memory_mib
from pathryoshka.session import shower, speaker
from pathryoshka.tiles.ledger import Ledger
from pathryoshka.tiles.views import student_view


class TrainingError(RuntimeError):
    """A promise of the stream was broken; Ray Train restarts the workers from the last checkpoint."""


@dataclass(frozen=True)
class Job:
    """What every worker of an attempt gets.

    Attributes:
        token: the attempt, which is the lease's token.
        console: name of the actor that brings lines to the driver's terminal.
        began_at: when the run would have begun had it never paused, in seconds of Unix time.
        until: stop at the first step that has presented so many views (a rung, a rehearsal); None = the whole plan.
        shown: whether its figures go to Prometheus.
        beside: runs that train in lock-step with this one, on the same stream.
    """

    run: config.Run
    run_uri: str
    token: int
    stream: Stream
    console: str | None = None
    began_at: float = field(default_factory=time.time)
    until: int | None = None
    shown: bool = True
    beside: tuple[Entrant, ...] = ()

    @property
    def entrants(self) -> tuple[Entrant, ...]:
        return (Entrant(self.run, self.run_uri, self.token), *self.beside)

    @property
    def run_uris(self) -> tuple[str, ...]:
        return tuple(entrant.run_uri for entrant in self.entrants)


def train_worker(job: Job) -> None:
    """Runs in each Ray Train worker until the plan is done; raises TrainingError when it must stop."""
    run, device = job.run, ray.train.torch.get_device()
    if device.type == "cpu":
        keep_freed_memory()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    scratch = Path(tempfile.mkdtemp(prefix="pathryoshka-"))
    refs, ledger = common_ledger(job.run_uris, run.storage)
    work = job.stream.work(ledger)
    micro_per_step = run.train.global_batch // run.train.micro_batch
    first = refs[0].step if refs[0] else 0
    last = first + work.num_blocks // micro_per_step
    stop = last if job.until is None else min(last, math.ceil(job.until / run.train.global_batch))
    if rank == 0:
        note_rollback(job, ledger)
    meter = Meter(run, device.type, world_size)
    batches = stream_batches(ray.train.get_dataset_shard("train"), ledger, run.data.prefetch_batches, meter)
    pending: list[dict[str, np.ndarray]] = []
    presented = ledger.count
    notice = Notice(job.console, rank, first)
    with contextlib.ExitStack() as stack:
        learners = [
            stack.enter_context(
                Learner(entrant, job.stream.dims, ref, device, rank, world_size, scratch, *ways(job, entrant))
            )
            for entrant, ref in zip(job.entrants, refs, strict=True)
        ]
        for step in range(first, stop):
            micro = [next(batches) for _ in range(micro_per_step // world_size)]
            tensors = [to_device(m, device, run) for m in micro]
            for learner in learners:
                learner.step(tensors, presented, step)
            pending += [{name: np.array(m[name]) for name in ("seq", "weight", "digest")} for m in micro]
            presented = min(presented + run.train.global_batch, run.plan.num_views)
            meter.add(micro)
            del micro, tensors  # they lie in the object store until the last reference is gone
            done = step + 1
            wish = notice.at(done)
            saves = done % run.train.checkpoint_every == 0 or done == stop or wish != "none"
            if done % run.train.log_every == 0 or saves:
                shared = meter.read(done, last, presented)
                values = {learner.run.name: learner.read(presented) | shared for learner in learners}
                stopped = {name: why for name, each in values.items() if (why := why_stop(each, done))}
                ray.train.report({"step": done, **values[run.name]})
                for learner in learners:
                    learner.show(values[learner.run.name] | {"logged_at": time.time()})
                if stopped:  # every rank read the same sums; a restart would only run into it again
                    if rank == 0:
                        reason = next(iter(stopped.values()))
                        storage.write_json(stopped_uri(job), {"reason": reason, "runs": list(stopped)}, run.storage)
                    break
                for learner in learners:
                    if learner.log:
                        learner.log.write(done, values[learner.run.name])
                if rank == 0:
                    note_progress(job, presented)
            if saves:
                ledger, pending = add_to_ledger(ledger, pending), []
                for learner in learners:
                    learner.save(done, ledger, values[learner.run.name]["loss"])
            if wish == "stop":
                break
    shutil.rmtree(scratch, ignore_errors=True)


def ways(job: Job, entrant: Entrant) -> tuple[Callable[[str], None], Callable[[dict[str, float]], None]]:
    """Takes lines to the driver's terminal, of several students each says who it is; and figures to Prometheus."""
    say = speaker(job.console)
    show = shower(job.console if job.shown else None, entrant.run.name)
    return (lambda line: say(f"{entrant.run.name}: {line}")) if job.beside else say, show


def stream_batches(shard: Any, ledger: Ledger, prefetch: int, meter: Meter) -> Iterator[dict[str, np.ndarray]]:
    """Micro-batches of this worker; refuses a data set that was built from another ledger."""
    rows = iter(shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=prefetch))
    while True:
        started = time.perf_counter()
        row = next(rows, None)
        meter.waited += time.perf_counter() - started
        if row is None:
            raise TrainingError("the stream ended before the plan did: delivered is less than planned")
        micro = micro_batch_of(row)
        if int(micro["origin"]) != ledger.digest():
            raise TrainingError("the data set was built from another checkpoint than this worker loaded; restarting")
        yield micro


def to_device(micro: dict[str, np.ndarray], device: torch.device, run: config.Run) -> dict[str, torch.Tensor]:
    """The tensors of a micro-batch, its views jittered for the student; on CUDA from pinned memory, without waiting."""
    out = {}
    if run.views.photometric:
        # keyed by what is presented, not by when: a resumed run draws the same
        rng = np.random.default_rng([run.train.seed, *(micro["seq"][:1] + 1).tolist()])
        micro = micro | {"views": student_view(micro["views"], rng, run.views.photometric)}
    for name, value in micro.items():
        if name in ("digest", "origin") or name.startswith("seconds.") or name.endswith(".stored"):
            continue
        tensor = torch.from_numpy(np.require(value, requirements="W"))
        out[name] = tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
    return out


def add_to_ledger(ledger: Ledger, pending: list[dict[str, np.ndarray]]) -> Ledger:
    """The ledger plus what every rank trained on since the last checkpoint; the same on every rank."""
    seqs = np.concatenate([m["seq"] for m in pending]) if pending else np.zeros(0, np.int64)
    weights = np.concatenate([m["weight"] for m in pending]) if pending else np.zeros(0, np.float32)
    content = sum(int(m["digest"].sum(dtype=np.uint64)) for m in pending) % 2**64
    mine = (seqs, content, int(((seqs >= 0) & (weights == 0)).sum()))
    everyone: list[Any] = [mine]
    if dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
    total = sum(c for _, c, _ in everyone) % 2**64
    return ledger.add(np.concatenate([s for s, _, _ in everyone]), total, sum(f for _, _, f in everyone))


def why_stop(values: dict[str, float], step: int) -> str | None:
    """Why training must not go on to the next checkpoint, or None."""
    bad = [key.split("/", 1)[1] for key, value in values.items() if key.startswith("nonfinite/") and value > 0]
    teachers = [name for name in bad if name != "loss"]
    if teachers:
        return (
            f"teacher {', '.join(teachers)} gave features that are not finite by step {step}; the last checkpoint is "
            "kept. Look at that teacher's precision and weights"
        )
    return f"the loss was not finite by step {step}; the last checkpoint is kept. Lower optim.lr" if bad else None


def stopped_uri(job: Job) -> str:
    return storage.join(job.run_uri, "attempts", f"{job.token:06d}-stopped.json")


def note_progress(job: Job, presented: int) -> None:
    """How far this attempt came and what time it took, so that the next one can say what was rolled back and spent."""
    so_far = {"token": job.token, "presented": presented, "seconds": time.time() - job.began_at}
    storage.write_json(progress_uri(job.run_uri), so_far, job.run.storage)


def progress_uri(run_uri: str) -> str:
    return storage.join(run_uri, "progress.json")


def seconds_before(run_uri: str, cfg: config.Storage) -> float:
    """Seconds that earlier attempts of a run took."""
    uri = progress_uri(run_uri)
    return float(storage.read_json(uri, cfg).get("seconds", 0.0)) if storage.exists(uri, cfg) else 0.0


def note_rollback(job: Job, ledger: Ledger) -> None:
    """Says what earlier workers presented after the checkpoint we start from; adds it to `<run>/rollbacks.json`."""
    progress, rollbacks = progress_uri(job.run_uri), storage.join(job.run_uri, "rollbacks.json")
    cfg = job.run.storage
    if not storage.exists(progress, cfg):
        return
    lost = storage.read_json(progress, cfg)["presented"] - ledger.count
    if lost > 0:
        where = f"the checkpoint at {ledger.count:,} views" if ledger.count else "the start"
        speaker(job.console)(f"workers go on from {where}: {lost:,} views after it are trained on again")
        known = storage.read_json(rollbacks, cfg) if storage.exists(rollbacks, cfg) else []
        storage.write_json(rollbacks, [*known, {"at": ledger.count, "views": lost}], cfg)
    note_progress(job, ledger.count)


class Meter:
    """Host times between two log lines, added up."""

    def __init__(self, run: config.Run, device: str, world_size: int):
        self.run, self.device, self.world_size = run, device, world_size
        self.parallel = {"read": run.data.read_tasks} | {n: t.replicas for n, t in run.teachers.models.items()}
        self.reset()

    def reset(self) -> None:
        self.started, self.waited, self.steps = time.perf_counter(), 0.0, 0
        self.seconds: dict[str, float] = {}
        self.rows = self.stored = 0

    def add(self, micro: list[dict[str, np.ndarray]]) -> None:
        self.steps += 1
        for batch in micro:
            self.rows += len(batch["seq"])
            for name, value in batch.items():
                if name.startswith("seconds."):
                    key = name.removeprefix("seconds.")
                    self.seconds[key] = self.seconds.get(key, 0.0) + float(value)
                elif name.endswith(".stored"):
                    self.stored += int(value.sum())

    def read(self, step: int, last: int, presented: int) -> dict[str, float]:
        """What was measured since the last call; then everything starts again from zero."""
        elapsed = time.perf_counter() - self.started
        rates = {f"rate/{n}": self.rows / s * self.parallel.get(n, 1) for n, s in self.seconds.items() if s > 0}
        rates["rate/student"] = self.rows * self.world_size / max(1e-9, elapsed - self.waited)
        values = rates
        if self.run.store.uri is not None:
            values["store/hit_rate"] = self.stored / (self.rows * len(self.run.teachers.models))
        values["memory/student"] = peak_memory_mib(self.device)
        values["tiles_per_s"] = self.steps * self.run.train.global_batch / elapsed
        values["wait_share"] = self.waited / elapsed
        values |= {"views": float(presented), "num_steps": float(last)}
        values |= {"seconds_left": (last - step) * elapsed / self.steps, "line_seconds": elapsed}
        self.reset()
        return values
