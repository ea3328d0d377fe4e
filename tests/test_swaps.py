"""The paired swap test against SciPy's permutation test, McNemar's, and its own level where nothing differs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import permutation_test

from pathryoshka.evaluate.swaps import EXACT, chance, pseudo_values, swap_test, swap_tests
from pathryoshka.evaluate.tally import Profile, difference, mean_of
from tests.bench import bench_coverage
from tests.test_statistics import balanced, hits


def of_means(a: np.ndarray, b: np.ndarray) -> Profile:
    units = np.arange(len(a))
    return difference(mean_of(a, units, len(a)).profile, mean_of(b, units, len(a)).profile)


def scipys(a: np.ndarray, b: np.ndarray, draws: float = np.inf) -> float:
    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return (x - y).mean(axis)

    found = permutation_test((a, b), statistic, permutation_type="samples", n_resamples=draws, vectorized=True)
    return float(found.pvalue)


@pytest.mark.parametrize("num_units", [2, 7, EXACT])
def test_all_swaps_are_scipys_permutation_test(num_units: int) -> None:
    rng = np.random.default_rng(num_units)
    a, b = rng.random(num_units), rng.random(num_units) + 0.2
    assert swap_test(of_means(a, b)) == pytest.approx(scipys(a, b))


def test_so_are_scores_that_are_no_means_by_what_each_unit_adds() -> None:
    labels, one, other, groups = hits(240, 9)
    profiles = [balanced(labels, said, groups).profile for said in (one, other)]
    assert swap_test(difference(*profiles)) == pytest.approx(scipys(*(pseudo_values(p) for p in profiles)))


def test_many_units_are_drawn_and_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(60)
    b = a + rng.normal(0.03, 0.15, 60)
    assert swap_test(of_means(a, b)) == pytest.approx(scipys(a, b, 9999), abs=0.015)
    assert swap_test(of_means(a, a + 1)) == pytest.approx(1 / 10_001)
    assert swap_test(of_means(a, b)) == swap_test(of_means(a, b))


def test_with_tiles_as_units_it_is_mcnemars_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(300) < 0.8, rng.random(300) < 0.72
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    exact = stats.binomtest(min(won, lost), won + lost).pvalue
    assert swap_test(of_means(a.astype(float), b.astype(float))) == pytest.approx(exact, abs=0.015)


def test_what_is_the_same_and_what_says_nothing() -> None:
    x = np.random.default_rng(1).random(8)
    assert swap_test(of_means(x, x)) == 1
    assert math.isnan(swap_test(Profile(math.nan, np.full(8, 0.5))))
    assert swap_tests([]) == []
    lacking = Profile(0.5, np.array([0.4, math.nan, 0.6, 0.5]))
    assert pseudo_values(lacking)[1] == 0 and 0 < swap_test(lacking) <= 1
    assert [chance(p) for p in (0.0421, 1.0, 0.0001)] == [".042", "1.000", "<.001"]


@pytest.mark.parametrize("nested", [False, True])
def test_its_level_is_what_it_says_where_nothing_differs(nested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 simulations of balanced accuracy: above .075 in less than one of a hundred such tests at a level of .05."""
    monkeypatch.setattr(bench_coverage, "BETTER", 0.0)
    rng = np.random.default_rng(3)
    both = [bench_coverage.simulate(rng, 12, 2, nested) for _ in range(500)]
    found = swap_tests([difference(a.profile, b.profile) for a, b in both])
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.075
