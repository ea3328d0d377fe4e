"""What the protocols share: rows that can be scored, and the out-of-fold predictions of a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.tally import Tally, balanced_mean_of

BLOCK = 1024
"""Rows that are compared with all others at a time: 1,024 x 16,000 similarities are 65 MB in fp32."""


class ProtocolError(ValueError):
    """Rows that no protocol can score: the sentence says which."""


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of rows that it was not fitted on.

    Attributes:
        classes: [C] labels, sorted.
        predicted: [N] labels, the likeliest class; empty where no fold tests the row.
        probabilities: [N, C] fp64 whose rows sum to 1; NaN where no fold tests the row.
        chosen: what was chosen on the `val` of each fold.
        score: balanced accuracy.
    """

    classes: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    chosen: tuple[float, ...]
    score: Tally


def check(x_ND: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: Sequence[Fold]) -> None:
    """Raises what every protocol would stumble over.

    Raises:
        ProtocolError: columns of different lengths, a number that is not finite, a group on both sides of a fold.
    """
    if not len(x_ND) == len(labels) == len(groups):
        raise ProtocolError(
            f"{len(x_ND)} embeddings, {len(labels)} labels and {len(groups)} groups do not belong together; "
            "give one of each a tile"
        )
    check_finite(x_ND)
    for fold in folds:
        if len(shared := np.intersect1d(groups[fold.fit], groups[fold.test])):
            raise ProtocolError(
                f"group {shared[0]} is learned from and tested in the same fold; make the folds by group"
            )


def check_finite(x_ND: np.ndarray, what: str = "embeddings") -> None:
    bad = np.flatnonzero(~np.isfinite(x_ND).reshape(len(x_ND), -1).all(1))
    if len(bad):
        raise ProtocolError(
            f"{len(bad)} of {len(x_ND)} {what} hold NaN or infinity, the first in row {bad[0]}; "
            "embed these tiles again or leave them out"
        )


def tested(folds: Sequence[Fold], num_rows: int) -> np.ndarray:
    """Bool [N]: rows that some fold tests."""
    out = np.zeros(num_rows, bool)
    for fold in folds:
        out[fold.test] = True
    return out


def size(groups: np.ndarray) -> int:
    """The number of groups, from their codes."""
    return int(groups.max()) + 1


def predictions(
    probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, chosen: Sequence[float]
) -> Predictions:
    """Of probabilities [N, C] whose columns are the sorted labels and whose untested rows are NaN."""
    classes = np.unique(labels)
    known = np.isfinite(probabilities).all(1)
    predicted = np.full(len(labels), "", dtype=labels.dtype)
    predicted[known] = classes[probabilities[known].argmax(1)]
    hits = np.where(known, predicted == labels, np.nan)
    score = balanced_mean_of(hits, labels, groups, size(groups))
    return Predictions(classes, predicted, probabilities, tuple(chosen), score)


def balanced_accuracy(codes: np.ndarray, predicted: np.ndarray) -> float:
    """The mean recall over the classes in `codes` [N], of class numbers `predicted` [N]."""
    total = np.bincount(codes)
    right = np.bincount(codes[codes == predicted], minlength=len(total))
    return float(np.mean(right[total > 0] / total[total > 0]))


def blocks(num_rows: int, size: int = BLOCK) -> Iterator[slice]:
    for start in range(0, num_rows, size):
        yield slice(start, start + size)
