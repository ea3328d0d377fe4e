"""The ablation itself: one filling of the store, twins in lock-step on its stream, each scored; resumable by its runs.

A twin that has scores is done. One whose training broke off goes on from its checkpoints; a group that fails is
reported, and the next one begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pathryoshka import config, storage
from pathryoshka.ablate.table import Ablation, conclude
from pathryoshka.ablate.twins import ALL, Ablate, runs_of
from pathryoshka.distill import checkpoint
from pathryoshka.evaluate.across import Side
from pathryoshka.evaluate.record import PROFILES, read_profiles
from pathryoshka.runs import results, shelving
from pathryoshka.runs.devices import logical_cpus
from pathryoshka.runs.job import distill_together
from pathryoshka.session import ray_session

Say = Callable[[str], None]


class AblationError(RuntimeError):
    """Nothing that could be compared was trained; the sentence says why."""


def run_ablation(ablate: Ablate, base: config.Run, *, say: Say = print) -> Ablation:
    """Trains and scores what is missing, and draws the table from all that is there.

    Raises:
        AblationError: the twin of all teachers has no scores. ConfigError, StoreError: as a run and its store.
    """
    runs = runs_of(ablate, base)
    failed: dict[str, str] = {}
    todo = [run for some in runs.values() for run in some if not scored(run)]
    say(f"ablation {base.name}: {sum(map(len, runs.values()))} students of {len(runs)} twins, {len(todo)} to train")
    if todo:
        with ray_session(logical_cpus(base), say=say):
            if base.store.uri is not None:
                shelving.fill(base, say=say)
            for group in groups(todo, ablate.lockstep):
                train(group, failed, say)
    waiting = any(not scored(run) and trained(run) for some in runs.values() for run in some)
    seen = results.seen_by(runs[ALL][0]) if waiting else None  # the same for all, so it is read once
    for name, some in runs.items():
        for seed, run in enumerate(some):
            if not scored(run) and trained(run):
                results.evaluate_run(run, seen=seen, alone=(name, seed) != (ALL, 0), say=say)
    sides = {}
    for name, some in runs.items():
        there = [read_profiles(checkpoint.uri_of(run), run.storage) for run in some if scored(run)]
        if there:
            sides[name] = Side(name, tuple(there))
    if ALL not in sides:
        raise AblationError(f"no student of all teachers has been trained: {next(iter(failed.values()), 'see above')}")
    return conclude(sides, list(base.teachers.models), base.student.widths, failed)


def groups(runs: list[config.Run], at_once: int) -> Iterator[list[config.Run]]:
    """Runs that can share a stream, in order: those that ask for the same kinds of feature."""
    kinds = dict.fromkeys(run.kinds for run in runs)
    for kind in kinds:
        alike = [run for run in runs if run.kinds == kind]
        for start in range(0, len(alike), at_once):
            yield alike[start : start + at_once]


def train(group: list[config.Run], failed: dict[str, str], say: Say) -> None:
    names = ", ".join(run.name for run in group)
    waiting = [run for run in group if not trained(run)]
    if not waiting:
        return
    say(f"training in lock-step: {names}")
    try:
        distill_together(waiting, say=say)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        failed.update({run.name: reason for run in waiting if not trained(run)})
        say(f"failed: {names}: {reason}")


def trained(run: config.Run) -> bool:
    """Whether its whole plan was delivered."""
    return checkpoint.current_ledger(checkpoint.uri_of(run), run.storage)[1].count >= run.plan.num_views


def scored(run: config.Run) -> bool:
    return storage.exists(storage.join(checkpoint.uri_of(run), PROFILES), run.storage)
