"""What an embedding is worth: a linear probe and nearest neighbours, never on a patient that was trained on.

One ruler for every encoder and width. Rows are L2-normalised first, because that is how an embedding is stored and
compared; a width is the first numbers of a row, normalised again. Every tile is predicted once, by a probe that saw no
tile of its patient, and the score is balanced accuracy over these predictions. Intervals come from redrawing whole
patients (tiles of one patient are not independent), and the same draws serve every encoder, so that differences are
paired.

The penalty of the linear probe is fixed. Features are standardised and divided by the square root of their width, so
that a row has length 1 whatever the width and the same C means the same freedom. Measured with ImageNet features on
LC25000 and GlaS by patient, widths 8 to 1280, C from 0.1 to 1000: C = 1 is within .01 of the best everywhere but for
GlaS at random weights (.55 against .60), which choosing C in an inner loop, at 13 times the cost, could not repay.
At this scale L-BFGS ends after some dozens of iterations, so that reducing wide rows to their span first only costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

C = 1.0
NUM_DRAWS = 1000
INTERVAL = (2.5, 97.5)
NEIGHBOURS = (5, 20)
SMALLEST_SPREAD = 1e-3
"""Channels whose deviation is below this share of the mean one are not blown up to unit variance."""

Fold = tuple[np.ndarray, np.ndarray]
Probe = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class ProbeError(ValueError):
    """Labels that cannot be scored by group: the sentence says what is missing."""


def normalise(x_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1, fp64 [N, D]; a row of zeros stays one."""
    x_ND = np.asarray(x_ND, np.float64)
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def cut(x_ND: np.ndarray, width: int) -> np.ndarray:
    """The first `width` numbers of every row, normalised again: fp64 [N, width]."""
    return normalise(x_ND[:, :width])


def make_folds(labels: np.ndarray, groups: np.ndarray, num_folds: int, seed: int = 0) -> tuple[Fold, ...]:
    """(train rows, test rows) of each fold; no group is in both, classes are spread as evenly as groups allow.

    Args:
        labels: [N] strings.
        groups: [N] strings, the independent unit: usually the patient.
        num_folds: fewer are made where a class has fewer groups.

    Raises:
        ProbeError: a single class, or a class that only one group has.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ProbeError(f"all {len(labels)} tiles have the label '{classes[0]}'; a probe needs two" if len(classes)
                         else "no tile has a label; import the tiles with their labels")  # fmt: skip
    num_groups = {label: len(np.unique(groups[labels == label])) for label in classes}
    scarce = min(classes, key=lambda label: num_groups[label])
    if num_groups[scarce] < 2:
        raise ProbeError(
            f"only one patient has tiles of class '{scarce}', which can be trained on or scored but not both; "
            "add patients or leave the class out"
        )
    splitter = StratifiedGroupKFold(min(num_folds, num_groups[scarce]), shuffle=True, random_state=seed)
    return tuple(splitter.split(np.zeros(len(labels)), labels, groups))


def linear_probe(train_ND: np.ndarray, train_labels: np.ndarray, test_MD: np.ndarray) -> np.ndarray:
    """Labels [M] by multinomial logistic regression (L-BFGS), classes weighted by the inverse of their frequency."""
    mean, spread = train_ND.mean(0), train_ND.std(0)
    spread = np.maximum(spread, SMALLEST_SPREAD * math.sqrt(np.mean(spread**2)) + 1e-12) * math.sqrt(train_ND.shape[1])
    train, test = (train_ND - mean) / spread, (test_MD - mean) / spread
    model = LogisticRegression(C=C, class_weight="balanced", max_iter=1000, tol=1e-4)
    return model.fit(train, train_labels).predict(test)


def knn_probe(train_ND: np.ndarray, train_labels: np.ndarray, test_MD: np.ndarray) -> np.ndarray:
    """Labels [M] by a vote of the nearest training rows, weighted by cosine similarity.

    Half the square root of the training rows vote, but 5 to 20: fixed beforehand, since choosing k needs labels too.
    """
    low, high = NEIGHBOURS
    k = min(len(train_ND), max(low, min(high, round(math.sqrt(len(train_ND)) / 2))))
    classes, codes = np.unique(train_labels, return_inverse=True)
    out = []
    for start in range(0, len(test_MD), 1024):  # 1024 x 16,000 similarities are 130 MB
        similarity = test_MD[start : start + 1024] @ train_ND.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.maximum(np.take_along_axis(similarity, nearest, axis=1), 0) + 1e-9
        votes = np.zeros((len(similarity), len(classes)))
        np.add.at(votes, (np.arange(len(similarity))[:, None], codes[nearest]), weight)
        out.append(classes[votes.argmax(1)])
    return np.concatenate(out)


PROBES: dict[str, Probe] = {"linear": linear_probe, "knn": knn_probe}


def predict(x_ND: np.ndarray, labels: np.ndarray, folds: Sequence[Fold], probe: Probe) -> np.ndarray:
    """Out-of-fold predictions [N] from rows as they are (see `normalise`, `cut`)."""
    return predict_folds(((x_ND[train], x_ND[test]) for train, test in folds), labels, folds, probe)


def predict_folds(
    features: Iterator[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, folds: Sequence[Fold], probe: Probe
) -> np.ndarray:
    """The same where train and test rows of each fold come from a transform that was fitted on the train rows."""
    out = np.empty_like(labels)
    for (train, test), (train_x, test_x) in zip(folds, features, strict=True):
        out[test] = probe(train_x, labels[train], test_x)
    return out


def pca_folds(teachers: Sequence[np.ndarray], folds: Sequence[Fold], width: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """What a linear student could be at most: PCA of all teachers side by side, per fold, at up to `width` numbers.

    Each teacher is centred and divided by the root of its total variance, so that none counts more for being wider or
    louder. Means, scales and components come from the training rows of a fold alone.

    Args:
        teachers: [N, D_t] each, the same tiles in the same order.

    Returns:
        a fold: train [n, r] and test [m, r], components by falling variance; r is at most what n rows can span.
    """
    out = []
    for train, test in folds:
        parts = []
        for x_ND in teachers:
            centred = np.asarray(x_ND, np.float64) - x_ND[train].mean(0, dtype=np.float64)
            parts.append(centred / max(math.sqrt(centred[train].var(0).sum()), 1e-12))
        joint = np.concatenate(parts, axis=1)
        n, dim = len(train), joint.shape[1]
        gram = joint[train] @ joint[train].T if n < dim else joint[train].T @ joint[train]
        values, vectors = np.linalg.eigh(gram)
        keep = np.flatnonzero(values > values[-1] * 1e-9)[::-1][:width]
        basis = vectors[:, keep]
        if n < dim:
            basis = joint[train].T @ basis / np.sqrt(values[keep])
        out.append((joint[train] @ basis, joint[test] @ basis))
    return out


@dataclass(frozen=True)
class Draws:
    """Patients redrawn with replacement, once for a data set: every encoder is scored on the same draws.

    Attributes:
        codes: [N] number of each tile's group, 0 to G - 1.
        counts: [R, G] how often each group is in each draw; row 0 is the data as it is.
    """

    codes: np.ndarray
    counts: np.ndarray

    @property
    def num_groups(self) -> int:
        return self.counts.shape[1]


def redraw(groups: np.ndarray, num_draws: int = NUM_DRAWS, seed: int = 0) -> Draws:
    """The draws of a bootstrap over `groups` [N]."""
    names, codes = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_draws)
    return Draws(codes, np.concatenate([np.ones((1, len(names)), drawn.dtype), drawn]))


def balanced_accuracies(labels: np.ndarray, predicted: np.ndarray, draws: Draws) -> np.ndarray:
    """[R] mean recall over the classes present in each draw; the first is the score of the data as they are."""
    classes, codes = np.unique(labels, return_inverse=True)
    total, right = (np.zeros((draws.num_groups, len(classes))) for _ in range(2))
    np.add.at(total, (draws.codes, codes), 1)
    np.add.at(right, (draws.codes, codes), labels == predicted)
    n, hits = draws.counts @ total, draws.counts @ right
    recall = np.divide(hits, n, out=np.full_like(hits, np.nan), where=n > 0)
    return np.nanmean(recall, axis=1)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """(value, low, high) of [R] draws whose first is the value itself: the 95 % percentile interval of the others."""
    low, high = np.percentile(values[1:], INTERVAL)
    return float(values[0]), float(low), float(high)
