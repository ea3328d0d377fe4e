"""The driver: lease, pools, stream and training wired once, from a resolved run to its last checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import ray
import ray.train
from ray.train.torch import TorchTrainer

from pathryoshka import config, storage, watch
from pathryoshka.changes import refuse_changes
from pathryoshka.devices import logical_cpus, refuse_too_few_devices
from pathryoshka.distill import checkpoint
from pathryoshka.distill.checkpoint import current_ledger
from pathryoshka.distill.fit import fit_standardisers
from pathryoshka.distill.stream import Stream, bytes_in_flight, bytes_per_row, execution_options, make_dataset
from pathryoshka.distill.train import Job, stopped_uri, train_worker
from pathryoshka.lease import Lease
from pathryoshka.metrics import read_metrics
from pathryoshka.session import console, ray_session
from pathryoshka.teachers.licences import Terms, ledger, refuse_by_policy, terms
from pathryoshka.teachers.pool import Facts, Shared, TeacherPool
from pathryoshka.teachers.zoo import row_by_name
from pathryoshka.tiles.balance import identity, weights_of
from pathryoshka.tiles.plan import ROWS, Plan, make_plan
from pathryoshka.tiles.segments import Source
from pathryoshka.tiles.shards import Manifest, read_manifest

Say = Callable[[str], None]


class JobError(RuntimeError):
    """A run that did not finish; the sentence says why and what was kept."""


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
def prepared(run: config.Run, allow_change: tuple[str, ...], say: Say, shared: Shared | None = None) -> Iterator[Ready]:
    """Lease, Ray, teachers and standardisers; leaving it gives everything back, whatever happened."""
    refuse_by_policy(run.licence.policy, {n: terms(row_by_name(t.model)) for n, t in run.teachers.models.items()})
    uri = checkpoint.uri_of(run)
    storage.ensure_root(run.storage.root, run.storage)
    tiles = tiles_of(run)
    plan = plan_of(run, tiles)
    with contextlib.ExitStack() as stack:
        stack.enter_context(watch.words_for_interrupts(JobError))
        lease = stack.enter_context(Lease.acquire(uri, run.storage, f"{socket.gethostname()}:{os.getpid()}"))
        made_from = [identity(where, run.storage, found, run.plan.balance) for where, found in tiles.items()]
        refuse_changes(run, uri, made_from, allow_change)
        resumed = checkpoint.record_attempt(uri, lease.token, run.storage)
        begin = f"continuing from step {resumed.step}" if resumed else "from the start"
        say(f"run {uri}: attempt {lease.token}, {begin}")
        stack.enter_context(ray_session(logical_cpus(run), say=say))
        refuse_too_few_devices(run)
        lines = stack.enter_context(console(f"{run.name}/console", say))
        stack.enter_context(watch.watch(lease))
        grid = student_grid(run)
        pool = None
        if shared is None:
            pool = TeacherPool(run.name, run.teachers, grid, run.views.size, run.storage, watch.interrupt, say=say)
            facts = stack.enter_context(pool).wait_ready()
        else:
            facts = {name: shared.facts[name] for name in run.teachers.models}
        agreed = {name: Terms(**f.terms) for name, f in facts.items()}
        refuse_by_policy(run.licence.policy, agreed)  # again: a folder of weights may say another licence than the row
        dims = {name: (f.summary_dim, f.token_dim) for name, f in facts.items()}
        stream = make_stream(run, tiles, plan, grid, dims)
        if shared is not None:
            stream = replace(stream, directory=shared.directory)
        job = Job(run, uri, lease.token, stream, lines)
        announce(job, facts, say)
        for line in ledger(agreed):
            say(line)
        started = time.perf_counter()
        fit_standardisers(run, uri, job.stream, {name: f.fingerprint for name, f in facts.items()})
        say(f"standardisers ready in {time.perf_counter() - started:.0f} s")
        storage.write_json(storage.join(uri, "teachers.json"), {n: vars(f) for n, f in facts.items()}, run.storage)
        yield Ready(job, facts, pool)


def tiles_of(run: config.Run) -> dict[str, Manifest]:
    """The manifests of the run's data sets by URI."""
    if not run.data.tiles:
        raise config.ConfigError(
            "data.tiles is empty; set it to the URI of a data set made by `pathryoshka tiles import`"
        )
    return {uri: read_manifest(uri, run.storage) for uri in run.data.tiles}


def plan_of(run: config.Run, tiles: dict[str, Manifest]) -> Plan:
    plan = make_plan(
        [shard for manifest in tiles.values() for shard in manifest.shards],
        splits=run.data.splits,
        seed=run.plan.seed,
        num_views=run.plan.num_views,
        window=run.plan.window,
        mix_share=run.views.mix_share,
        weights=weights_of(tiles, run.storage, run.data.splits, run.plan),
    )
    if plan.segment_rows % run.train.micro_batch:
        raise config.ConfigError(
            f"train.micro_batch={run.train.micro_batch} does not divide a segment of plan.window x {ROWS} = "
            f"{plan.segment_rows} tiles; choose a power of two"
        )
    return plan


def make_stream(
    run: config.Run, tiles: dict[str, Manifest], plan: Plan, grid: tuple[int, int], dims: dict[str, tuple[int, int]]
) -> Stream:
    num_tokens = grid[0] * grid[1]
    source = Source(
        bases=tuple(uri for uri, manifest in tiles.items() for _ in manifest.shards),
        shards=tuple(shard for manifest in tiles.values() for shard in manifest.shards),
        plan=plan,
        views=run.views,
        storage=run.storage,
        micro_batch=run.train.micro_batch,
        num_tokens=num_tokens,
        tokens_per_view=0 if run.teachers.tokens_per_view >= num_tokens else run.teachers.tokens_per_view,
    )
    return Stream(
        source=source,
        failures_uri=storage.join(checkpoint.uri_of(run), "failures"),
        directory=f"{run.name}/directory",
        dims=dims,
        global_batch=run.train.global_batch,
        read_tasks=run.data.read_tasks,
        max_in_flight=run.teachers.max_in_flight,
        deterministic=run.data.deterministic,
    )


def fit(ready: Ready, say: Say, callbacks: Sequence[ray.train.UserCallback] = ()) -> Result:
    """Ray Train over what is left of the plan; `callbacks` hear of every log line, in Ray Train's controller."""
    job = ready.job
    _, ledger = current_ledger(job.run_uri, job.run.storage)
    if job.stream.work(ledger).num_blocks:
        train(job, callbacks)
    ref, ledger = current_ledger(job.run_uri, job.run.storage)
    if job.max_steps is None and ledger.count != job.run.plan.num_views:
        raise JobError(
            f"delivered {ledger.count} of {job.run.plan.num_views} planned views; run the same command again"
        )
    if ref is None:
        raise JobError("no checkpoint was written; see the lines above")
    refuse_too_many_failures(job, ledger.failed)
    if job.max_steps is None:
        say(f"trained on {ledger.count} of {job.run.plan.num_views} views, each exactly once; checkpoint {ref.name}")
    lines = read_metrics(job.run_uri, job.run.storage)
    return Result(job.run_uri, ref.name, lines[-1] if lines else {})


def train(job: Job, callbacks: Sequence[ray.train.UserCallback] = ()) -> None:
    """One `TorchTrainer.fit`.

    Raises:
        JobError: it stopped; KeyboardInterrupt: the user or a watcher stopped it.
    """
    run, stream, uri, cfg = job.run, job.stream, job.run_uri, job.run.storage
    on_gpu = run.train.device == "cuda" or (run.train.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    before = signal.getsignal(signal.SIGINT)
    with tempfile.TemporaryDirectory(prefix="pathryoshka-train-") as scratch:
        trainer = TorchTrainer(
            lambda: train_worker(job),
            # not `job`: Ray Train's controller makes the data set, and need not import torch's world for it
            datasets={"train": lambda: make_dataset(stream, current_ledger(uri, cfg)[1])},
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
                callbacks=list(callbacks),  # type: ignore[arg-type]
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:
            if watch.reasons or isinstance(error, KeyboardInterrupt | SystemExit):
                raise KeyboardInterrupt from None
            raise JobError(f"training failed: {last_line(error)}") from error
        finally:
            signal.signal(signal.SIGINT, before)
    if storage.exists(stopped_uri(job), run.storage):
        raise JobError(storage.read_json(stopped_uri(job), run.storage)["reason"])


def refuse_too_many_failures(job: Job, failed: int) -> None:
    share, limit = failed / job.run.plan.num_views, job.run.data.max_failed_share
    if share > limit:
        raise JobError(
            f"{failed} views ({share:.1%}) could not be made, more than data.max_failed_share={limit:g}; "
            f"the reasons are in {job.stream.failures_uri}"
        )


def student_grid(run: config.Run) -> tuple[int, int]:
    from pathryoshka.student.encoder import build_student

    return build_student(run.student.model_copy(update={"start": "random"}), run.views.size).grid


def announce(job: Job, facts: dict[str, Facts], say: Say) -> None:
    """Derived numbers, once, before anything long starts."""
    run, plan = job.run, job.stream.source.plan
    steps = (
        job.stream.work(current_ledger(job.run_uri, run.storage)[1]).num_blocks
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
        replicas = run.teachers.models[name].replicas
        say(
            f"teacher {name}: {fact.fingerprint['row']}, {fact.num_params / 1e6:.1f} M parameters, summary "
            f"{fact.summary_dim}, tokens {fact.token_dim}, {replicas} x {fact.device}, ready in {fact.start_s:.1f} s, "
            f"{fact.memory_mib:.0f} MiB"
        )


def last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
