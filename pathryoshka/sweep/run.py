"""The sweep itself: session, teachers, board and Tune wired once; resumable as a whole.

Tune keeps its state beside the record (`<storage.root>/<sweep>/`), at most ten seconds old. What it forgot when its
driver was killed the trials know: one that has finished left its outcome, one that has not left its checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray import tune

from pathryoshka import storage
from pathryoshka.changes import FREE, differences
from pathryoshka.config import ConfigError, Run
from pathryoshka.runs import results
from pathryoshka.runs.devices import DeviceError, student_demand, teacher_demand
from pathryoshka.runs.inputs import must_load, student_grid, with_only
from pathryoshka.session import beside_the_driver, on_cluster, ray_session
from pathryoshka.sweep.board import Board, stop_all
from pathryoshka.sweep.dashboard import provision
from pathryoshka.sweep.follow import Budget, BudgetSpent, Follow
from pathryoshka.sweep.record import Record, Recorder, sweep_uri
from pathryoshka.sweep.space import Sweep, corners, points, run_of
from pathryoshka.sweep.together import run_groups
from pathryoshka.sweep.trial import Settings, TrialActor, encode
from pathryoshka.teachers.pool import Shared, TeacherPool

Say = Callable[[str], None]
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables; the sweep says a line for whatever happens
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep as it ends a run: in order, exit code 130
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run_sweep(sweep: Sweep, base: Run, *, resume: bool = False, say: Say = print) -> Record:
    """Runs, or goes on with, every trial; returns what became of them. A trial that fails is retried and reported.

    Raises:
        ConfigError: the sweep exists and `resume` was not said, or the other way round.
        DeviceError: not even one trial fits. KeyboardInterrupt: all trials were ended in order.
    """
    uri = sweep_uri(base)
    recorder = start_record(sweep, base, resume)
    os.environ.update(QUIET)
    if not os.environ.get("PATHRYOSHKA_DEBUG"):
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `Follow` says of each failure why
    storage.ensure_root(base.storage.root, base.storage)
    runs = [run_of(base, point) for point in points(sweep) or corners(sweep)]
    # a teacher whose features a store has in full is not loaded, unless unseen tiles are to be shown to it
    runs = runs if validates(sweep) else [must_load(run, say) for run in runs]
    asked = [name for name in base.teachers.models if any(name in run.teachers.models for run in runs)]
    share = sweep.share_teachers and may_share(sweep) and bool(asked)
    if validates(sweep) and base.store.uri and not share:
        raise ConfigError(
            "an objective of validation needs loaded teachers beside a store, and these trials cannot share any"
        )
    with ray_session(session_cpus(sweep, runs, share), dashboard=True, say=say):
        at_once = concurrency(sweep, runs, share)
        many = f"{len(points(sweep)) or sweep.num_trials} trials by {sweep.search} search"
        together = f"{sweep.lockstep} in lock-step" if sweep.lockstep else f"{at_once} at a time"
        say(f"sweep {uri}: {many}, {together}{', one pool of teachers for all' if share else ''}")
        if any(o.metric.startswith("probe") for o in sweep.objective):
            results.seen_by(base)
        with contextlib.ExitStack() as stack:
            shared = stack.enter_context(shared_teachers(with_only(base, asked), say)) if share else None
            stack.callback(settle, recorder)
            if sweep.lockstep:
                run_groups(sweep, base, shared, recorder, say)
                return recorder.record
            name = f"{base.name}/board"
            board = Board.options(name=name, **beside_the_driver()).remote(base.name)  # type: ignore[attr-defined]
            stack.callback(ray.kill, board)
            stack.callback(stop_all, board, say)
            say(f"dashboards: {', '.join(provision(base))}; tensorboard --logdir {storage.join(uri, 'tune')}")
            budget = Budget(sweep, recorder)
            settings = Settings(sweep, base, shared, name)
            try:
                tuner_of(settings, Follow(sweep, recorder, name, say), budget, at_once, resume).fit()
            except (BudgetSpent, tune.TuneError):
                if budget.spent is None:
                    raise
                say(f"the sweep ends: {budget.spent}; --resume with a larger one goes on")
    return recorder.record


def settle(recorder: Recorder) -> None:
    """What still runs when the sweep ends is stopped."""
    for trial in recorder.record.with_status("running"):
        trial.status = "stopped"
    recorder.write(force=True)


def start_record(sweep: Sweep, base: Run, resume: bool) -> Recorder:
    """The record to go on with; keeps the sweep's section and base, and refuses others under the same name."""
    uri, cfg = storage.join(sweep_uri(base), "config.json"), base.storage
    now = {"sweep": sweep.model_dump(mode="json"), "base": base.model_dump(mode="json")}
    there = storage.exists(uri, cfg)
    if there and not resume:
        raise ConfigError(f"sweep {sweep_uri(base)} exists; go on with --resume, or choose another name")
    if resume and not there:
        raise ConfigError(f"there is no sweep {sweep_uri(base)} to resume; leave --resume out to begin it")
    if there:
        old = storage.read_json(uri, cfg)
        free = {"max_hours", "max_views", "max_cost", "cost_per_hour", "max_concurrent", "share_teachers", "objective"}
        for key in sorted(set(now["sweep"]) - free):
            if old["sweep"].get(key) != now["sweep"][key]:
                raise ConfigError(f"sweep {base.name} exists with another sweep.{key}; use the old one or another name")
        for key, was, is_now in differences(old["base"], now["base"]):
            if not FREE.fullmatch(key):
                raise ConfigError(
                    f"sweep {base.name} exists with {key} = {was!r}, not {is_now!r}; use the old value or another name"
                )
    storage.write_json(uri, now, cfg)
    return Recorder(base)


def tuner_of(settings: Settings, follow: Follow, budget: Budget, at_once: int, resume: bool) -> tune.Tuner:
    """A Tuner that begins, or one that goes on where Tune's own snapshot stands (if the last one came that far)."""
    sweep, base = settings.sweep, settings.base
    trainable = tune.with_resources(tune.with_parameters(TrialActor, settings=settings), {"CPU": 0.01})
    files, path = storage.filesystem(storage.join(sweep_uri(base), "tune"), base.storage)
    run_config = tune.RunConfig(
        name="tune",
        storage_path=path.removesuffix("/tune"),
        storage_filesystem=files,
        failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
        # a trial keeps its own checkpoints; Tune has none of it
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        callbacks=[follow],
        stop=budget,
        verbose=0,
    )
    if resume and tune.Tuner.can_restore(path, storage_filesystem=files):
        tuner = tune.Tuner.restore(path, trainable, resume_unfinished=True, storage_filesystem=files)
        inner: Any = tuner._local_tuner  # the only way to give a restored Tuner the callbacks of this process
        inner._run_config.callbacks, inner._run_config.stop = [follow], budget
        return tuner
    space, search = param_space(sweep)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=sweep.num_trials if sweep.search == "optuna" else 1,
            max_concurrent_trials=at_once,
            search_alg=search,
            scheduler=scheduler_of(sweep, base),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=run_config,
    )


def param_space(sweep: Sweep) -> tuple[dict[str, Any], Any]:
    """(param space, search algorithm): points that are known beforehand as a grid of them, or axes for Optuna."""
    known = points(sweep)
    if known:
        return {"point": tune.grid_search([encode(point) for point in known])}, None
    from optuna.samplers import TPESampler
    from ray.tune.search.optuna import OptunaSearch

    axes: dict[str, Any] = {}
    for key, axis in sweep.space.items():
        if axis.uniform:
            axes[key] = tune.uniform(*axis.uniform)
        elif axis.loguniform:
            axes[key] = tune.loguniform(*axis.loguniform)
        elif axis.integers:
            axes[key] = tune.randint(axis.integers[0], axis.integers[1] + 1)
        else:
            axes[key] = tune.choice([encode({key: value})[key] for value in axis.values or ()])
    metrics = [f"objective/{o.metric}" for o in sweep.objective]
    # TPE also for several objectives: NSGA-II is random search until its first 50 trials are done
    sampler = TPESampler(seed=sweep.seed, multivariate=True, constant_liar=True)
    search = OptunaSearch(metric=metrics, mode=[o.mode for o in sweep.objective], sampler=sampler)  # type: ignore[arg-type]
    return {"point": axes}, search


def scheduler_of(sweep: Sweep, base: Run) -> Any:
    if sweep.scheduler == "none":
        return None
    longest = max(run_of(base, point).plan.num_views for point in points(sweep) or corners(sweep))
    return tune.schedulers.ASHAScheduler(
        time_attr="views",
        metric="unexplained",
        mode="min",
        max_t=longest,
        grace_period=max(1, round(sweep.rungs.grace_share * longest)),
        reduction_factor=sweep.rungs.reduction,
    )


# ---------------------------------------------------------------- teachers and devices


def validates(sweep: Sweep) -> bool:
    return bool(sweep.validation.tiles)


def may_share(sweep: Sweep) -> bool:
    """Whether the teachers answer alike in all trials: same rows on views of one size on one grid (or some of them)."""
    changes = ("teachers.models.", "views.size", "student.model")
    return not any(key.startswith(changes) for key in sweep.space)


@contextlib.contextmanager
def shared_teachers(base: Run, say: Say) -> Iterator[Shared]:
    """One pool for all trials. A teacher that is given up fails each trial with its own last error."""
    prefix = f"{base.name}/teachers"
    grid = student_grid(base)
    with TeacherPool(prefix, base.teachers, grid, base.views.size, base.storage, say=say) as pool:
        yield Shared(f"{prefix}/directory", pool.wait_ready())


def session_cpus(sweep: Sweep, runs: list[Run], share: bool) -> int:
    """Logical CPUs of a session of this machine: all stages of the trials that run at a time, and one that ends."""
    at_once = sweep.max_concurrent or local_concurrency(runs)
    each = max(student_demand(run, False)["CPU"] + (0 if share else cpus(run)) for run in runs)
    return max(os.cpu_count() or 1, int(each * (at_once + 1) + share * max(cpus(run) for run in runs)) + 2)


def cpus(run: Run) -> float:
    return teacher_demand(run, False).get("CPU", 0)


def local_concurrency(runs: list[Run]) -> int:
    """Trials that keep the cores of this machine busy: one train worker a core."""
    return max(1, (os.cpu_count() or 1) // max(max(run.worker_counts) for run in runs))


def concurrency(sweep: Sweep, runs: list[Run], share: bool) -> int:
    """Trials at a time: what was said, else as many as the session's devices hold.

    Raises:
        DeviceError: not even one.
    """
    have = ray.cluster_resources()
    gpus = have.get("GPU", 0) > 0
    held: dict[str, float] = {}
    for run in runs if share else []:
        held = {k: max(held.get(k, 0), v) for k, v in {**held, **teacher_demand(run, gpus)}.items()}
    most = sweep.max_concurrent or (len(runs) if on_cluster() or gpus else local_concurrency(runs))
    for run in runs:
        need = student_demand(run, gpus)
        for key, value in {} if share else teacher_demand(run, gpus).items():
            need[key] = need.get(key, 0) + value
        for key, value in need.items():
            fit = int((have.get(key, 0) - held.get(key, 0)) // value) if value else most
            if fit < 1:
                raise DeviceError(
                    f"a trial needs {value:g} {key}, and {have.get(key, 0) - held.get(key, 0):g} are free beside the "
                    "shared teachers; lower replicas or workers, or point RAY_ADDRESS at a larger cluster"
                )
            most = min(most, fit)
    return most
