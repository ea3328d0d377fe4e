"""Scores as functions of sums: what every protocol hands to the statistics.

A score such as balanced accuracy, expected calibration error or a correlation is a function of numbers that add up over
tiles (counts, products, hits). With these sums kept a group, the score of any draw of groups is one product of
matrices: bootstrap, jackknife and permutation need nothing else, and cost the same for every protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Finish = Callable[[np.ndarray], np.ndarray]
"""Sums [..., K] -> scores [...]; NaN where the sums hold nothing to score."""


@dataclass(frozen=True)
class Profile:
    """A score and what it is without each group: all that intervals, differences and means need.

    Attributes:
        without: [G] the score with one group left out; NaN where nothing is left to score.
    """

    value: float
    without: np.ndarray


@dataclass(frozen=True)
class Tally:
    """Sums [G, K] of each group, and how a score is made of such sums."""

    sums: np.ndarray
    finish: Finish

    @property
    def value(self) -> float:
        """The score of all groups together."""
        return float(self.finish(self.sums.sum(0)))

    @property
    def profile(self) -> Profile:
        return Profile(self.value, self.finish(self.sums.sum(0) - self.sums))

    def under(self, counts: np.ndarray) -> np.ndarray:
        """[R] scores of draws that hold each group `counts` [R, G] times."""
        return self.finish(counts @ self.sums)


def tally(stats: np.ndarray, groups: np.ndarray, num_groups: int, finish: Finish) -> Tally:
    """Sums over tiles: `stats` [N, K] of each tile, `groups` [N] the number of its group."""
    sums = np.zeros((num_groups, stats.shape[1]))
    np.add.at(sums, groups, stats)
    return Tally(sums, finish)


def combine(profiles: Sequence[Profile], weights: Sequence[float]) -> Profile:
    """The weighted sum of scores on the same groups: differences (1, -1), means over teachers or seeds."""
    value = sum(w * p.value for w, p in zip(weights, profiles, strict=True))
    return Profile(value, np.sum([w * p.without for w, p in zip(weights, profiles, strict=True)], axis=0))


def difference(a: Profile, b: Profile) -> Profile:
    """`a` minus `b`, paired by group."""
    return combine((a, b), (1, -1))


def mean(profiles: Sequence[Profile]) -> Profile:
    return combine(profiles, [1 / len(profiles)] * len(profiles))


def mean_of(values: np.ndarray, groups: np.ndarray, num_groups: int) -> Tally:
    """The mean of `values` [N] over tiles; NaN ones (nothing to score there) are left out."""
    known = np.isfinite(values)
    stats = np.stack([np.where(known, values, 0), known], axis=1)
    return tally(stats, groups, num_groups, ratio)


def balanced_mean_of(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_groups: int) -> Tally:
    """The mean over classes of the mean of `values` [N] over a class's tiles; classes that a draw lacks are left out.

    Of hits (1 or 0) this is balanced accuracy: macro-averaged recall.
    """
    codes = np.unique(labels, return_inverse=True)[1]
    known = np.isfinite(values)
    stats = np.zeros((len(values), 2, codes.max() + 1))
    rows = np.arange(len(values))
    stats[rows, 0, codes] = np.where(known, values, 0)
    stats[rows, 1, codes] = known
    return tally(stats.reshape(len(values), -1), groups, num_groups, mean_of_ratios)


def ratio(sums: np.ndarray) -> np.ndarray:
    """[..., 2] (total, number) -> their ratio."""
    total, number = sums[..., 0], sums[..., 1]
    return np.divide(total, number, out=np.full_like(total, np.nan, dtype=float), where=number > 0)


def mean_of_ratios(sums: np.ndarray) -> np.ndarray:
    """[..., 2 C] (C totals, then C numbers) -> mean of the ratios of the classes that are there."""
    total, number = np.split(sums, 2, axis=-1)
    there = number > 0
    each = np.divide(total, number, out=np.zeros_like(total, dtype=float), where=there)
    num_classes = there.sum(-1)
    return np.divide(each.sum(-1), num_classes, out=np.full(num_classes.shape, np.nan), where=num_classes > 0)
