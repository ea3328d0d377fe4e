"""What a sweep's figures say: the best trial, the Pareto front, and how much each parameter matters. Plain arithmetic.

A trial that has not finished has no value and takes no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathryoshka.sweep.record import Trial
from pathryoshka.sweep.space import Objective, Sweep, short

MIN_TRIALS = 10
"""Finished trials below which importances are not computed: a forest on fewer says nothing."""
NUM_REPEATS = 30


@dataclass(frozen=True)
class Importance:
    """How much worse a forest predicts the objective where one parameter is shuffled among the trials.

    Attributes:
        share: key -> its part of all parameters' (0 where shuffling it does no harm), largest first.
        explained: R^2 of the forest out of bag, which says how far to believe any of it.
    """

    share: dict[str, float]
    explained: float


def finished(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.status == "finished"]


def loss_of(trial: Trial, objective: Objective) -> float:
    """The trial's value, signed so that less is better."""
    return trial.values[objective.metric] * (1 if objective.mode == "min" else -1)


def best(trials: Sequence[Trial], objective: Objective) -> Trial | None:
    """The best of the finished trials by one objective; the earlier one of equals."""
    return min(finished(trials), key=lambda t: (loss_of(t, objective), t.number), default=None)


def pareto(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Finished trials that no other one beats: none is at least as good in every objective and better in one."""
    done = finished(trials)
    losses = {t.id: np.array([loss_of(t, o) for o in objectives]) for t in done}

    def beaten(trial: Trial) -> bool:
        mine = losses[trial.id]
        return any((other <= mine).all() and (other < mine).any() for other in losses.values())

    return sorted((t for t in done if not beaten(t)), key=lambda t: loss_of(t, objectives[0]))


def position(key: str, value: object, sweep: Sweep) -> float:
    """Where a value lies on its axis, 0 to 1: by its logarithm on a logarithmic axis, by its place in a list."""
    axis = sweep.space[key]
    if axis.values is not None:
        names = [short(v) for v in axis.values]
        return names.index(short(value)) / max(1, len(names) - 1) if short(value) in names else 0.0
    low, high = axis.uniform or axis.loguniform or axis.integers or (0, 1)
    x = float(value)  # type: ignore[arg-type]
    if axis.loguniform:
        low, high, x = np.log(low), np.log(high), np.log(x)
    return float((x - low) / (high - low))


def importance(trials: Sequence[Trial], sweep: Sweep) -> Importance | str:
    """Of each parameter for the first objective, or a sentence why it cannot be told.

    A random forest learns the objective from the points (choices that are no numbers one column a choice), and each
    parameter is shuffled among the trials it did not learn from.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    done = finished(trials)
    if len(done) < MIN_TRIALS:
        return f"Importances need at least {MIN_TRIALS} finished trials; there are {len(done)}."
    columns: list[np.ndarray] = []
    owner: list[str] = []
    for key, axis in sweep.space.items():
        values = [trial.point[key] for trial in done]
        if len({short(v) for v in values}) < 2:
            continue
        if axis.values is not None and not all(isinstance(v, int | float) for v in values):
            for name in sorted({short(v) for v in values}):
                columns.append(np.array([short(v) == name for v in values], float))
                owner.append(key)
        else:
            columns.append(np.array([position(key, v, sweep) for v in values]))
            owner.append(key)
    if not columns:
        return "All finished trials have the same parameters."
    x, y = np.stack(columns, axis=1), np.array([loss_of(t, sweep.objective[0]) for t in done])
    if y.std() == 0:
        return "All finished trials have the same value."
    rng = np.random.default_rng(0)
    harm = dict.fromkeys(dict.fromkeys(owner), 0.0)
    predicted = np.empty_like(y)
    for train, test in KFold(min(5, len(y)), shuffle=True, random_state=0).split(x):
        forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0).fit(x[train], y[train])
        predicted[test] = forest.predict(x[test])
        for key in harm:
            mine = [i for i, name in enumerate(owner) if name == key]
            for _ in range(NUM_REPEATS):
                shuffled = x[test].copy()
                shuffled[:, mine] = x[rng.permutation(len(y))[: len(test)]][:, mine]
                harm[key] += float(((forest.predict(shuffled) - y[test]) ** 2 - (predicted[test] - y[test]) ** 2).sum())
    harm = {key: max(0.0, value) for key, value in harm.items()}
    total = sum(harm.values()) or 1.0
    share = {key: value / total for key, value in sorted(harm.items(), key=lambda item: -item[1])}
    return Importance(share, float(1 - ((predicted - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()))
