"""Linear probe, nearest neighbours and calibration, against scikit-learn and loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_info, threadpool_limits

from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols import knn, linear
from pathryoshka.evaluate.protocols.calibration import NUM_BINS, calibration
from pathryoshka.evaluate.protocols.rows import ProtocolError, balanced_accuracy
from tests.blobs import blobs

BOTH = pytest.mark.parametrize("probe", [linear.linear_probe, knn.knn_probe])


def reference_neighbours(k: int) -> KNeighborsClassifier:
    return KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.maximum(1 - d, 0) + 1e-9, algorithm="brute")


def test_the_linear_probe_is_scikit_learns_with_c_chosen_by_hand() -> None:
    data = blobs(noise=2.0)
    found = linear.linear_probe(*data.args())
    for fold, chosen in zip(data.folds, found.chosen, strict=True):
        spread = data.x[fold.train].std(0) * np.sqrt(data.x.shape[1])
        scores = {}
        for c in linear.PENALTIES:
            model = LogisticRegression(C=c, class_weight="balanced", max_iter=5000, tol=1e-8)
            model.fit(data.x[fold.train] / spread, data.labels[fold.train])
            scores[c] = balanced_accuracy_score(data.labels[fold.val], model.predict(data.x[fold.val] / spread))
        assert scores[chosen] >= max(scores.values()) - 0.03  # a tile on the border may fall to either side
        spread = data.x[fold.fit].std(0) * np.sqrt(data.x.shape[1])
        model = LogisticRegression(C=chosen, class_weight="balanced", max_iter=5000, tol=1e-8)
        model.fit(data.x[fold.fit] / spread, data.labels[fold.fit])
        np.testing.assert_allclose(
            found.probabilities[fold.test], model.predict_proba(data.x[fold.test] / spread), atol=0.003
        )
    assert len(set(found.chosen)) > 1


def test_the_linear_probe_asks_blas_for_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many as there are cores its small products are 15 times slower."""
    seen = []

    class Watched(LogisticRegression):
        def fit(self, *args: np.ndarray) -> LogisticRegression:
            seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
            return super().fit(*args)

    monkeypatch.setattr(linear, "LogisticRegression", Watched)
    data = blobs()
    with threadpool_limits(2, user_api="blas"):
        linear.linear_probe(*data.args())
    assert seen and set(seen) == {1}


def test_of_equally_good_penalties_the_strongest_is_taken_and_without_val_it_is_fixed() -> None:
    data = blobs(noise=0.01)  # every C is perfect
    assert set(linear.linear_probe(*data.args()).chosen) == {linear.PENALTIES[0]}
    bare = [Fold(fold.fit, fold.val[:0], fold.test) for fold in data.folds]
    assert set(linear.linear_probe(data.x, data.labels, data.groups, bare).chosen) == {linear.FIXED}


def test_a_warm_start_changes_no_prediction() -> None:
    data = blobs(400, noise=2.0)
    fold = data.folds[0]
    warm = linear.fit_and_predict(data.x, data.codes, fold.train, fold.val, linear.PENALTIES, 3)
    for c, along_the_path in zip(linear.PENALTIES, warm, strict=True):
        cold = linear.fit_and_predict(data.x, data.codes, fold.train, fold.val, (c,), 3)[0]
        assert (cold.argmax(1) == along_the_path.argmax(1)).mean() > 0.98
        np.testing.assert_allclose(cold, along_the_path, atol=0.003)


def test_a_channel_that_is_nearly_constant_cannot_take_over() -> None:
    data = blobs(dim=10)
    dust = 1e-12 * np.random.default_rng(1).standard_normal((len(data.x), 50))
    clean = linear.linear_probe(*data.args()).predicted
    dusty = linear.linear_probe(np.concatenate([data.x, dust], axis=1), *data.args()[1:]).predicted
    assert np.mean(clean == dusty) > 0.97


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbours_are_scikit_learns_with_k_chosen_by_hand(dtype: type) -> None:
    data = blobs(300, noise=2.0)
    x = data.x.astype(dtype)
    found = knn.knn_probe(x, *data.args()[1:])
    for fold, chosen in zip(data.folds, found.chosen, strict=True):
        scores = {}
        for k in knn.NEIGHBOURS:
            model = reference_neighbours(k).fit(x[fold.train], data.labels[fold.train])
            scores[k] = balanced_accuracy_score(data.labels[fold.val], model.predict(x[fold.val]))
        assert chosen == max(k for k in scores if scores[k] == max(scores.values()))
        model = reference_neighbours(int(chosen)).fit(x[fold.fit], data.labels[fold.fit])
        np.testing.assert_array_equal(found.predicted[fold.test], model.predict(x[fold.test]))
        np.testing.assert_allclose(found.probabilities[fold.test], model.predict_proba(x[fold.test]), atol=1e-6)


def test_few_rows_bound_the_number_of_voters() -> None:
    data = blobs(60)
    assert max(knn.knn_probe(*data.args()).chosen) <= min(len(fold.train) for fold in data.folds)
    bare = [Fold(fold.fit, fold.val[:0], fold.test) for fold in data.folds]
    assert set(knn.knn_probe(data.x, data.labels, data.groups, bare).chosen) == {5.0}


@BOTH
def test_scores_are_of_tested_rows_alone(probe: type[linear.linear_probe]) -> None:  # type: ignore[valid-type]
    data = blobs().with_official_split()
    found = probe(*data.args())
    test = data.folds[0].test
    rest = np.setdiff1d(np.arange(len(data.x)), test)
    assert len(rest) > 0 and np.isnan(found.probabilities[rest]).all() and set(found.predicted[rest]) == {""}
    assert found.score.value == pytest.approx(balanced_accuracy_score(data.labels[test], found.predicted[test]))
    np.testing.assert_allclose(found.probabilities[test].sum(1), 1)
    untested = np.setdiff1d(data.groups, data.groups[test])
    assert not found.score.sums[untested].any() and len(found.score.sums) == data.groups.max() + 1


@BOTH
def test_constant_features_are_worth_chance(probe: type[linear.linear_probe]) -> None:  # type: ignore[valid-type]
    data = blobs()
    assert probe(np.full((240, 8), 8**-0.5), *data.args()[1:]).score.value == pytest.approx(1 / 3)


@BOTH
def test_what_cannot_be_scored_is_refused_in_a_sentence(probe: type[linear.linear_probe]) -> None:  # type: ignore[valid-type]
    data = blobs()
    bad = data.x.copy()
    bad[[17, 40], 3] = np.nan, np.inf
    with pytest.raises(ProtocolError, match="2 of 240 embeddings hold NaN or infinity, the first in row 17"):
        probe(bad, *data.args()[1:])
    with pytest.raises(ProtocolError, match="239 embeddings, 240 labels and 240 groups do not belong together"):
        probe(data.x[1:], *data.args()[1:])
    with pytest.raises(ProtocolError, match="is learned from and tested in the same fold; make the folds by group"):
        probe(data.x, data.labels, np.zeros(240, int), data.folds)


def test_a_class_that_only_val_has_is_still_predicted() -> None:
    data = blobs(noise=0.3)
    labels = data.labels.copy()
    fold = data.folds[0]
    labels[fold.val[:6]] = "zebra"
    for probe in (linear.linear_probe, knn.knn_probe):
        found = probe(data.x, labels, data.groups, [fold])
        assert found.probabilities.shape == (240, 4) and np.isfinite(found.probabilities[fold.test]).all()


def test_balanced_accuracy_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    codes, guesses = rng.choice([0, 1, 3], 50), rng.integers(0, 5, 50)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(codes, guesses)
    assert balanced_accuracy(codes, guesses) == pytest.approx(expected)


def loop_ece(confidence: np.ndarray, right: np.ndarray, weight: np.ndarray) -> float:
    """Eq. 3 of Guo et al. 2017, row by row."""
    total = 0.0
    for m in range(NUM_BINS):
        rows = [i for i, c in enumerate(confidence) if m / NUM_BINS < c <= (m + 1) / NUM_BINS]
        if rows:
            w = weight[rows]
            total += (
                w.sum()
                / weight.sum()
                * abs(np.average(right[rows], weights=w) - np.average(confidence[rows], weights=w))
            )
    return total


def test_calibration_error_is_that_of_a_loop_also_under_draws() -> None:
    data = blobs(300, noise=2.5)
    found = linear.linear_probe(*data.args())
    said = calibration(found.probabilities, data.labels, data.groups)
    confidence, right = found.probabilities.max(1), found.predicted == data.labels
    assert said.plain.value == pytest.approx(loop_ece(confidence, right, np.ones(300)))
    weight = 1 / np.bincount(data.codes)[data.codes]
    assert said.balanced.value == pytest.approx(loop_ece(confidence, right, weight))
    counts = np.random.default_rng(0).integers(0, 3, (4, 12))
    for drawn, value in zip(counts, said.plain.under(counts), strict=True):
        assert value == pytest.approx(loop_ece(confidence, right, drawn[data.groups].astype(float)))
    assert said.counts.sum() == 300 and said.confidences.shape == (NUM_BINS,)


def test_calibration_leaves_out_rows_that_nobody_predicted() -> None:
    data = blobs().with_official_split()
    found = linear.linear_probe(*data.args())
    test = data.folds[0].test
    whole = calibration(found.probabilities, data.labels, data.groups)
    assert whole.counts.sum() == len(test)
    part = calibration(found.probabilities[test], data.labels[test], data.groups[test])
    assert whole.plain.value == pytest.approx(part.plain.value)


def test_a_sure_and_right_classifier_has_no_calibration_error() -> None:
    data = blobs()
    sure = np.eye(3)[data.codes]
    assert calibration(sure, data.labels, data.groups).plain.value == 0
    wrong = np.roll(sure, 1, axis=1)
    assert calibration(wrong, data.labels, data.groups).balanced.value == 1


def test_probes_do_not_change_their_rows() -> None:
    data = blobs()
    before = data.x.copy()
    again = replace(data, x=before.copy())
    for probe in (linear.linear_probe, knn.knn_probe):
        one, other = probe(*data.args()), probe(*again.args())
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    np.testing.assert_array_equal(data.x, before)
