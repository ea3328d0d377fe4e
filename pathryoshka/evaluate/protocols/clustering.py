"""Clustering: how well k-means, which sees no label, finds the classes: adjusted Rand index (Hubert & Arabie 1985)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols.rows import check, size, tested
from pathryoshka.evaluate.tally import Tally

RESTARTS = 3


@dataclass(frozen=True)
class Clustering:
    """`clusters`: [N] number of each row's cluster, -1 where no fold tests it; `score`: adjusted Rand index."""

    clusters: np.ndarray
    score: Tally


def cluster(
    x_ND: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: Sequence[Fold], seed: int = 0
) -> Clustering:
    """k-means of the rows that some fold tests, with as many clusters as these have classes; the best of 3 starts.

    Args:
        x_ND: rows of length 1, so that Euclidean distance orders as cosine does.
        labels: [N] strings.
        groups: [N] codes.

    Raises:
        ProtocolError: see `rows.check`.
    """
    check(x_ND, labels, groups, folds)
    rows = np.flatnonzero(tested(folds, len(labels)))
    codes = np.unique(labels[rows], return_inverse=True)[1]
    found = KMeans(int(codes.max()) + 1, n_init=RESTARTS, random_state=seed).fit_predict(x_ND[rows])
    clusters = np.full(len(labels), -1)
    clusters[rows] = found
    return Clustering(clusters, agreement(codes, found, groups[rows], size(groups)))


def agreement(codes: np.ndarray, clusters: np.ndarray, groups: np.ndarray, num_groups: int) -> Tally:
    """The adjusted Rand index of two codings [N], from the sums of each cell of their table."""
    num_classes, num_clusters = int(codes.max()) + 1, int(clusters.max()) + 1
    sums = np.zeros((num_groups, num_classes * num_clusters))
    np.add.at(sums, (groups, codes * num_clusters + clusters), 1)

    def finish(cells: np.ndarray) -> np.ndarray:
        return adjusted_rand(cells.reshape(*cells.shape[:-1], num_classes, num_clusters))

    return Tally(sums, finish)


def adjusted_rand(table: np.ndarray) -> np.ndarray:
    """[...] of tables [..., C, K] of counts: (pairs together in both - expected) / (mean of both - expected).

    1 where both put everything alike, also where neither parts anything; NaN for fewer than two rows.
    """

    def pairs(counts: np.ndarray) -> np.ndarray:
        return counts * (counts - 1) / 2

    both = pairs(table).sum((-2, -1))
    one, other = pairs(table.sum(-1)).sum(-1), pairs(table.sum(-2)).sum(-1)
    total = pairs(table.sum((-2, -1)))
    expected = np.divide(one * other, total, out=np.full(total.shape, np.nan), where=total > 0)
    above, span = both - expected, (one + other) / 2 - expected
    return np.where(np.isnan(expected), np.nan, np.divide(above, span, out=np.ones(total.shape), where=span > 0))
