"""Retrieval: does a search by example find tiles of the same class in other patients?

The `test` rows of a fold are the queries and its `fit` rows the archive, so that a query never finds its own group.
Exact: one product of matrices and a sort, which mean average precision needs in full anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols.rows import blocks, check, size
from pathryoshka.evaluate.tally import Tally, balanced_mean_of

DEPTHS = (1, 3, 5, 10)
ASKED = 256
"""Queries at a time: 256 x 16,000 similarities, their order and the hits in that order are 80 MB."""


@dataclass(frozen=True)
class Retrieval:
    """What a search by example finds; [N] values a query, NaN where no fold tests the row or its class has no archive.

    Attributes:
        any_of: k -> 1 where one of the k nearest is of the query's class, else 0.
        majority: k -> 1 where most of the k nearest are, else 0; of classes that are equally frequent, the one whose
            first tile is nearest counts.
        precision: average precision over the whole archive: mean, over the tiles of the query's class, of the share of
            that class among the tiles up to there.
        scores: `any@k`, `majority@k` and `map`: means over classes of the means over their queries.
    """

    any_of: dict[int, np.ndarray]
    majority: dict[int, np.ndarray]
    precision: np.ndarray
    scores: dict[str, Tally]


def retrieve(x_ND: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: Sequence[Fold]) -> Retrieval:
    """Top-k accuracy and mean average precision by cosine.

    Args:
        x_ND: rows of length 1.
        labels: [N] strings.
        groups: [N] codes.

    Raises:
        ProtocolError: see `rows.check`.
    """
    check(x_ND, labels, groups, folds)
    codes = np.unique(labels, return_inverse=True)[1]
    any_of, majority = ({k: np.full(len(labels), np.nan) for k in DEPTHS} for _ in range(2))
    precision = np.full(len(labels), np.nan)
    for fold in folds:
        archive, found = x_ND[fold.fit], codes[fold.fit]
        known = fold.test[np.isin(codes[fold.test], found)]
        for part in blocks(len(known), ASKED):
            rows = known[part]
            order = np.argsort(-(x_ND[rows] @ archive.T), axis=1)
            nearest = found[order]
            precision[rows] = average_precision(nearest == codes[rows, None])
            for k in DEPTHS:
                any_of[k][rows] = (nearest[:, :k] == codes[rows, None]).any(1)
                majority[k][rows] = most_frequent(nearest[:, :k]) == codes[rows]
    columns = {f"any@{k}": any_of[k] for k in DEPTHS} | {f"majority@{k}": majority[k] for k in DEPTHS}
    columns["map"] = precision
    scores = {name: balanced_mean_of(values, labels, groups, size(groups)) for name, values in columns.items()}
    return Retrieval(any_of, majority, precision, scores)


def average_precision(hits: np.ndarray) -> np.ndarray:
    """[M] of bool [M, n], hits in the order in which they are found; each row has one at least."""
    rows, ranks = np.nonzero(hits)
    number = hits.sum(1)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(number) - number, number) + 1
    return np.bincount(rows, nth / (ranks + 1), minlength=len(hits)) / number


def most_frequent(nearest: np.ndarray) -> np.ndarray:
    """[M] the class that most of [M, k] are of; of several such, the one that comes first."""
    counts = (nearest[:, :, None] == nearest[:, None, :]).sum(2)
    return np.take_along_axis(nearest, counts.argmax(1)[:, None], axis=1)[:, 0]
