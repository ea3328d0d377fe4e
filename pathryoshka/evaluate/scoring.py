"""One embedding at one width by every protocol: what is asked, what a score means, and what came of it.

Rows are L2-normalised first, because that is how an embedding is stored and compared; a width is the first numbers of a
row, normalised again. Nothing is ever scored on a group (patient, where there is one) that was learned from: probes by
folds, few-shot and retrieval by leaving out the query's own group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pathryoshka import config
from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols.knn import knn_probe
from pathryoshka.evaluate.protocols.linear import linear_probe
from pathryoshka.evaluate.tally import Profile, balanced_mean_of


@dataclass(frozen=True)
class Protocol:
    """What a score is. `share`: it lies between 0 and 1, as its interval then does."""

    title: str
    metric: str
    share: bool = True
    higher_is_better: bool = True


PROTOCOLS: dict[str, Protocol] = {
    "linear": Protocol("linear probe", "balanced accuracy of a logistic regression, penalty chosen on validation"),
    "knn": Protocol("nearest neighbours", "balanced accuracy of a vote by cosine, k chosen on validation"),
    "calibration": Protocol("calibration", "expected calibration error of the linear probe", higher_is_better=False),
}
"""By the name that rows carry."""


@dataclass(frozen=True)
class Task:
    """Labelled tiles in groups.

    Attributes:
        labels: [N] strings. groups: [N] numbers of `group_names`.
        scored: rows that are in the test part of some fold: all of them in cross-validation.
    """

    labels: np.ndarray
    groups: np.ndarray
    group_names: tuple[str, ...]
    folds: tuple[Fold, ...]

    @property
    def scored(self) -> np.ndarray:
        return np.sort(np.concatenate([fold.test for fold in self.folds]))

    @property
    def scored_groups(self) -> tuple[str, ...]:
        """Names of the groups that profiles are made of, in their order."""
        return tuple(self.group_names[g] for g in np.unique(self.groups[self.scored]))


@dataclass(frozen=True)
class Predicted:
    """What a probe says of the rows that it was scored on.

    Attributes:
        rows: [M] numbers. labels: [M] strings. confidence: [M] probability of the true class.
    """

    rows: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class Found:
    """Of one encoder at one width."""

    profiles: dict[str, Profile] = field(default_factory=dict)
    predictions: dict[str, Predicted] = field(default_factory=dict)


def normalise(x_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1, fp64 [N, D]; a row of zeros stays one."""
    x_ND = np.asarray(x_ND, np.float64)
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def cut(x_ND: np.ndarray, width: int) -> np.ndarray:
    """The first `width` numbers of every row, normalised again: fp64 [N, width]."""
    return normalise(x_ND[:, :width])


def make_task(labels: np.ndarray, groups: np.ndarray, folds: Sequence[Fold]) -> Task:
    names, codes = np.unique(groups, return_inverse=True)
    return Task(labels, codes, tuple(names.tolist()), tuple(folds))


def refuse_unknown(protocols: Sequence[str]) -> None:
    """Raises ConfigError for a name that no family has."""
    for name in protocols:
        if name not in FAMILIES:
            raise config.ConfigError(f"evaluate.protocols names {name!r}; there are {', '.join(FAMILIES)}")


PROBES = {"linear": linear_probe, "knn": knn_probe}
FAMILIES = ("linear", "knn")


def score(task: Task, x_ND: np.ndarray, protocols: Sequence[str]) -> Found:
    """Every protocol on rows of length 1 (see `cut`)."""
    return score_folds(task, [x_ND] * len(task.folds), protocols)


def score_folds(task: Task, x_by_fold: Sequence[np.ndarray], protocols: Sequence[str]) -> Found:
    """The same where each fold has rows of its own, made by a transform that was fitted on its training rows."""
    found = Found()
    for name in protocols:
        if name in PROBES:
            probe(task, x_by_fold, name, found)
    return found


def probe(task: Task, x_by_fold: Sequence[np.ndarray], name: str, found: Found) -> None:
    rows, said, confidence = [], [], []
    for fold, x_ND in zip(task.folds, x_by_fold, strict=True):
        labels, shares, classes = PROBES[name](x_ND, task.labels, fold)
        column = np.searchsorted(classes, task.labels[fold.test])
        rows.append(fold.test)
        said.append(labels)
        confidence.append(shares[np.arange(len(labels)), column])
    order = np.argsort(np.concatenate(rows))
    predicted = Predicted(*(np.concatenate(parts)[order] for parts in (rows, said, confidence)))
    found.predictions[name] = predicted
    hits = (predicted.labels == task.labels[predicted.rows]).astype(float)
    groups, num_groups = scored_groups(task, predicted.rows)
    found.profiles[name] = balanced_mean_of(hits, task.labels[predicted.rows], groups, num_groups).profile


def scored_groups(task: Task, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers of the groups of `rows` among those that are scored at all, and how many these are."""
    scored, codes = np.unique(task.groups[rows], return_inverse=True)
    return codes, len(scored)
