"""The job: a resolved run to the weights of its student, after a rehearsal where the run is long."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.driver import Ready, Result, Say, fit, prepared
from pathryoshka.results import final_weights, run_uri

LONG = 5000
"""Optimizer steps from which on a fresh run is rehearsed unasked."""


def distill(run: config.Run, *, rehearse: bool = False, allow_change: tuple[str, ...] = (), say: Say = print) -> Result:
    """Distils, or continues to: the same command again goes on from the last whole checkpoint.

    Args:
        rehearse: only rehearse; a fresh run of more than `LONG` steps is rehearsed before it starts in any case.
        allow_change: keys that may differ from the run's last attempt.

    Raises:
        JobError, TeacherError, StorageError, ConfigError and the rooms' own errors: one sentence each.
    """
    with prepared(run, allow_change, say) as ready:
        long = run.plan.num_views / run.train.global_batch > LONG
        if rehearse or (long and checkpoint.choose(run_uri(run), run.storage) is None):
            result = rehearsal(ready, say)
            if rehearse:
                return result
        return fit(ready, say)


def rehearsal(ready: Ready, say: Say) -> Result:
    """One segment, one step, one checkpoint, one resume and the weights read back, through the real pools.

    It runs under a name of its own beside the run, which is deleted afterwards.
    """
    run = ready.job.run
    small = run.model_copy(update={"name": f"{run.name}-rehearsal"})
    job = replace(ready.job, run=small, run_uri=run_uri(small), max_steps=1)
    cfg = run.storage
    storage.delete(job.run_uri, cfg)
    for name in ("standardisers.safetensors", "standardisers.json", "teachers.json"):
        storage.write_bytes(
            storage.join(job.run_uri, name), storage.read_bytes(storage.join(ready.job.run_uri, name), cfg), cfg
        )
    for attempt in (1, 2):
        started = time.perf_counter()
        checkpoint.record_attempt(job.run_uri, attempt, cfg)
        result = fit(replace(ready, job=replace(job, token=attempt)), say)
        what = "started, trained a step, wrote a checkpoint" if attempt == 1 else "resumed from it and trained another"
        say(f"rehearsal: {what} in {time.perf_counter() - started:.0f} s")
    with tempfile.TemporaryDirectory() as scratch:
        say(f"rehearsal: {len(final_weights(small, Path(scratch)))} tensors read back; the run may start")
    storage.delete(job.run_uri, cfg)
    return result
