"""The job: a resolved run to the weights of its student, after a rehearsal where the run is long."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.runs.driver import Ready, Result, Say, fit, prepared
from pathryoshka.runs.during import evaluating

LONG = 5000
"""Optimizer steps from which on a fresh run is rehearsed unasked."""


Rehearse = Literal["only", "always", "auto", "never"]
"""Rehearse and end; before the run; before a fresh run of more than `LONG` steps; not at all."""


def distill(
    run: config.Run, *, rehearse: Rehearse = "auto", allow_change: tuple[str, ...] = (), say: Say = print
) -> Result:
    """Distils, or continues to: the same command again goes on from the last whole checkpoint.

    Args:
        rehearse: a run that has a checkpoint is rehearsed only where "only" asks for it.
        allow_change: keys that may differ from the run's last attempt.

    Raises:
        JobError, TeacherError, StorageError, ConfigError and the rooms' own errors: one sentence each.
    """
    with prepared(run, allow_change, say) as ready:
        long = run.plan.num_views / run.train.global_batch > LONG
        asked = rehearse == "always" or (rehearse == "auto" and long)
        if rehearse == "only" or (asked and checkpoint.choose(checkpoint.uri_of(run), run.storage) is None):
            result = rehearsal(ready, say)
            if rehearse == "only":
                return result
        with evaluating(run, ready.job.run_uri, say):
            return fit(ready, say)


def distill_together(runs: Sequence[config.Run], *, say: Say = print) -> list[Result]:
    """Distils several students in lock-step: every worker holds all of them and gives them the same micro-batches, so
    that reading, views and teachers are paid for once. Each is a run of its own, with checkpoints, records and results
    of its own; the same call again goes on from the last step that all of them have kept.

    Args:
        runs: alike in data, views, plan, teachers, store, storage and workers.

    Raises:
        as `distill`; ConfigError also for runs that are not alike, by field.
    """
    with prepared(runs[0], (), say, beside=runs[1:]) as ready:
        fit(ready, say)
    out = []
    for run in runs:
        uri, ref = checkpoint.uri_of(run), checkpoint.choose(checkpoint.uri_of(run), run.storage)
        assert ref is not None
        out.append(Result(uri, ref.name, read_metrics(uri, run.storage)[-1]))
    return out


def rehearsal(ready: Ready, say: Say) -> Result:
    """One segment, one step, one checkpoint, one resume and one export, through the real pools.

    It runs under a name of its own beside the run, which is deleted afterwards, also when it is interrupted.
    """
    run = ready.job.run
    small = run.model_copy(update={"name": f"{run.name}-rehearsal"})
    job = replace(ready.job, run=small, run_uri=checkpoint.uri_of(small), shown=False)
    cfg = run.storage
    storage.delete(job.run_uri, cfg)
    try:
        for name in ("standardisers.safetensors", "standardisers.json", "teachers.json"):
            storage.write_bytes(
                storage.join(job.run_uri, name), storage.read_bytes(storage.join(ready.job.run_uri, name), cfg), cfg
            )
        for attempt in (1, 2):
            started = time.perf_counter()
            checkpoint.record_attempt(job.run_uri, attempt, cfg)
            until = attempt * run.train.global_batch
            result = fit(replace(ready, job=replace(job, token=attempt, until=until)), say)
            what = "started, trained a step, wrote a checkpoint" if attempt == 1 else "resumed from it, trained another"
            say(f"rehearsal: {what} in {time.perf_counter() - started:.0f} s")
        say(f"rehearsal: {stages(ready, result.metrics)}")
        started = time.perf_counter()
        from pathryoshka.runs.results import export_run  # evaluation and plots: not needed to train

        with tempfile.TemporaryDirectory() as folder:
            export_run(small, Path(folder) / "export")
        say(f"rehearsal: exported and checked in {time.perf_counter() - started:.0f} s; the run may start")
    finally:
        storage.delete(job.run_uri, cfg)
    return result


def stages(ready: Ready, metrics: dict[str, float]) -> str:
    """Rate and peak memory of each stage, as one step showed them."""
    memory = {name: fact.memory_mib for name, fact in ready.facts.items()} | {"student": metrics["memory/student"]}
    rates = {key.removeprefix("rate/"): value for key, value in metrics.items() if key.startswith("rate/")}
    held = {name: f", {memory[name]:.0f} MiB" for name in rates if name in memory}
    return "; ".join(f"{name} {rate:.0f} tiles/s{held.get(name, '')}" for name, rate in rates.items())
