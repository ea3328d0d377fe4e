"""The driver: lease, pools, stream and training wired once, from a resolved run to its last checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from pathryoshka import config, storage, watch
from pathryoshka.changes import refuse_changes
from pathryoshka.distill import checkpoint
from pathryoshka.distill.checkpoint import common_ledger
from pathryoshka.distill.fit import fit_standardisers
from pathryoshka.distill.learner import Entrant
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.distill.stream import bytes_in_flight, bytes_per_row, execution_options, make_dataset
from pathryoshka.distill.train import Job, seconds_before, stopped_uri, train_worker
from pathryoshka.features.store import open_store, refuse_other_teachers
from pathryoshka.observability.gauges import SEEN_S
from pathryoshka.runs.devices import logical_cpus, refuse_too_few_devices
from pathryoshka.runs.inputs import (
    in_order,
    is_complete,
    make_stream,
    plan_of,
    student_grid,
    tiles_of,
    tokens_kept,
    with_only,
)
from pathryoshka.session import console, on_cluster, ray_session, shower, speaker
from pathryoshka.storage.lease import Lease
from pathryoshka.teachers.licences import Terms, ledger, refuse_by_policy, terms
from pathryoshka.teachers.pool import Facts, Shared, TeacherPool
from pathryoshka.teachers.zoo import row_by_name
from pathryoshka.tiles.balance import identity

Say = Callable[[str], None]


class JobError(RuntimeError):
    """A run that did not finish; the sentence says why and what was kept."""


class NotFinite(JobError):
    """Training was given up because its numbers were not finite; `runs`: whose, of several in lock-step."""

    def __init__(self, reason: str, runs: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.runs = tuple(runs)  # has a default, for an exception is pickled as its class called with its words


@dataclass(frozen=True)
class Result:
    """A finished run: where it is, which checkpoint is its last, and what its last log line said."""

    run_uri: str
    checkpoint: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Ready:
    """Everything that stands before training starts."""

    job: Job
    facts: dict[str, Facts]
    pool: TeacherPool | None


@contextlib.contextmanager
def prepared(
    run: config.Run,
    allow_change: tuple[str, ...],
    say: Say,
    shared: Shared | None = None,
    beside: Sequence[config.Run] = (),
) -> Iterator[Ready]:
    """Leases, Ray, teachers and standardisers; leaving it gives everything back, whatever happened.

    Args:
        shared: teachers that run already, instead of a pool of its own.
        beside: runs that train in lock-step with `run`, on one stream.
    """
    refuse_by_policy(run.licence.policy, {n: terms(row_by_name(t.model)) for n, t in run.teachers.models.items()})
    entered_at, runs = time.time(), (run, *beside)
    refuse_unlike(runs)
    storage.ensure_root(run.storage.root, run.storage)
    tiles = tiles_of(run)
    plan = plan_of(run, tiles)
    with contextlib.ExitStack() as stack:
        stack.enter_context(watch.words_for_interrupts(JobError))
        made_from = [identity(where, run.storage, found, run.plan.balance) for where, found in tiles.items()]
        leases = [stack.enter_context(lease_of(one)) for one in runs]
        for one in runs:
            refuse_changes(one, checkpoint.uri_of(one), made_from, allow_change)
        entrants = begin(runs, leases, say)
        grid = student_grid(run)
        stored = open_store(run, plan, grid, tokens_kept(run, grid), say)
        asked = with_only(run, [name for name in run.teachers.models if not is_complete(stored, name)])
        stack.enter_context(ray_session(logical_cpus(asked), dashboard=run.metrics.dashboard, say=say))
        refuse_too_few_devices(asked)
        lines = stack.enter_context(console(f"{run.name}/console", say))
        began_at = entered_at - seconds_before(entrants[0].run_uri, run.storage)
        show_start(entrants, lines, began_at)
        for lease in leases:
            stack.enter_context(watch.watch(lease))
        pool = None
        if shared is None:
            pool = TeacherPool(run.name, asked.teachers, grid, run.views.size, run.storage, watch.interrupt, say=say)
            answered = stack.enter_context(pool).wait_ready()
        else:
            answered = {name: shared.facts[name] for name in asked.teachers.models}
        refuse_other_teachers(stored, {name: fact.fingerprint for name, fact in answered.items()})
        facts = in_order(run, {name: Facts(**one.recipe.facts) for name, one in stored.items()} | answered)
        agreed = {name: Terms(**f.terms) for name, f in facts.items()}
        refuse_by_policy(run.licence.policy, agreed)  # again: a folder of weights may say another licence than the row
        dims = {name: (f.summary_dim, f.token_dim) for name, f in facts.items()}
        stream = make_stream(run, tiles, plan, grid, dims, stored)
        if shared is not None:
            stream = replace(stream, directory=shared.directory)
        job = Job(run, entrants[0].run_uri, entrants[0].token, stream, lines, began_at, beside=entrants[1:])
        announce(job, facts, say)
        for line in ledger(agreed):
            say(line)
        started = time.perf_counter()
        fit_standardisers(job.entrants, stream, {name: f.fingerprint for name, f in facts.items()})
        say(f"standardisers ready in {time.perf_counter() - started:.0f} s")
        for uri in job.run_uris:
            storage.write_json(storage.join(uri, "teachers.json"), {n: vars(f) for n, f in facts.items()}, run.storage)
        yield Ready(job, facts, pool)


def lease_of(run: config.Run) -> Lease:
    return Lease.acquire(checkpoint.uri_of(run), run.storage, f"{socket.gethostname()}:{os.getpid()}")


def begin(runs: Sequence[config.Run], leases: Sequence[Lease], say: Say) -> tuple[Entrant, ...]:
    """Notes where each run continues from: several in lock-step from the last step that all of them have kept."""
    uris = [checkpoint.uri_of(run) for run in runs]
    ref = checkpoint.common(uris, runs[0].storage)[0]
    step = ref.step if ref else 0
    for run, uri, lease in zip(runs, uris, leases, strict=True):
        checkpoint.record_attempt(uri, lease.token, run.storage, at_most=step)
        say(f"run {uri}: attempt {lease.token}, {f'continuing from step {step}' if step else 'from the start'}")
    return tuple(Entrant(run, uri, lease.token) for run, uri, lease in zip(runs, uris, leases, strict=True))


def show_start(entrants: Sequence[Entrant], lines: str, began_at: float) -> None:
    """What Prometheus hears before the first log line: an alert on a run that trains nothing needs it."""
    at = {"logged_at": time.time(), "began_at": began_at}
    ledger = common_ledger([entrant.run_uri for entrant in entrants], entrants[0].run.storage)[1]
    for entrant in entrants:
        plan, cfg = entrant.run.plan, entrant.run.metrics
        price = {"cost_per_hour": cfg.cost_per_hour} if cfg.cost_per_hour else {}
        limit = {"budget": cfg.budget} if cfg.budget else {}
        views = {"views": float(ledger.count), "views_planned": float(plan.num_views)}
        shower(lines, entrant.run.name)(at | views | price | limit)


def refuse_unlike(runs: Sequence[config.Run]) -> None:
    """Runs in lock-step share views, teachers and workers; students, losses, optimizers and standardisers may differ.

    Raises:
        ConfigError: names the first section that differs, or a name that two have.
    """
    if len({run.name for run in runs}) < len(runs):
        raise config.ConfigError("runs that train in lock-step need names of their own")
    for run in runs[1:]:
        for section in ("data", "views", "plan", "teachers", "store", "storage", "train"):
            mine, lead = (getattr(one, section).model_dump() for one in (run, runs[0]))
            different = [key for key in mine if mine[key] != lead[key] and (section, key) != ("train", "seed")]
            if different:
                raise config.ConfigError(
                    f"runs {runs[0].name} and {run.name} differ in {section}.{different[0]}: they cannot train in "
                    "lock-step; run them one by one"
                )
        if run.kinds != runs[0].kinds or student_grid(run) != student_grid(runs[0]):
            raise config.ConfigError(
                f"runs {runs[0].name} and {run.name} need other features (kinds of loss, or a grid of tokens): they "
                "cannot train in lock-step; run them one by one"
            )


def fit(ready: Ready, say: Say, callbacks: Sequence[ray.train.UserCallback] = ()) -> Result:
    """Ray Train over what is left of the plan, or up to `until`; `callbacks` hear of every log line, in Ray Train's
    controller."""
    job = ready.job
    target = min(job.run.plan.num_views, job.until or job.run.plan.num_views)
    _, ledger = common_ledger(job.run_uris, job.run.storage)
    if ledger.count < target:
        train(job, callbacks)
    (ref, *_), ledger = common_ledger(job.run_uris, job.run.storage)
    if ledger.count < target:
        if watch.told.is_set():
            kept = f"{ledger.count} of {job.run.plan.num_views} views are in checkpoint {ref.name if ref else 'none'}"
            raise JobError(f"told to end: {kept}; the same command goes on from there")
        raise JobError(f"delivered {ledger.count} of {target} planned views; run the same command again")
    if ref is None:
        raise JobError("no checkpoint was written; see the lines above")
    refuse_too_many_failures(job, ledger.failed)
    if job.until is None:
        say(f"trained on {ledger.count} of {job.run.plan.num_views} views, each exactly once; checkpoint {ref.name}")
    lines = read_metrics(job.run_uri, job.run.storage)
    return Result(job.run_uri, ref.name, lines[-1] if lines else {})


class Failures(ray.train.UserCallback):
    """Says why workers end, from Ray Train's controller, which starts them again from the last checkpoint."""

    def __init__(self, console: str | None) -> None:
        self.console = console

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        rank, error = min(worker_exceptions.items(), key=lambda item: item[0])
        others = f", and {len(worker_exceptions) - 1} more" if len(worker_exceptions) > 1 else ""
        why = f"{type(error).__name__}: {last_line(error)}"
        if "running low on memory" in str(error):  # Ray's own words end with advice to switch its monitor off
            why = (
                "Ray ended it because its node ran out of memory; train.micro_batch, or students in lock-step, are many"
            )
        speaker(self.console)(f"train worker {rank}{others} ended: {why}")


def train(job: Job, callbacks: Sequence[ray.train.UserCallback] = ()) -> None:
    """One `TorchTrainer.fit`.

    Raises:
        JobError: it stopped; KeyboardInterrupt: the user or a watcher stopped it.
    """
    run, stream, uris, cfg = job.run, job.stream, job.run_uris, job.run.storage
    if watch.told.is_set():
        raise KeyboardInterrupt
    on_gpu = run.train.device == "cuda" or (run.train.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    before = signal.getsignal(signal.SIGINT)
    with tempfile.TemporaryDirectory(prefix="pathryoshka-train-") as scratch:
        trainer = TorchTrainer(
            lambda: train_worker(job),
            # not `job`: Ray Train's controller makes the data set, and need not import torch's world for it
            datasets={"train": lambda: make_dataset(stream, common_ledger(uris, cfg)[1])},
            dataset_config=ray.train.DataConfig(execution_options=execution_options(job.stream)),
            scaling_config=ray.train.ScalingConfig(
                num_workers=run.train.num_workers,  # type: ignore[arg-type]
                use_gpu=on_gpu,
                resources_per_worker=dict(run.train.resources_per_worker) or None,
            ),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]
                name=f"{run.name}-{job.token}",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=run.train.max_failures),
                worker_runtime_env={"env_vars": {} if on_gpu else {"DS_ACCELERATOR": "cpu"}},
                callbacks=[Failures(job.console), *callbacks],  # type: ignore[list-item]
            ),
        )
        try:
            with ending_in_good_order(job):
                trainer.fit()
        except BaseException as error:
            if watch.reasons or isinstance(error, KeyboardInterrupt | SystemExit):
                raise KeyboardInterrupt from None
            raise JobError(f"training failed: {last_line(error)}") from error
        finally:
            signal.signal(signal.SIGINT, before)
    if storage.exists(stopped_uri(job), run.storage):
        if run.metrics.dashboard or on_cluster():
            time.sleep(SEEN_S)  # the console shows why, and goes with the driver
        stopped = storage.read_json(stopped_uri(job), run.storage)
        raise NotFinite(stopped["reason"], stopped["runs"])


def ending_in_good_order(job: Job) -> contextlib.AbstractContextManager[None]:
    """SIGTERM while training: the workers hear of it through the console, keep a checkpoint and end."""
    if job.console is None or threading.current_thread() is not threading.main_thread():
        return contextlib.nullcontext()
    return watch.last_checkpoint(ray.get_actor(job.console).end.remote, job.run.train.grace_s)


def refuse_too_many_failures(job: Job, failed: int) -> None:
    share, limit = failed / job.run.plan.num_views, job.run.data.max_failed_share
    if share > limit:
        raise JobError(
            f"{failed} views ({share:.1%}) could not be made, more than data.max_failed_share={limit:g}; "
            f"the reasons are in {job.stream.failures_uri}"
        )


def announce(job: Job, facts: dict[str, Facts], say: Say) -> None:
    """Derived numbers, once, before anything long starts."""
    run, plan = job.run, job.stream.source.plan
    steps = (
        job.stream.work(common_ledger(job.run_uris, run.storage)[1]).num_blocks
        * run.train.micro_batch
        // run.train.global_batch
    )
    before, after = bytes_per_row(job.stream)
    bounds = bytes_in_flight(job.stream, max(run.worker_counts), run.data.prefetch_batches)
    mib = {place: f"{amount / 2**20:.1f} MiB of {place}" for place, amount in bounds.items()}
    say(f"tiles: {plan.num_tiles} an epoch, {plan.num_views} views = {plan.num_views / plan.num_tiles:.1f} epochs")
    say(
        f"steps: {steps} left, global batch {run.train.global_batch} = {run.train.num_workers} workers x micro-batch "
        f"{run.train.micro_batch} x accumulation, ZeRO-{run.train.zero_stage}, {run.train.precision}"
    )
    say(
        f"bytes a view: {before // run.train.micro_batch:,} before and {after // run.train.micro_batch:,} after the "
        f"teachers; in flight at most {', '.join(mib.values())}"
    )
    for name, fact in facts.items():
        if name in job.stream.stored:
            one = job.stream.stored[name]
            share = 1 - one.coverage.missing(plan).mean()
            say(
                f"teacher {name}: {fact.fingerprint['row']}, {share:.0%} of its features out of {one.uri}"
                + (", not loaded" if one.complete else "; it is asked for the rest")
            )
            continue
        replicas = run.teachers.models[name].replicas
        say(
            f"teacher {name}: {fact.fingerprint['row']}, {fact.num_params / 1e6:.1f} M parameters, summary "
            f"{fact.summary_dim}, tokens {fact.token_dim}, {replicas} x {fact.device}, ready in {fact.start_s:.1f} s, "
            f"{fact.memory_mib:.0f} MiB"
        )


def last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
