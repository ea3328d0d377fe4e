"""Trials in lock-step: several students on one stream, so that reading, views and teachers are paid for once.

For points that are known beforehand and differ only in student, loss, optimizer and standardisers. They train to the
end together, or by successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all of them to the first rung,
the best one of `rungs.reduction` to the next; or as a population, see `population`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.distill.learner import Entrant
from pathryoshka.distill.metrics import mean_unexplained, read_metrics
from pathryoshka.runs.driver import NotFinite, Ready, Result, fit, prepared, refuse_unlike
from pathryoshka.sweep.follow import spent
from pathryoshka.sweep.objective import measure
from pathryoshka.sweep.population import decided, evolve
from pathryoshka.sweep.record import Recorder, Trial, outcome_uri
from pathryoshka.sweep.space import Point, Sweep, describe, points, short
from pathryoshka.sweep.trial import trial_run
from pathryoshka.teachers.pool import Shared

Say = Callable[[str], None]
Entry = tuple[Point, config.Run]


def run_groups(sweep: Sweep, base: config.Run, shared: Shared | None, recorder: Recorder, say: Say) -> None:
    """Rung after rung, group after group, until all is done or a budget is spent. A group that fails is tried again
    from its checkpoints and then reported, and the next one begins. What a rung decides follows from the trials' curves
    alone, so a sweep that is resumed decides the same."""
    trials = recorder.record.trials
    alive = entries_of(sweep, base, trials)
    rungs = rungs_of(sweep, alive[0][1].plan.num_views)
    for rung in rungs:
        until = rung if rung < rungs[-1] else None
        # at first as they come, so that a group that was interrupted comes again; then whoever can share a stream
        pools = [alive] if rung == rungs[0] else by_past(alive)
        groups = [
            pool[start : start + sweep.lockstep] for pool in pools for start in range(0, len(pool), sweep.lockstep)
        ]
        for group in [] if decided(recorder.record, rung) else groups:
            todo = [(point, run) for point, run in group if not arrived(trials.get(run.name), until)]
            if not todo:
                continue
            if said := spent(sweep, recorder.record):
                say(f"the sweep ends: {said}")
                return
            train_group(sweep, base, shared, recorder, todo, until, say)
        if until and sweep.scheduler == "pbt":
            runs = [run for _, run in alive]
            scores = {run.name: at_rung(trials[run.name], rung) for run in runs}
            if all(score is None for score in scores.values()):
                return
            evolve(sweep, runs, scores, rung, recorder, say)
            alive = entries_of(sweep, base, trials)
        elif until:
            alive = survivors(alive, trials, rung, sweep.rungs.reduction, say)
            recorder.write(force=True)


def entries_of(sweep: Sweep, base: config.Run, trials: Mapping[str, Trial]) -> list[Entry]:
    """The points in their order, as they are by now, with the runs that they stand for.

    Raises:
        ConfigError: two that train together need streams of their own; names the section.
    """
    named = {f"t{n:04d}": point for n, point in enumerate(points(sweep))}
    now = {name: trials[name].point if name in trials else point for name, point in named.items()}
    entries = [(point, trial_run(sweep, base, point, name)) for name, point in now.items()]
    together = sweep.lockstep if sweep.scheduler == "none" else len(entries)
    for start in range(0, len(entries), together):
        refuse_unlike([run for _, run in entries[start : start + together]])
    return entries


def rungs_of(sweep: Sweep, num_views: int) -> list[int]:
    """Views after which trials are compared, ascending; the last is the whole plan."""
    rungs: list[int] = []
    first, reduction = sweep.rungs.grace_share * num_views, sweep.rungs.reduction
    while sweep.scheduler != "none":
        done = len(rungs)
        rung = round(first * (reduction**done if sweep.scheduler == "halving" else done + 1))
        if rung >= num_views:
            break
        rungs.append(rung)
    return [*rungs, num_views]


def by_past(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Those that have trained on the same views, each once, can go on together; order differs from stream to stream."""
    past: dict[int, list[Entry]] = {}
    for point, run in entries:
        _, ledger = checkpoint.current_ledger(checkpoint.uri_of(run), run.storage)
        past.setdefault(ledger.digest(), []).append((point, run))
    return list(past.values())


def arrived(trial: Trial | None, until: int | None) -> bool:
    """Whether it has come to a rung; without one, whether it was measured at its end, which a rung may lie at, too."""
    if trial is None or until is None:
        return trial is not None and trial.status == "finished"
    return at_rung(trial, until) is not None


def at_rung(trial: Trial, rung: int) -> float | None:
    """Fraction unexplained at the log line of a rung, None where it has not come that far."""
    return next((value for views, value in trial.curve if views >= rung), None)


def survivors(
    entries: Sequence[Entry], trials: Mapping[str, Trial], rung: int, reduction: float, say: Say
) -> list[Entry]:
    """The best one of `reduction` of all that have reached a rung, at least one, in order; the others are stopped."""
    there = [trials[run.name] for _, run in entries if run.name in trials]
    values = {trial.id: value for trial in there if (value := at_rung(trial, rung)) is not None}
    best = sorted(values, key=lambda name: values[name])[: max(1, int(len(values) / reduction))]
    for trial in there:
        if trial.id in values and trial.id not in best and trial.status == "running":
            trial.status = "stopped"
            say(f"trial {trial.number}: stopped after {trial.views} views, {values[trial.id]:.4f} unexplained")
    return [entry for entry in entries if entry[1].name in best]


def train_group(
    sweep: Sweep,
    base: config.Run,
    shared: Shared | None,
    recorder: Recorder,
    group: Sequence[Entry],
    until: int | None,
    say: Say,
) -> None:
    """Trains a group to a rung, or to its end, where it is measured."""
    runs = [run for _, run in group]
    trials = [recorder.record.trial(run.name, point) for point, run in group]
    for trial in trials:
        trial.status = "running"
        say(f"trial {trial.number}: in lock-step with {len(group) - 1} others, {describe(trial.point)}")
    recorder.write(force=True)
    may_move = tuple(sweep.space) if sweep.scheduler == "pbt" else ()
    before = [trial.seconds for trial in trials]
    started = time.monotonic()
    for attempt in range(sweep.max_failures + 1):
        try:
            with prepared(runs[0], may_move, say, shared, beside=runs[1:]) as ready:
                fit(replace(ready, job=replace(ready.job, until=until)), say)
                measured = () if until else ready.job.entrants
                found = {each.run.name: measure(sweep, base, *alone(ready, each)) for each in measured}
        except NotFinite as error:
            # the same numbers would come again; without whoever they are of, the others go on from their checkpoints
            for trial in trials:
                trial.seconds += (time.monotonic() - started) / len(runs)
                if trial.id in error.runs:
                    trial.failures, trial.error, trial.status = trial.failures + 1, str(error), "failed"
                    say(f"trial {trial.number}: failed: {error}")
            recorder.write(force=True)
            if rest := [entry for entry in group if entry[1].name not in error.runs]:
                train_group(sweep, base, shared, recorder, rest, until, say)
            return
        except Exception as error:
            for trial in trials:
                trial.failures, trial.error = trial.failures + 1, str(error).strip().splitlines()[-1]
                trial.status = "failed"
            recorder.write(force=True)
            last = attempt == sweep.max_failures
            say(f"trials {trials[0].number} to {trials[-1].number}: {'failed' if last else 'tried again'}: {error}")
            continue
        each = (time.monotonic() - started) / len(runs)
        for trial, run, so_far in zip(trials, runs, before, strict=True):
            lines = read_metrics(checkpoint.uri_of(run), run.storage)
            trial.curve = [(int(line["views"]), mean_unexplained(line)) for line in lines]
            trial.views, trial.seconds = int(lines[-1]["views"]), so_far + each
            trial.status, trial.error = "running", ""
            if run.name in found:
                trial.status, trial.values = "finished", found[run.name] | {"seconds": trial.seconds}
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
