"""Nearest neighbours: a vote weighted by cosine similarity, the number of neighbours chosen on validation."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import balanced_accuracy_score

from pathryoshka.evaluate.folds import Fold

GRID = (1, 3, 5, 10, 20, 30, 40, 50)
DEFAULT = 10
CHUNK = 1024
"""Queries at a time: 1024 x 16,000 similarities are 130 MB."""


def votes(
    train_ND: np.ndarray, codes: np.ndarray, num_classes: int, test_MD: np.ndarray, ks: tuple[int, ...]
) -> np.ndarray:
    """[K, M, C] weight of the votes of the k nearest rows of `train_ND`, for each k; rows have length 1."""
    most = min(len(train_ND), max(ks))
    out = np.zeros((len(ks), len(test_MD), num_classes))
    for start in range(0, len(test_MD), CHUNK):
        similarity = test_MD[start : start + CHUNK] @ train_ND.T
        nearest = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
        weight = np.take_along_axis(similarity, nearest, axis=1)
        order = np.argsort(-weight, axis=1, kind="stable")
        nearest, weight = np.take_along_axis(nearest, order, 1), np.take_along_axis(weight, order, 1)
        weight = np.maximum(weight, 0) + 1e-9
        one_hot = np.eye(num_classes)[codes[nearest]] * weight[..., None]
        summed = np.cumsum(one_hot, axis=1)
        for i, k in enumerate(ks):
            out[i, start : start + CHUNK] = summed[:, min(k, most) - 1]
    return out


def knn_probe(x_ND: np.ndarray, labels: np.ndarray, fold: Fold) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels [M], shares of the vote [M, C], classes [C]) of the rows `fold.test`."""
    classes, codes = np.unique(labels[fold.fit], return_inverse=True)
    all_codes = np.zeros(len(labels), int)
    all_codes[fold.fit] = codes
    k = DEFAULT
    if len(fold.val):
        found = votes(x_ND[fold.train], all_codes[fold.train], len(classes), x_ND[fold.val], GRID)
        scores = [balanced_accuracy_score(labels[fold.val], classes[one.argmax(1)]) for one in found]
        k = GRID[int(np.argmax(np.round(scores, 9)))]
    (found,) = votes(x_ND[fold.fit], codes, len(classes), x_ND[fold.test], (k,))
    return classes[found.argmax(1)], found / found.sum(1, keepdims=True), classes
