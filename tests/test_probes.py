"""Probes, folds, PCA and intervals, against scikit-learn and loops."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from pathryoshka.evaluate import probes

NUM_PATIENTS = 12


def blobs(n: int = 240, dim: int = 30, noise: float = 1.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three unequal classes in 30 numbers; tiles of a patient share an offset."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    patients = rng.integers(0, NUM_PATIENTS, n)
    centres, offsets = rng.standard_normal((3, dim)), 0.3 * rng.standard_normal((NUM_PATIENTS, dim))
    x = centres[codes] + offsets[patients] + noise * rng.standard_normal((n, dim))
    return x * np.geomspace(1, 20, dim), np.array(["adipose", "stroma", "tumour"])[codes], patients.astype(str)


def test_folds_split_patients_and_cover_every_tile_once() -> None:
    _, labels, patients = blobs()
    folds = probes.make_folds(labels, patients, 5)
    assert len(folds) == 5
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(labels)))
    for train, test in folds:
        assert not set(patients[train]) & set(patients[test])
        assert len(train) + len(test) == len(labels)
        assert set(labels[test]) == set(labels)


def test_fewer_folds_where_a_class_has_fewer_patients() -> None:
    patients = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
    labels = np.array(["x", "y", "x", "y", "x", "y", "x", "x"])
    assert len(probes.make_folds(labels, patients, 5)) == 3


def test_labels_that_cannot_be_scored_are_refused() -> None:
    patients = np.array(["a", "b", "c"])
    with pytest.raises(probes.ProbeError, match="all 3 tiles have the label 'x'"):
        probes.make_folds(np.array(["x"] * 3), patients, 5)
    with pytest.raises(probes.ProbeError, match="only one patient has tiles of class 'y'"):
        probes.make_folds(np.array(["x", "x", "y"]), patients, 5)
    with pytest.raises(probes.ProbeError, match="no tile has a label"):
        probes.make_folds(np.array([], str), np.array([], str), 5)


@pytest.mark.parametrize("dim", [6, 30, 400])  # 400: more numbers than rows
def test_linear_probe_is_sklearns_logistic_regression(dim: int) -> None:
    x, labels, _ = blobs(200, dim)
    reference = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=probes.C / dim, class_weight="balanced", max_iter=5000, tol=1e-8),
    ).fit(x[:120], labels[:120])
    agree = probes.linear_probe(x[:120], labels[:120], x[120:]) == reference.predict(x[120:])
    assert agree.mean() >= 0.985  # a tile on the border may fall to either side at our coarser tolerance


def test_a_channel_that_is_nearly_constant_cannot_take_over() -> None:
    x, labels, _ = blobs(200, 10)
    rng = np.random.default_rng(1)
    with_dust = np.concatenate([x, 1e-12 * rng.standard_normal((200, 50))], axis=1)
    clean = probes.linear_probe(x[:120], labels[:120], x[120:])
    dusty = probes.linear_probe(with_dust[:120], labels[:120], with_dust[120:])
    scaled = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000))
    naive = scaled.fit(with_dust[:120], labels[:120]).predict(with_dust[120:])
    assert np.mean(dusty == clean) > np.mean(naive == clean)
    assert np.mean(dusty == clean) > 0.9


@pytest.mark.parametrize(("n", "k"), [(30, 5), (600, 12)])
def test_knn_is_sklearns_with_cosine_weights(n: int, k: int) -> None:
    x, labels, _ = blobs(n + 50, noise=2.0)
    x = probes.normalise(x)
    reference = KNeighborsClassifier(
        k, metric="cosine", weights=lambda d: np.maximum(1 - d, 0) + 1e-9, algorithm="brute"
    )
    reference.fit(x[:n], labels[:n])
    np.testing.assert_array_equal(probes.knn_probe(x[:n], labels[:n], x[n:]), reference.predict(x[n:]))


def test_a_width_is_a_prefix_of_length_one() -> None:
    x = blobs()[0]
    np.testing.assert_allclose(probes.cut(x, 7), normalize(x[:, :7]), rtol=1e-12)
    np.testing.assert_allclose(probes.cut(probes.normalise(x), 7), probes.cut(x, 7), rtol=1e-12)
    assert not probes.normalise(np.zeros((2, 3))).any()


@pytest.mark.parametrize("dims", [(20, 12), (150, 130)])  # fewer and more numbers than training rows
def test_pca_of_teachers_is_sklearns_on_the_training_rows(dims: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    teachers = [1000 * rng.standard_normal((90, dims[0])) @ np.diag(np.geomspace(1, 9, dims[0])) + 5,
                rng.standard_normal((90, dims[1]))]  # fmt: skip
    folds = [(np.arange(60), np.arange(60, 90))]
    ((train, test),) = probes.pca_folds(teachers, folds, 8)
    parts = [(x - x[:60].mean(0)) / np.sqrt(x[:60].var(0).sum()) for x in teachers]
    joint = np.concatenate(parts, axis=1)
    assert [round(part[:60].var(0).sum(), 9) for part in parts] == [1, 1]  # neither teacher counts for more
    reference = PCA(8, svd_solver="full").fit(joint[:60])
    signs = np.sign((reference.transform(joint[:60]) * train).sum(0))
    np.testing.assert_allclose(train * signs, reference.transform(joint[:60]), atol=1e-9)
    np.testing.assert_allclose(test * signs, reference.transform(joint[60:]), atol=1e-9)


def test_pca_gives_no_more_numbers_than_the_rows_span() -> None:
    x = np.random.default_rng(0).standard_normal((20, 50))
    ((train, _),) = probes.pca_folds([x], [(np.arange(12), np.arange(12, 20))], 64)
    assert train.shape == (12, 11)


def test_pca_does_not_look_at_the_test_rows() -> None:
    x = np.random.default_rng(0).standard_normal((30, 10))
    fold = [(np.arange(20), np.arange(20, 30))]
    other = x.copy()
    other[20:] *= 100
    np.testing.assert_allclose(probes.pca_folds([x], fold, 4)[0][0], probes.pca_folds([other], fold, 4)[0][0])


def test_scores_of_draws_equal_a_loop_over_redrawn_patients() -> None:
    _, labels, patients = blobs(80)
    rng = np.random.default_rng(3)
    predicted = np.where(rng.random(80) < 0.6, labels, "stroma")
    draws = probes.redraw(patients, 20, seed=5)
    scores = probes.balanced_accuracies(labels, predicted, draws)
    names = np.unique(patients)
    assert scores[0] == pytest.approx(balanced_accuracy_score(labels, predicted))
    for counts, score in zip(draws.counts[1:], scores[1:], strict=True):
        assert counts.sum() == len(names)
        rows = np.concatenate([np.flatnonzero(patients == names[g]) for g, n in enumerate(counts) for _ in range(n)])
        assert score == pytest.approx(balanced_accuracy_score(labels[rows], predicted[rows]))


def test_a_class_that_a_draw_lacks_does_not_count_in_it() -> None:
    labels, predicted = np.array(["a", "a", "b"]), np.array(["a", "b", "b"])
    draws = probes.Draws(np.array([0, 0, 1]), np.array([[1, 1], [2, 0]]))
    np.testing.assert_allclose(probes.balanced_accuracies(labels, predicted, draws), [0.75, 0.5])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 data sets of 30 patients, whose tiles are right or wrong together: coverage of the 95 % interval."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        patients = np.repeat(np.arange(30), 10).astype(str)
        skill = np.repeat(np.clip(rng.normal(0.7, 0.15, 30), 0, 1), 10)
        labels = np.tile(["a", "b"], 150)
        wrong = np.where(labels == "a", "b", "a")
        predicted = np.where(rng.random(300) < skill, labels, wrong)
        values = probes.balanced_accuracies(labels, predicted, probes.redraw(patients, 200, seed))
        _, low, high = probes.interval(values)
        hits += low <= 0.7 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_differences_are_paired() -> None:
    """Encoders that fail on the same hard patients differ by little, however much the patients differ."""
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(20), 20).astype(str)
    labels = np.tile(["a", "b"], 200)
    wrong = np.where(labels == "a", "b", "a")
    luck = rng.random(400)
    skill = np.repeat(rng.uniform(0.3, 1, 20), 20)
    one, other = np.where(luck < skill, labels, wrong), np.where(luck < skill - 0.03, labels, wrong)
    draws = probes.redraw(patients)
    a, b = (probes.balanced_accuracies(labels, predicted, draws) for predicted in (one, other))
    value, low, high = probes.interval(a - b)
    assert low <= value <= high and high - low < 0.06
    assert np.ptp(probes.interval(a)[1:]) > 0.12


def test_predictions_never_come_from_a_probe_that_saw_the_patient() -> None:
    x, labels, patients = blobs()
    folds = probes.make_folds(labels, patients, 4)
    trained_on: list[set[str]] = []

    def spy(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        trained_on.append({patients[int(i)] for i in train[:, 0]})
        return np.array([f"{len(trained_on) - 1}"] * len(test))

    indexed = np.column_stack([np.arange(len(x)), x])
    predicted = probes.predict(indexed, labels, folds, spy)
    for patient, fold in zip(patients, predicted, strict=True):
        assert patient not in trained_on[int(fold)]
