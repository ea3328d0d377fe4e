"""Calibration: does a classifier that says 80 % hold in 80 % of cases? Expected calibration error.

Guo et al. 2017, eq. 3: rows are binned by the probability of their likeliest class, and ECE is the mean over rows of
|accuracy - mean probability| of their bin. Both are sums a bin, so that n_b / n |acc_b - conf_b| = |hits - conf| / n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pathryoshka.evaluate.protocols.rows import size
from pathryoshka.evaluate.tally import Tally

NUM_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, 0 (good) to 1.

    Attributes:
        confidences: [15] mean probability of a bin; NaN where it is empty. For the reliability diagram.
        accuracies: [15] share of right rows in it.
        counts: [15] rows in it.
        plain: every row counts alike.
        balanced: every class counts alike: fair to a probe whose classes were weighted to be equally common.
    """

    confidences: np.ndarray
    accuracies: np.ndarray
    counts: np.ndarray
    plain: Tally
    balanced: Tally


def calibration(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Calibration:
    """Of probabilities [N, C], whose columns are the sorted labels; rows of NaN (not tested) are left out.

    Bins are of equal width and closed on the right, as in the paper.
    """
    codes = np.unique(labels, return_inverse=True)[1]
    rows = np.flatnonzero(np.isfinite(probabilities).all(1))
    confidence = probabilities[rows].max(1)
    hits = probabilities[rows].argmax(1) == codes[rows]
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    num_classes = int(codes.max()) + 1
    sums = np.zeros((size(groups), num_classes, NUM_BINS, 3))
    stats = np.stack([np.ones(len(rows)), hits, confidence], axis=1)
    np.add.at(sums, (groups[rows], codes[rows], bins), stats)
    shape = sums.shape[1:]
    flat = sums.reshape(len(sums), -1)
    count, right, said = np.moveaxis(sums.sum((0, 1)), -1, 0)
    full = count > 0
    return Calibration(
        confidences=np.divide(said, count, out=np.full(NUM_BINS, np.nan), where=full),
        accuracies=np.divide(right, count, out=np.full(NUM_BINS, np.nan), where=full),
        counts=count.astype(int),
        plain=Tally(flat, lambda s: gap(s.reshape(*s.shape[:-1], *shape).sum(-3))),
        balanced=Tally(flat, lambda s: gap(level(s.reshape(*s.shape[:-1], *shape)))),
    )


def gap(sums: np.ndarray) -> np.ndarray:
    """[...] expected calibration error of [..., bins, 3] (number, hits, summed probability)."""
    number = sums[..., 0].sum(-1)
    apart = np.abs(sums[..., 1] - sums[..., 2]).sum(-1)
    return np.divide(apart, number, out=np.full(number.shape, np.nan), where=number > 0)


def level(sums: np.ndarray) -> np.ndarray:
    """[..., C, bins, 3] -> [..., bins, 3] where each class that is there weighs 1."""
    number = sums[..., 0].sum(-1)[..., None, None]
    return np.divide(sums, number, out=np.zeros_like(sums), where=number > 0).sum(-3)
