"""Who is trained on, chosen on and scored: rows of a data set by the split it came with, else by cross-validation.

No independent unit (patient, where there is one) is ever in two parts of a fold. A data set with official splits is one
fold; where it has no split to choose on, a share of the training units is set aside for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

CHOOSE = 5
"""One in so many training units is set aside to choose on."""
SPLITS = ("train", "val", "test")


class FoldError(ValueError):
    """Labels or splits that cannot be scored by group: the sentence says what is missing."""


@dataclass(frozen=True)
class Fold:
    """Row numbers, ascending. Probes fit on `train`, choose on `val`, are scored on `test`.

    `val` is apart from `train`; once something was chosen, `fit` (both) may be fitted on again.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    @property
    def fit(self) -> np.ndarray:
        return np.sort(np.concatenate([self.train, self.val]))


def make_folds(
    labels: np.ndarray, groups: np.ndarray, num_folds: int = 5, *, splits: np.ndarray | None = None, seed: int = 0
) -> tuple[Fold, ...]:
    """The official fold where `splits` holds both train and test, else `num_folds` folds over all rows.

    Args:
        labels: [N] strings.
        groups: [N] strings, the independent unit: usually the patient.
        num_folds: fewer are made where a class has fewer groups.
        splits: [N] strings, `train`, `val`, `test` or anything else, which no fold holds.

    Raises:
        FoldError: a single class, a class that only one group has, a group in two splits, a class that is scored but
            never trained on.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise FoldError(f"all {len(labels)} tiles have the label '{classes[0]}'; a probe needs two" if len(classes)
                        else "no tile has a label; import the tiles with their labels")  # fmt: skip
    if splits is not None and {"train", "test"} <= set(splits.tolist()):
        return (official_fold(labels, groups, splits, seed),)
    num_groups = {label: len(np.unique(groups[labels == label])) for label in classes}
    scarce = min(classes, key=lambda label: num_groups[label])
    if num_groups[scarce] < 2:
        raise FoldError(
            f"only one patient has tiles of class '{scarce}', which can be trained on or scored but not both; "
            "add patients or leave the class out"
        )
    splitter = StratifiedGroupKFold(min(num_folds, num_groups[scarce]), shuffle=True, random_state=seed)
    return tuple(set_aside(fit, test, labels, groups, seed) for fit, test in splitter.split(labels, labels, groups))


def official_fold(labels: np.ndarray, groups: np.ndarray, splits: np.ndarray, seed: int) -> Fold:
    """The data set's own split.

    Raises:
        FoldError: a leak, or a class of the test split that has no row to learn from.
    """
    train, val, test = (np.flatnonzero(splits == name) for name in SPLITS)
    for a, b, one, other in (("train", "test", train, test), ("val", "test", val, test), ("train", "val", train, val)):
        both = sorted(set(groups[one].tolist()) & set(groups[other].tolist()))
        if both:
            more = " ..." if len(both) > 3 else ""
            raise FoldError(
                f"{len(both)} patients are in split '{a}' and in split '{b}' ({', '.join(both[:3])}{more}); scores "
                "would be of patients that were learned by heart, so give each one split"
            )
    unknown = sorted(set(labels[test].tolist()) - set(labels[train].tolist()))
    if unknown:
        raise FoldError(f"class '{unknown[0]}' is in split 'test' but not in split 'train', so no probe can know it")
    return Fold(train, val, test) if len(val) else set_aside(train, test, labels, groups, seed)


def set_aside(fit: np.ndarray, test: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Fold:
    """A fold whose `val` is about a fifth of `fit`, by whole groups, every class kept in `train`.

    `val` is empty where some class has a single group: then there is nothing to choose on without losing it.
    """
    least = min(len(np.unique(groups[fit][labels[fit] == label])) for label in np.unique(labels[fit]))
    if least < 2:
        return Fold(fit, fit[:0], test)
    splitter = StratifiedGroupKFold(min(CHOOSE, least), shuffle=True, random_state=seed)
    train, val = next(splitter.split(fit, labels[fit], groups[fit]))
    return Fold(fit[train], fit[val], test)
