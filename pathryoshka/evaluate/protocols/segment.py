"""Segmentation by tokens: a linear probe says what lies below each token of a frozen encoder.

Each token has the class that most of the mask below it has. The probe is that of `linear`: logistic regression of
standardised tokens, C chosen on `val`, fitted on tokens drawn so that every image gives as many. Scores are over the
tokens of test images: mean Dice and mean intersection over union of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols.linear import FIXED, PENALTIES, fit_and_predict
from pathryoshka.evaluate.protocols.rows import ProtocolError, balanced_accuracy, check, size
from pathryoshka.evaluate.tally import Tally

VOID = -1
MAX_TOKENS = 20_000
"""Tokens a fold that a probe is fitted on."""


@dataclass(frozen=True)
class Segmentation:
    """`predicted`: [N, T] class numbers, -1 for void tokens and images that no fold tests; `chosen`: C of each fold."""

    predicted: np.ndarray
    chosen: tuple[float, ...]
    dice: Tally
    iou: Tally


def token_labels(masks_NHW: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[N, rows * columns] the most frequent class number of the mask below each token; -1 where that is void.

    Args:
        masks_NHW: int class numbers, negative ones being void; H and W are multiples of the grid.

    Raises:
        ProtocolError: a mask that the grid does not divide.
    """
    num, height, width = masks_NHW.shape
    if height % rows or width % columns:
        raise ProtocolError(
            f"masks of {height} x {width} pixels do not divide into {rows} x {columns} tokens; "
            "resize them (nearest neighbour) to a multiple"
        )
    cells = masks_NHW.reshape(num, rows, height // rows, columns, width // columns).swapaxes(2, 3)
    cells = np.maximum(cells.reshape(num, rows * columns, -1), VOID)
    counts = np.stack([(cells == c).sum(-1) for c in range(VOID, int(cells.max()) + 1)], axis=-1)
    return counts.argmax(-1) + VOID


def segment(
    tokens_NTD: np.ndarray,
    labels_NT: np.ndarray,
    groups: np.ndarray,
    folds: Sequence[Fold],
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
) -> Segmentation:
    """Out-of-fold segmentation of the tokens of images.

    Args:
        tokens_NTD: tokens of each image.
        labels_NT: class numbers from 0, see `token_labels`; -1 is neither learned nor scored.
        groups: [N] codes of the images' patients.
        folds: row numbers are those of images.

    Raises:
        ProtocolError: see `rows.check`; a fold whose training images show fewer than two classes.
    """
    num, num_tokens, dim = tokens_NTD.shape
    if labels_NT.shape != (num, num_tokens):
        raise ProtocolError(f"labels are {labels_NT.shape}, tokens {(num, num_tokens)}; give one label a token")
    check(tokens_NTD.reshape(num, -1), groups, groups, folds)
    flat, codes = tokens_NTD.reshape(-1, dim), labels_NT.reshape(-1)
    num_classes = int(codes.max()) + 1
    predicted = np.full(labels_NT.shape, VOID)
    chosen = []
    for number, fold in enumerate(folds):
        rng = np.random.default_rng((seed, number))
        train, val, fit = (draw(labels_NT, rows, max_tokens, rng) for rows in (fold.train, fold.val, fold.fit))
        if len(np.unique(codes[train])) < 2:
            raise ProtocolError(f"the training images of fold {number} show fewer than two classes; make fewer folds")
        penalty = FIXED
        if len(val):
            path = fit_and_predict(flat, codes, train, val, PENALTIES, num_classes)
            scores = [balanced_accuracy(codes[val], p.argmax(1)) for p in path]
            penalty = PENALTIES[int(np.argmax(scores))]
        asked = draw(labels_NT, fold.test, None, rng)
        probabilities = fit_and_predict(flat, codes, fit, asked, (penalty,), num_classes)[0]
        predicted.reshape(-1)[asked] = probabilities.argmax(1)
        chosen.append(penalty)
    sums = overlaps(labels_NT, predicted, groups, num_classes)
    return Segmentation(predicted, tuple(chosen), Tally(sums, mean_dice), Tally(sums, mean_iou))


def draw(labels_NT: np.ndarray, images: np.ndarray, at_most: int | None, rng: np.random.Generator) -> np.ndarray:
    """Flat numbers of tokens of `images` that are not void: all, or about `at_most`, as many of each image."""
    num_tokens = labels_NT.shape[1]
    known = labels_NT[images] != VOID
    if at_most is not None and known.sum() > at_most:
        share = max(1, at_most // len(images))
        luck = np.where(known, rng.random(known.shape), 2.0)
        known &= luck.argsort(1).argsort(1) < share
    rows, spots = np.nonzero(known)
    return images[rows] * num_tokens + spots


def overlaps(labels_NT: np.ndarray, predicted_NT: np.ndarray, groups: np.ndarray, num_classes: int) -> np.ndarray:
    """Sums [G, 3 C] of tokens a class: in both, in the truth, in the prediction; of tokens that were predicted."""
    sums = np.zeros((size(groups), 3, num_classes))
    images, spots = np.nonzero(predicted_NT != VOID)
    truth, found = labels_NT[images, spots], predicted_NT[images, spots]
    of = groups[images]
    right = truth == found
    np.add.at(sums[:, 0], (of[right], truth[right]), 1)
    np.add.at(sums[:, 1], (of, truth), 1)
    np.add.at(sums[:, 2], (of, found), 1)
    return sums.reshape(len(sums), -1)


def mean_dice(sums: np.ndarray) -> np.ndarray:
    """[...] mean over classes of 2 |both| / (|truth| + |prediction|); classes in neither are left out."""
    both, truth, found = np.split(sums, 3, axis=-1)
    return mean_share(2 * both, truth + found)


def mean_iou(sums: np.ndarray) -> np.ndarray:
    """[...] mean over classes of |both| / |either|; classes in neither are left out."""
    both, truth, found = np.split(sums, 3, axis=-1)
    return mean_share(both, truth + found - both)


def mean_share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    there = whole > 0
    number = there.sum(-1)
    total = np.divide(part, whole, out=np.zeros_like(part, dtype=float), where=there).sum(-1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
