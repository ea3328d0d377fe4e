"""Nearest neighbours by cosine: a vote weighted by similarity, the number of voters chosen on validation rows.

All numbers of voters share one sorted list of neighbours, so that choosing costs no more than voting once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols.rows import Predictions, balanced_accuracy, blocks, check, predictions

NEIGHBOURS = (1, 3, 5, 10, 20, 30, 40, 50)
"""The grid of THUNDER."""
FEWEST, MOST = 5, 20
"""Where there is nothing to choose on, half the square root of the training rows vote, within these bounds."""


def knn_probe(x_ND: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: Sequence[Fold]) -> Predictions:
    """Out-of-fold predictions; `chosen` holds k. Of ks that are equally good on `val` the largest is taken.

    A class's probability is its share of the weights of the k nearest rows of `fit`, weights being max(cosine, 0) (and
    1e-9 more, so that a row that is unlike everything still gets the class of its nearest).

    Args:
        x_ND: rows of length 1.
        labels: [N] strings.
        groups: [N] codes.

    Raises:
        ProtocolError: see `rows.check`.
    """
    check(x_ND, labels, groups, folds)
    classes, codes = np.unique(labels, return_inverse=True)
    probabilities = np.full((len(labels), len(classes)), np.nan)
    chosen = []
    for fold in folds:
        k = choose(x_ND, codes, fold)
        probabilities[fold.test] = votes(x_ND, codes, fold.fit, fold.test, (k,), len(classes))[0]
        chosen.append(float(k))
    return predictions(probabilities, labels, groups, chosen)


def choose(x_ND: np.ndarray, codes: np.ndarray, fold: Fold) -> int:
    """The k of `NEIGHBOURS` whose vote of `train` has the highest balanced accuracy on `val`."""
    if not len(fold.val):
        return min(len(fold.train), max(FEWEST, min(MOST, round(math.sqrt(len(fold.train)) / 2))))
    ks = [k for k in NEIGHBOURS if k <= len(fold.train)]
    shares = votes(x_ND, codes, fold.train, fold.val, ks, int(codes.max()) + 1)
    scores = [balanced_accuracy(codes[fold.val], share.argmax(1)) for share in shares]
    return max(k for k, score in zip(ks, scores, strict=True) if score == max(scores))


def votes(
    x_ND: np.ndarray, codes: np.ndarray, fit: np.ndarray, ask: np.ndarray, ks: Sequence[int], num_classes: int
) -> list[np.ndarray]:
    """[M, C] shares of the weight of the k nearest rows of `fit`, one a k."""
    base, asked, voters = x_ND[fit], x_ND[ask], codes[fit]
    out = [np.zeros((len(ask), num_classes)) for _ in ks]
    for part in blocks(len(ask)):
        similarity = asked[part] @ base.T
        nearest = top(similarity, max(ks))
        weight = np.maximum(np.take_along_axis(similarity, nearest, axis=1), 0).astype(np.float64) + 1e-9
        for number in range(num_classes):
            summed = np.cumsum(np.where(voters[nearest] == number, weight, 0), axis=1)
            for share, k in zip(out, ks, strict=True):
                share[part, number] = summed[:, k - 1]
    return [share / share.sum(1, keepdims=True) for share in out]


def top(similarity: np.ndarray, k: int) -> np.ndarray:
    """[M, k] columns of the largest of each row [M, N], falling."""
    if k >= similarity.shape[1]:
        return np.argsort(-similarity, axis=1, kind="stable")
    nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
    order = np.argsort(-np.take_along_axis(similarity, nearest, axis=1), axis=1, kind="stable")
    return np.take_along_axis(nearest, order, axis=1)
