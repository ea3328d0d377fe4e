"""Could the two be interchangeable? A paired permutation test: the two encoders' scores of a unit change sides.

What unit i (a patient) scores is its pseudo-value, n S - (n - 1) S_without_i (Quenouille 1956; Efron and Tibshirani
1993, section 11.5): of a mean it is the unit's own value, of balanced accuracy, a correlation or a median what the unit
adds. With d_i the difference of the two encoders' pseudo-values,

    p = share of the signs s in {-1, 1}^n with |sum s_i d_i| >= |sum d_i|

(Fisher 1935; Pitman 1937). All 2^n signs are gone through up to 14 units; beyond, 10,000 random ones, and the one
observed counts as one more: p = (hits + 1) / (10,000 + 1) (Phipson and Smyth 2010). With tiles as units and accuracy as
score this is McNemar's exact test. As the smallest p of n units is 2 / 2^n, five units or fewer never reach 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathryoshka.evaluate.tally import Profile

EXACT = 14
"""Units up to which all swaps are gone through."""
NUM_DRAWS = 10_000
AT_ONCE = 1000
"""Swaps that are held at a time: of 30,000 units 240 MB."""


def pseudo_values(score: Profile) -> np.ndarray:
    """[G] what each unit scores; 0, which no sign changes, for a unit without which nothing can be scored."""
    known = np.isfinite(score.without)
    n = int(known.sum())
    return np.where(known, n * score.value - (n - 1) * np.where(known, score.without, 0), 0)


def swap_tests(differences: Sequence[Profile], seed: int = 0) -> list[float]:
    """Two-sided p of each difference (see `tally.difference`) on the same units; NaN where it is none."""
    if not differences:
        return []
    d_NK = np.stack([pseudo_values(one) for one in differences], axis=1)
    n = len(d_NK)
    observed = np.abs(d_NK.sum(0))
    tied = observed - 1e-9 * np.abs(d_NK).sum(0)
    hits = np.zeros(len(differences))
    num_swaps = 2**n if n <= EXACT else NUM_DRAWS
    rng = np.random.default_rng(seed)
    for start in range(0, num_swaps, AT_ONCE):
        count = min(AT_ONCE, num_swaps - start)
        if n <= EXACT:
            swapped = (np.arange(start, start + count)[:, None] >> np.arange(n)) & 1
        else:
            swapped = rng.integers(0, 2, (count, n), np.int8)
        hits += (np.abs((1.0 - 2.0 * swapped) @ d_NK) >= tied).sum(0)
    p = hits / num_swaps if n <= EXACT else (hits + 1) / (num_swaps + 1)
    return [float(v) if np.isfinite(o) else float("nan") for v, o in zip(p, observed, strict=True)]


def swap_test(difference: Profile) -> float:
    """The same of one difference."""
    return swap_tests([difference])[0]


def chance(p: float) -> str:
    """A p in few letters: .042, <.001."""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
