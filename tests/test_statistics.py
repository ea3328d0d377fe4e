"""Intervals, tests and summaries over groups, against SciPy, scikit-learn and loops; coverage on simulated data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from pathryoshka.evaluate.statistics import Estimate, interval, jackknife, noise, over_benchmarks, paired
from pathryoshka.evaluate.tally import Profile, Tally, balanced_mean_of, combine, difference, mean_of
from tests.bench.bench_coverage import coverage


def hits(n: int = 120, num_groups: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """labels, predictions of two encoders, groups."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    a, b = (np.where(rng.random(n) < p, labels, rng.integers(0, 3, n)) for p in (0.7, 0.4))
    return labels, a, b, rng.integers(0, num_groups, n)


def balanced(labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray) -> Tally:
    return balanced_mean_of((labels == predicted).astype(float), labels, groups, groups.max() + 1)


def test_a_tally_is_the_score_of_any_draw_of_groups() -> None:
    labels, a, _, groups = hits()
    tally = balanced(labels, a, groups)
    assert tally.value == pytest.approx(balanced_accuracy_score(labels, a))
    counts = np.random.default_rng(1).multinomial(10, np.full(10, 0.1), size=5)
    for row, score in zip(counts, tally.under(counts), strict=True):
        rows = np.concatenate([np.tile(np.flatnonzero(groups == g), times) for g, times in enumerate(row)])
        assert score == pytest.approx(balanced_accuracy_score(labels[rows.astype(int)], a[rows.astype(int)]))


def test_a_class_that_a_draw_lacks_is_left_out() -> None:
    labels, groups = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    tally = balanced_mean_of(np.array([1.0, 0.0, 1.0, 1.0]), labels, groups, 2)
    np.testing.assert_allclose(tally.under(np.array([[2, 0], [0, 2], [1, 1]])), [0.5, 1.0, 0.75])
    assert np.isnan(tally.under(np.array([[0, 0]])))[0]


def test_rows_without_a_value_are_left_out() -> None:
    assert mean_of(np.array([1.0, np.nan, 0.0]), np.array([0, 0, 1]), 2).value == 0.5


def test_combined_tallies_are_combined_scores() -> None:
    labels, a, b, groups = hits()
    one, other = balanced(labels, a, groups), balanced(labels, b, groups)
    both = combine((one.profile, other.profile), (0.25, 0.75))
    assert both.value == pytest.approx(0.25 * one.value + 0.75 * other.value)
    without_3 = groups != 3
    expected = [balanced_accuracy_score(labels[without_3], x[without_3]) for x in (a, b)]
    assert both.without[3] == pytest.approx(0.25 * expected[0] + 0.75 * expected[1])
    assert difference(one.profile, other.profile).value == pytest.approx(one.value - other.value)


def test_the_jackknife_of_a_mean_is_the_textbook_t_interval() -> None:
    x = np.random.default_rng(0).normal(3, 2, 12)
    found = interval(mean_of(x, np.arange(12), 12).profile)
    assert found.error == pytest.approx(stats.sem(x))
    low, high = stats.t.interval(0.95, found.freedom, x.mean(), stats.sem(x))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.freedom <= 11


def test_freedom_falls_where_few_groups_make_the_variance() -> None:
    even, odd = np.tile([1.0, -1.0], 20), np.r_[np.zeros(38), 5.0, -5.0]
    groups = np.arange(40)
    assert jackknife(mean_of(even, groups, 40).profile)[2] == pytest.approx(39)
    assert jackknife(mean_of(odd, groups, 40).profile)[2] < 6


def test_a_share_stays_a_share() -> None:
    groups = np.arange(20)
    near = interval(mean_of(np.r_[np.ones(19), 0.0], groups, 20).profile, share=True)
    assert 0 < near.low < 0.95 < near.high < 1
    perfect = interval(mean_of(np.ones(20), groups, 20).profile, share=True)
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(stats.binomtest(20, 20).proportion_ci(method="exact").low)
    nothing = interval(mean_of(np.zeros(20), groups, 20).profile, share=True)
    assert nothing.high == pytest.approx(stats.binomtest(0, 20).proportion_ci(method="exact").high)


def test_a_correlation_stays_one_and_its_scale_is_fishers() -> None:
    score = Profile(0.9, 0.9 - 0.02 * np.random.default_rng(0).standard_normal(12))
    found, (_, error, freedom) = interval(score, signed=True), jackknife(score)
    reach = stats.t.ppf(0.975, freedom) * error / (1 - 0.9**2)
    assert (found.low, found.high) == pytest.approx(tuple(np.tanh(np.arctanh(0.9) + sign * reach) for sign in (-1, 1)))
    assert found.value == 0.9 and found.error == pytest.approx(error) and found.high < 1 < 0.9 + reach


def test_one_group_says_nothing_of_others() -> None:
    found = interval(mean_of(np.ones(5), np.zeros(5, int), 1).profile)
    assert found.value == 1 and math.isnan(found.low) and math.isnan(found.error)


def test_mean_and_median_over_benchmarks() -> None:
    each = [Estimate(v, v - 0.02, v + 0.02, 0.01, 50) for v in (0.0, 0.01, 0.5)]
    found = over_benchmarks(each)
    assert found.mean.value == pytest.approx(0.17) and found.median.value == 0.01
    assert found.mean.high - found.mean.low == pytest.approx(2 * 2.0 * 0.01 / math.sqrt(3), rel=0.05)
    assert found.median.low < 0.01 < found.median.high < 0.04


def test_the_noise_of_seeds() -> None:
    assert noise([0.80, 0.82]) == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(2) * np.std([0.8, 0.82], ddof=1))
    assert math.isnan(noise([0.8]))


@pytest.mark.parametrize("num_groups", [8, 16])
def test_intervals_of_differences_cover_and_percentiles_do_not(num_groups: int) -> None:
    """300 simulations: a method of 95 % coverage is below .92 in one of a hundred such tests."""
    found = coverage(num_groups, num_classes=2, nested=True, num_simulations=300, seed=1)
    assert found["difference"]["jackknife"] >= 0.92
    assert found["difference"]["percentile"] < found["difference"]["jackknife"]


def test_an_interval_of_a_difference_uses_the_pairs() -> None:
    labels, a, _, groups = hits(400, 20)
    b = np.where(np.random.default_rng(5).random(400) < 0.05, (a + 1) % 3, a)  # nearly the same predictions
    one, other = balanced(labels, a, groups).profile, balanced(labels, b, groups).profile
    apart = math.hypot(interval(one).error, interval(other).error)
    assert paired(one, other).error < 0.5 * apart
