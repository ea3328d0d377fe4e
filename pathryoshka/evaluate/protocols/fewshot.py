"""Few shots: the nearest class centroid of 1 to 16 labelled tiles a class, over a thousand draws of these tiles.

SimpleShot (Wang et al. 2019, CL2N): rows are centred on the mean of the rows that may be drawn, normalised, and a query
gets the class whose mean of support rows is nearest in Euclidean distance. Supports come from a fold's `fit` rows and
queries are its `test` rows, so that they never share a group; the tiles of a class's support come from different groups
where it has enough of them. Each draw is an order of 16 tiles a class whose first 1, 2, 4 ... are the smaller supports,
so that shots are compared on paired draws.

A support is a row of a sparse matrix of averages: all centroids of all draws are one product, and all distances to them
are another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols.rows import blocks, check, size
from pathryoshka.evaluate.tally import Tally, balanced_mean_of

SHOTS = (1, 2, 4, 8, 16)
NUM_DRAWS = 1000
CENTROIDS = 4096
"""Centroids that are compared with the queries at a time."""
AT_ONCE = 2**22
"""Random numbers that are sorted at a time."""


@dataclass(frozen=True)
class Supports:
    """Which rows are drawn, for every encoder and width alike.

    Attributes:
        shots: those of `SHOTS` that every class can give in every fold.
        rows: a fold: int [R, C, max(shots)] numbers of rows, in the order in which they are added.
    """

    shots: tuple[int, ...]
    rows: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class FewShot:
    """`accuracies`: shots -> [N] share of the draws that are right about a row, NaN where no fold tests it."""

    accuracies: dict[int, np.ndarray]
    scores: dict[int, Tally]


def draw_supports(
    labels: np.ndarray, groups: np.ndarray, folds: Sequence[Fold], num_draws: int = NUM_DRAWS, seed: int = 0
) -> Supports:
    """The draws, a function of labels, groups, folds and seed alone."""
    classes, codes = np.unique(labels, return_inverse=True)
    least = min(int(np.bincount(codes[fold.fit], minlength=len(classes)).min()) for fold in folds)
    shots = tuple(n for n in SHOTS if n <= least)
    if not shots:
        return Supports((), tuple(np.zeros((0, len(classes), 0), np.int64) for _ in folds))
    rows = []
    for number, fold in enumerate(folds):
        drawn = np.zeros((num_draws, len(classes), shots[-1]), np.int64)
        for c in range(len(classes)):
            of_class = fold.fit[codes[fold.fit] == c]
            drawn[:, c] = draw(
                of_class, groups[of_class], shots[-1], num_draws, np.random.default_rng((seed, number, c))
            )
        rows.append(drawn)
    return Supports(shots, tuple(rows))


def draw(rows: np.ndarray, groups: np.ndarray, num: int, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """[R, num] of `rows` [n], without replacement; no group gives a second row before all have given one.

    A group's rows are shuffled, then all are sorted by how many of their group came before and the luck of their group.
    """
    codes = np.unique(groups, return_inverse=True)[1]
    by_group = np.argsort(codes, kind="stable")
    rows, codes = rows[by_group], codes[by_group]
    starts = np.searchsorted(codes, codes)
    out = []
    for part in blocks(num_draws, max(1, AT_ONCE // len(rows))):
        luck = rng.random((len(range(num_draws)[part]), len(rows)))
        shuffled = np.argsort(codes + luck, axis=1)  # inside each group alone
        luck_of_group = rng.random((len(luck), int(codes[-1]) + 1))[:, codes]
        first = np.argsort(np.arange(len(rows)) - starts + luck_of_group, axis=1)[:, :num]
        out.append(rows[np.take_along_axis(shuffled, first, axis=1)])
    return np.concatenate(out)


def few_shot(
    x_ND: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: Sequence[Fold], supports: Supports
) -> FewShot:
    """The accuracy to expect of each row over the draws, and its balanced mean; empty where a class has no row to draw.

    Args:
        x_ND: rows of length 1; computed in fp32.
        labels: [N] strings.
        groups: [N] codes.
        supports: what `draw_supports` gives for the same labels, groups and folds.

    Raises:
        ProtocolError: see `rows.check`.
    """
    check(x_ND, labels, groups, folds)
    codes = np.unique(labels, return_inverse=True)[1]
    accuracies = {shots: np.full(len(labels), np.nan) for shots in supports.shots}
    for fold, rows in zip(folds, supports.rows, strict=True):
        centred = x_ND - x_ND[fold.fit].mean(0)
        centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        z_ND = centred.astype(np.float32)
        for shots in supports.shots:
            accuracies[shots][fold.test] = expected_hits(z_ND, codes, fold.test, rows[:, :, :shots])
    scores = {n: balanced_mean_of(hits, labels, groups, size(groups)) for n, hits in accuracies.items()}
    return FewShot(accuracies, scores)


def expected_hits(z_ND: np.ndarray, codes: np.ndarray, ask: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[M] share of draws `rows` [R, C, S] whose nearest centroid is of the query's class; first class wins ties."""
    num_draws, num_classes, shots = rows.shape
    by_class = np.argsort(codes[ask], kind="stable")
    order = ask[by_class]
    bounds = np.searchsorted(codes[order], np.arange(num_classes + 1))
    hits = np.zeros(len(order), np.int64)
    step = max(1, CENTROIDS // num_classes)
    for start in range(0, num_draws, step):
        part = rows[start : start + step].transpose(1, 0, 2).reshape(-1, shots)  # centroids class by class
        spots = np.arange(0, part.size + 1, shots)
        averages = csr_array((np.full(part.size, 1 / shots, np.float32), part.ravel(), spots), (len(part), len(z_ND)))
        centroids = averages @ z_ND
        close = centroids @ z_ND[order].T - 0.5 * np.einsum("cd,cd->c", centroids, centroids)[:, None]
        close_CRM = close.reshape(num_classes, -1, len(order))
        for c in range(num_classes):
            mine = slice(bounds[c], bounds[c + 1])
            own = close_CRM[c, :, mine]
            right = np.ones(own.shape, bool)
            for other in range(num_classes):
                if other != c:
                    rival = close_CRM[other, :, mine]
                    right &= own > rival if other < c else own >= rival
            hits[mine] += right.sum(0)
    out = np.empty(len(ask))
    out[by_class] = hits / num_draws
    return out
