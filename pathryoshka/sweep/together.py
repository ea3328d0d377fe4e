"""Trials in lock-step: several students on one stream, so that reading, views and teachers are paid for once.

For points that are known beforehand and differ only in student, loss, optimizer and standardisers. All of a group train
to the end together: cheaper than one by one, unless most of them would have been stopped early.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.distill.learner import Entrant
from pathryoshka.distill.metrics import read_metrics, unexplained
from pathryoshka.runs.driver import Ready, Result, fit, prepared, refuse_unlike
from pathryoshka.sweep.follow import spent
from pathryoshka.sweep.objective import measure
from pathryoshka.sweep.record import Recorder, Trial, outcome_uri
from pathryoshka.sweep.space import Point, Sweep, describe, points, short
from pathryoshka.sweep.trial import trial_run
from pathryoshka.teachers.pool import Shared

Say = Callable[[str], None]


def groups_of(sweep: Sweep, base: config.Run) -> list[list[tuple[Point, config.Run]]]:
    """The points in their order, `sweep.lockstep` at a time, with the runs that they stand for.

    Raises:
        ConfigError: two of a group need streams of their own; names the section.
    """
    named = [(point, trial_run(sweep, base, point, f"t{n:04d}")) for n, point in enumerate(points(sweep))]
    groups = [named[start : start + sweep.lockstep] for start in range(0, len(named), sweep.lockstep)]
    for group in groups:
        refuse_unlike([run for _, run in group])
    return groups


def run_groups(sweep: Sweep, base: config.Run, shared: Shared | None, recorder: Recorder, say: Say) -> None:
    """Every group that has not finished, one after the other, until a budget is spent. A group that fails is tried
    again from its checkpoints and then reported, and the next one begins."""
    for group in groups_of(sweep, base):
        trials = [recorder.record.trial(run.name, point) for point, run in group]
        if all(trial.status == "finished" for trial in trials):
            continue
        if said := spent(sweep, recorder.record):
            say(f"the sweep ends: {said}")
            return
        runs = [run for _, run in group]
        for trial in trials:
            trial.status = "running"
            say(f"trial {trial.number}: in lock-step with {len(runs) - 1} others, {describe(trial.point)}")
        recorder.write(force=True)
        train_group(sweep, base, shared, recorder, runs, trials, say)


def train_group(
    sweep: Sweep,
    base: config.Run,
    shared: Shared | None,
    recorder: Recorder,
    runs: list[config.Run],
    trials: list[Trial],
    say: Say,
) -> None:
    before = [trial.seconds for trial in trials]
    started = time.monotonic()
    for attempt in range(sweep.max_failures + 1):
        try:
            with prepared(runs[0], (), say, shared, beside=runs[1:]) as ready:
                fit(ready, say)
                found = [measure(sweep, base, *alone(ready, entrant)) for entrant in ready.job.entrants]
        except Exception as error:
            for trial in trials:
                trial.failures, trial.error = trial.failures + 1, str(error).strip().splitlines()[-1]
                trial.status = "failed"
            recorder.write(force=True)
            last = attempt == sweep.max_failures
            say(f"trials {trials[0].number} to {trials[-1].number}: {'failed' if last else 'tried again'}: {error}")
            continue
        each = (time.monotonic() - started) / len(runs)
        for trial, run, values, so_far in zip(trials, runs, found, before, strict=True):
            trial.seconds, trial.status, trial.error = so_far + each, "finished", ""
            trial.values = values | {"seconds": trial.seconds}
            lines = read_metrics(checkpoint.uri_of(run), run.storage)
            trial.curve = [(int(line["views"]), mean(unexplained(line))) for line in lines]
            trial.views = int(lines[-1]["views"])
            storage.write_json(outcome_uri(run), trial.values, run.storage)
            said = ", ".join(f"{o.metric} {short(trial.values[o.metric])}" for o in sweep.objective)
            say(f"trial {trial.number}: finished, {said}")
        recorder.write(force=True)
        return


def alone(ready: Ready, entrant: Entrant) -> tuple[Ready, Result]:
    """What is ready and what came of it, as if there were only one of the students."""
    run, uri = entrant.run, entrant.run_uri
    ref = checkpoint.choose(uri, run.storage)
    assert ref is not None
    job = replace(ready.job, run=run, run_uri=uri, token=entrant.token, beside=())
    return replace(ready, job=job), Result(uri, ref.name, read_metrics(uri, run.storage)[-1])


def mean(shares: dict[str, float]) -> float:
    return sum(shares.values()) / len(shares)
