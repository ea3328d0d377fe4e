"""One embedding at one width by every protocol: what is asked, what a score means, and what came of it.

Rows are L2-normalised first, because that is how an embedding is stored and compared; a width is the first numbers of a
row, normalised again. Nothing is ever scored on a group (patient, where there is one) that was learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from pathryoshka import config
from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols.calibration import calibration
from pathryoshka.evaluate.protocols.clustering import cluster
from pathryoshka.evaluate.protocols.fewshot import SHOTS, Supports, draw_supports, few_shot
from pathryoshka.evaluate.protocols.knn import knn_probe
from pathryoshka.evaluate.protocols.linear import linear_probe
from pathryoshka.evaluate.protocols.retrieval import retrieve
from pathryoshka.evaluate.protocols.rows import Predictions
from pathryoshka.evaluate.protocols.stain import stain_stability
from pathryoshka.evaluate.tally import Profile, Tally, balanced_mean_of


@dataclass(frozen=True)
class Protocol:
    """What a score is. `share`: it lies between 0 and 1, as its interval then does; `signed`: between -1 and 1."""

    title: str
    metric: str
    share: bool = True
    higher_is_better: bool = True
    signed: bool = False


ALWAYS = ("linear", "knn")
"""Families that every evaluation has: figures and their tables are drawn from them."""
BALANCED = "balanced accuracy"
SHARE_FOUND = "share of tiles whose twin is among the ten nearest, median over pairs of slides"
PROTOCOLS: dict[str, Protocol] = {
    "linear": Protocol("linear probe", f"{BALANCED} of a logistic regression, its penalty chosen on validation"),
    "knn": Protocol("nearest neighbours", f"{BALANCED} of a vote by cosine, the number of voters chosen on validation"),
    "calibration": Protocol("calibration", "expected calibration error of the linear probe", higher_is_better=False),
    **{
        f"few_shot/{n}": Protocol(
            f"{n} shot{'s' if n > 1 else ''}", f"{BALANCED} of the nearest of the class centroids"
        )
        for n in SHOTS
    },
    "retrieval/any@1": Protocol("first hit", "share of queries whose nearest tile of another unit is of their class"),
    "retrieval/majority@5": Protocol("five hits", "share of queries of whose five nearest most are of their class"),
    "retrieval/map": Protocol("mean average precision", "of a search for the query's class among other units"),
    "clustering": Protocol("clustering", "adjusted Rand index of k-means", share=False),
    "adam": Protocol("linear probe by Adam", f"{BALANCED} of kaiko eva's head on rows of length 1, mean of 5 seeds"),
    "attention": Protocol("attention", f"{BALANCED} of slides by gated attention over their tiles"),
    "stain/found": Protocol("stained anew", "share of tiles that a search with the same tile in other stains finds"),
    "stain/cosine": Protocol("stain cosine", "mean cosine of a tile and itself in other stains", signed=True),
    "expression": Protocol(
        "gene expression", "Pearson's correlation of a ridge, mean over genes and folds", signed=True
    ),
    "robustness": Protocol(
        "robustness index", "same class of other hospitals among neighbours, against other classes of the same hospital"
    ),
    "robustness/vote": Protocol("vote across hospitals", f"{BALANCED} of the same neighbours' majority"),
    "pairs/score": Protocol("PLISM score", "mean of the median cosine and of the three top-10 shares", signed=True),
    "pairs/cosine": Protocol("cosine of pairs", "median over pairs of slides of the same tissue's cosine", signed=True),
    **{
        f"pairs/{kind}": Protocol(f"top 10 across {what}", f"{SHARE_FOUND} that differ in {differ}")
        for kind, what, differ in (
            ("scanner", "scanners", "scanner alone"),
            ("stain", "stains", "stain alone"),
            ("both", "both", "scanner and stain"),
        )
    },
}
"""By the name that rows carry."""
DRAWN: dict[str, tuple[str, ...]] = {
    "classification": ALWAYS,
    "regression": ("expression",),
    "pairs": ("pairs/score", "pairs/cosine"),
    "robustness": ("robustness", "robustness/vote"),
}
"""Task of a data set -> the scores that its figure and its tables by width are of; the first is the one that counts."""
UNITS = {
    "classification": BALANCED,
    "regression": "Pearson correlation",
    "pairs": "PLISM score, cosine",
    "robustness": "robustness index",
}
"""What the first of them is measured in."""


@dataclass(frozen=True)
class Task:
    """Labelled tiles in groups, and who learns and is scored on what.

    Attributes:
        labels: [N] strings. groups: [N] numbers of `group_names`.
        supports: the draws of few-shot, the same for every encoder and width.
        restained: [n] rows of which there is a copy in other stains.
    """

    labels: np.ndarray
    groups: np.ndarray
    group_names: tuple[str, ...]
    folds: tuple[Fold, ...]
    supports: Supports
    restained: np.ndarray

    @cached_property
    def scored_groups(self) -> np.ndarray:
        """Numbers, ascending, of the groups of rows that some fold tests: those that profiles are made of."""
        return np.unique(np.concatenate([self.groups[fold.test] for fold in self.folds]))

    def only(self, fold: int) -> Task:
        """The task of one of the folds."""
        supports = Supports(self.supports.shots, self.supports.rows[fold : fold + 1])
        return replace(self, folds=self.folds[fold : fold + 1], supports=supports)


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
class Answers:
    """What the protocols say, before it is a score."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    predictions: dict[str, Predicted] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """Of one encoder at one width: scores by protocol, predictions by probe."""

    profiles: dict[str, Profile]
    predictions: dict[str, Predicted]


def normalise(x_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1, fp32 [N, D]; a row of zeros stays one."""
    x_ND = np.asarray(x_ND, np.float64)
    return (x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def cut(x_ND: np.ndarray, width: int) -> np.ndarray:
    """The first `width` numbers of every row, normalised again: fp32 [N, width]."""
    return normalise(x_ND[:, :width])


def make_task(
    labels: np.ndarray, groups: np.ndarray, folds: Sequence[Fold], restained: np.ndarray | None = None
) -> Task:
    names, codes = np.unique(groups, return_inverse=True)
    rows = np.empty(0, int) if restained is None else restained
    return Task(labels, codes, tuple(names.tolist()), tuple(folds), draw_supports(labels, codes, folds), rows)


def score(
    task: Task,
    x_ND: np.ndarray,
    protocols: Sequence[str],
    *,
    restained: np.ndarray | None = None,
    tiles: tuple[np.ndarray, np.ndarray] | None = None,
) -> Found:
    """Every family of protocols on rows of length 1 (see `cut`).

    Args:
        restained: [n, D] rows of length 1: the tiles `task.restained` in other stains.
        tiles: where rows are slides: [M, D] rows of length 1 of their tiles, and [M] the number of each tile's slide.

    Raises:
        ConfigError: a family that does not exist. ProtocolError: rows that cannot be scored.
    """
    answers = asked(task, x_ND, protocols)
    if restained is not None and len(restained):
        stain = stain_stability(x_ND, restained, task.restained, task.groups)
        answers.tallies.update({"stain/found": stain.found, "stain/cosine": stain.cosine})
    if tiles is not None:
        from pathryoshka.evaluate.protocols.mil import slide_labels  # torch, which nothing else here needs

        enter(task, "attention", slide_labels(*tiles, task.labels, task.groups, task.folds).slides, answers)
    return found_of(task, answers)


def score_folds(task: Task, x_by_fold: Sequence[np.ndarray], protocols: Sequence[str]) -> Found:
    """The same where each fold has rows of its own, made by a transform that was fitted on the rows it learns from.

    Folds are scored one by one and their sums added. Clusters of two folds have nothing in common, so there are none.
    """
    names = [name for name in protocols if name != "clustering"]
    parts = [asked(task.only(i), x_ND, names) for i, x_ND in enumerate(x_by_fold)]
    first = parts[0]
    for part in parts[1:]:
        for name, tally in part.tallies.items():
            first.tallies[name] = Tally(first.tallies[name].sums + tally.sums, tally.finish)
        for name, said in part.predictions.items():
            first.predictions[name] = joined(first.predictions[name], said)
    return found_of(task, first)


def asked(task: Task, x_ND: np.ndarray, protocols: Sequence[str]) -> Answers:
    answers = Answers()
    for name in protocols:
        if name not in FAMILIES:
            raise config.ConfigError(f"evaluate.protocols names {name!r}; there are {', '.join(FAMILIES)}")
        FAMILIES[name](task, x_ND, answers)
    return answers


def found_of(task: Task, answers: Answers) -> Found:
    """Profiles are of the groups that are scored: one that is only learned from would count as one without effect."""
    profiles = {
        name: Tally(tally.sums[task.scored_groups], tally.finish).profile
        for name, tally in answers.tallies.items()
        if name in PROTOCOLS
    }
    return Found(profiles, answers.predictions)


def joined(one: Predicted, other: Predicted) -> Predicted:
    rows = np.concatenate([one.rows, other.rows])
    order = np.argsort(rows)
    labels, confidence = (np.concatenate(pair)[order] for pair in ((one.labels, other.labels),
                                                                   (one.confidence, other.confidence)))  # fmt: skip
    return Predicted(rows[order], labels, confidence)


# ---------------------------------------------------------------- the families


def linear(task: Task, x_ND: np.ndarray, answers: Answers) -> None:
    said = linear_probe(x_ND, task.labels, task.groups, task.folds)
    enter(task, "linear", said, answers)
    answers.tallies["calibration"] = calibration(said.probabilities, task.labels, task.groups).balanced


def knn(task: Task, x_ND: np.ndarray, answers: Answers) -> None:
    enter(task, "knn", knn_probe(x_ND, task.labels, task.groups, task.folds), answers)


def adam(task: Task, x_ND: np.ndarray, answers: Answers) -> None:
    from pathryoshka.evaluate.adam_probe import adam_probe  # torch, which nothing else here needs

    (seeds,) = adam_probe(x_ND, task.labels, task.groups, task.folds)
    hits = np.mean([np.where(s.predicted != "", s.predicted == task.labels, np.nan) for s in seeds], axis=0)
    answers.tallies["adam"] = balanced_mean_of(hits, task.labels, task.groups, len(task.group_names))


def few_shots(task: Task, x_ND: np.ndarray, answers: Answers) -> None:
    result = few_shot(x_ND, task.labels, task.groups, task.folds, task.supports)
    answers.tallies.update({f"few_shot/{n}": tally for n, tally in result.scores.items()})


def retrieval(task: Task, x_ND: np.ndarray, answers: Answers) -> None:
    result = retrieve(x_ND, task.labels, task.groups, task.folds)
    answers.tallies.update({f"retrieval/{name}": tally for name, tally in result.scores.items()})


def clustering(task: Task, x_ND: np.ndarray, answers: Answers) -> None:
    answers.tallies["clustering"] = cluster(x_ND, task.labels, task.groups, task.folds).score


FAMILIES: dict[str, Callable[[Task, np.ndarray, Answers], None]] = {
    "linear": linear,
    "knn": knn,
    "adam": adam,
    "few_shot": few_shots,
    "retrieval": retrieval,
    "clustering": clustering,
}
"""What `evaluate.protocols` may name; each gives one or more scores."""


def enter(task: Task, name: str, said: Predictions, answers: Answers) -> None:
    rows = np.flatnonzero(said.predicted != "")
    column = np.searchsorted(said.classes, task.labels[rows])
    answers.predictions[name] = Predicted(rows, said.predicted[rows], said.probabilities[rows, column])
    answers.tallies[name] = said.score
