"""Few shots, retrieval and clustering, against loops, scikit-learn and faiss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, average_precision_score
from sklearn.neighbors import NearestCentroid

from pathryoshka.evaluate.folds import Fold, make_folds
from pathryoshka.evaluate.protocols import fewshot, retrieval
from pathryoshka.evaluate.protocols.clustering import adjusted_rand, agreement, cluster
from pathryoshka.evaluate.protocols.rows import ProtocolError
from tests.blobs import Blobs, blobs, unit


def draws_of(data: Blobs, num_draws: int = 20, seed: int = 0) -> fewshot.Supports:
    return fewshot.draw_supports(data.labels, data.groups, data.folds, num_draws, seed)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of one shot NearestCentroid has no variance
def test_few_shots_are_a_nearest_centroid_a_draw() -> None:
    data = blobs(noise=3.0)
    supports = draws_of(data)
    found = fewshot.few_shot(*data.args(), supports)
    assert supports.shots == fewshot.SHOTS and set(found.accuracies) == set(found.scores) == set(fewshot.SHOTS)
    for shots in supports.shots:
        hits = np.zeros(len(data.x))
        for fold, drawn in zip(data.folds, supports.rows, strict=True):
            z = unit(data.x - data.x[fold.fit].mean(0))
            for draw in drawn[:, :, :shots]:
                rows = draw.ravel()
                model = NearestCentroid().fit(z[rows], data.labels[rows])
                hits[fold.test] += model.predict(z[fold.test]) == data.labels[fold.test]
        assert np.abs(found.accuracies[shots] - hits / 20).max() <= 0.05  # fp32 may part a tie of one draw
        assert np.mean(found.accuracies[shots] == hits / 20) > 0.98
        recalls = [hits[data.labels == label].mean() / 20 for label in np.unique(data.labels)]
        assert found.scores[shots].value == pytest.approx(np.mean(recalls), abs=2e-3)
    values = [found.scores[shots].value for shots in fewshot.SHOTS]
    assert values[0] < values[2] < values[4]


def test_supports_are_of_their_class_from_as_many_groups_as_there_are() -> None:
    data = blobs()
    supports = draws_of(data)
    for fold, drawn in zip(data.folds, supports.rows, strict=True):
        assert drawn.shape == (20, 3, 16) and np.isin(drawn, fold.fit).all()
        assert not np.isin(data.groups[drawn], data.groups[fold.test]).any()
        for c in range(3):
            assert (data.codes[drawn[:, c]] == c).all()
            groups = np.unique(data.groups[fold.fit][data.codes[fold.fit] == c])
            for draw in drawn[:, c]:
                assert len(set(draw)) == 16
                first = min(16, len(groups))
                assert len(set(data.groups[draw[:first]])) == first


def test_each_row_of_a_group_and_each_group_is_drawn_first_as_often() -> None:
    rows, groups = np.arange(100, 109), np.array([5, 5, 5, 5, 7, 7, 9, 9, 9])
    drawn = fewshot.draw(rows, groups, 4, 6000, np.random.default_rng(0))
    first = np.bincount(drawn[:, 0] - 100, minlength=9) / 6000
    np.testing.assert_allclose(first, [1 / 12] * 4 + [1 / 6] * 2 + [1 / 9] * 3, atol=0.015)
    assert (np.sort(groups[drawn[:, :3] - 100], axis=1) == [5, 7, 9]).all()


def test_draws_are_keyed_by_the_seed_and_know_no_embedding() -> None:
    data = blobs()
    one, same, other = draws_of(data), draws_of(data), draws_of(data, seed=1)
    for a, b, c in zip(one.rows, same.rows, other.rows, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_shots_that_a_class_cannot_give_are_left_out() -> None:
    data = blobs(noise=0.5)
    labels = np.where(data.labels == "tumour", "stroma", data.labels)
    rare = np.concatenate([np.flatnonzero(data.groups == g)[:1] for g in range(12)])
    labels[rare] = "rare"
    data = replace(data, labels=labels, folds=make_folds(labels, data.groups.astype(str), 4))
    supports = draws_of(data)
    assert supports.shots == (1, 2, 4, 8)
    assert set(fewshot.few_shot(*data.args(), supports).scores) == {1, 2, 4, 8}
    nobody = [Fold(fold.train[labels[fold.train] != "rare"], fold.val[:0], fold.test) for fold in data.folds]
    none = fewshot.draw_supports(labels, data.groups, nobody)
    assert fewshot.few_shot(data.x, labels, data.groups, nobody, none).scores == {}


def loop_retrieval(data: Blobs) -> dict[str, np.ndarray]:
    """Query by query, by sorting in Python."""
    out = {name: np.full(len(data.x), np.nan) for name in ["any@3", "majority@3", "majority@10", "map"]}
    for fold in data.folds:
        for i in fold.test:
            order = sorted(fold.fit, key=lambda j: -(data.x[i] @ data.x[j]))
            names = [data.labels[j] for j in order]
            out["any@3"][i] = data.labels[i] in names[:3]
            for k in (3, 10):
                votes = {name: names[:k].count(name) for name in names[:k]}
                winner = max(votes, key=lambda name: (votes[name], -names.index(name)))
                out[f"majority@{k}"][i] = winner == data.labels[i]
            relevant = data.labels[fold.fit] == data.labels[i]
            out["map"][i] = average_precision_score(relevant, data.x[fold.fit] @ data.x[i])
    return out


def test_retrieval_is_what_a_loop_and_scikit_learn_find() -> None:
    data = blobs(noise=2.5)
    found = retrieval.retrieve(*data.args())
    expected = loop_retrieval(data)
    np.testing.assert_array_equal(found.any_of[3], expected["any@3"])
    np.testing.assert_array_equal(found.majority[3], expected["majority@3"])
    np.testing.assert_array_equal(found.majority[10], expected["majority@10"])
    np.testing.assert_allclose(found.precision, expected["map"], rtol=1e-12)
    for name, values in expected.items():
        recalls = [values[data.labels == label].mean() for label in np.unique(data.labels)]
        assert found.scores[name].value == pytest.approx(np.mean(recalls))
    np.testing.assert_array_equal(found.any_of[1], found.majority[1])


def test_neighbours_are_those_of_faiss() -> None:
    faiss = pytest.importorskip("faiss", reason="SKIPPED: faiss is not installed")
    data = blobs(1200, dim=64)
    x = data.x.astype(np.float32)
    fold = data.folds[0]
    index = faiss.IndexFlatIP(64)
    index.add(x[fold.fit])
    _, nearest = index.search(x[fold.test], 10)
    found = retrieval.retrieve(x, *data.args()[1:])
    same = data.labels[fold.fit][nearest] == data.labels[fold.test, None]
    for k in retrieval.DEPTHS:
        np.testing.assert_array_equal(found.any_of[k][fold.test], same[:, :k].any(1))


def test_a_query_never_finds_its_own_group() -> None:
    """Every tile has a twin in its own group and none elsewhere: the twins must not help."""
    rng = np.random.default_rng(0)
    data = blobs(240, num_groups=24)
    x = unit(rng.standard_normal((240, 16)))
    for g in range(24):
        rows = np.flatnonzero(data.groups == g)
        x[rows] = x[rows[0]]
    found = retrieval.retrieve(x, *data.args()[1:])
    assert found.scores["any@1"].value < 0.6
    with pytest.raises(ProtocolError, match="make the folds by group"):
        retrieval.retrieve(x, data.labels, np.zeros(240, int), data.folds)


def test_a_class_that_the_archive_lacks_is_no_query_and_untested_rows_are_none() -> None:
    data = blobs().with_official_split()
    fold = data.folds[0]
    labels = data.labels.copy()
    labels[fold.test[:5]] = "new"
    found = retrieval.retrieve(data.x, labels, data.groups, data.folds)
    assert np.isnan(found.precision[fold.test[:5]]).all() and np.isnan(found.any_of[1][fold.test[:5]]).all()
    assert np.isfinite(found.precision[fold.test[5:]]).all()
    assert np.isnan(found.precision[fold.fit]).all()
    assert found.scores["map"].sums[:, 4:].sum() == len(fold.test) - 5  # totals of 4 classes, then numbers


@pytest.mark.parametrize("dim", [2, 30])
def test_clusters_agree_with_scikit_learns_index_also_under_draws(dim: int) -> None:
    data = blobs(noise=2.0, dim=dim)
    found = cluster(*data.args())
    assert found.score.value == pytest.approx(adjusted_rand_score(data.labels, found.clusters))
    counts = np.random.default_rng(0).integers(0, 3, (5, 12))
    for drawn, value in zip(counts, found.score.under(counts), strict=True):
        rows = np.repeat(np.arange(240), drawn[data.groups])
        assert value == pytest.approx(adjusted_rand_score(data.labels[rows], found.clusters[rows]))
    np.testing.assert_array_equal(found.clusters, cluster(*data.args()).clusters)


def test_clear_classes_are_found_and_constant_rows_tell_nothing() -> None:
    data = blobs(noise=0.05)
    assert cluster(*data.args()).score.value > 0.95
    official = data.with_official_split()
    found = cluster(*official.args())
    test = official.folds[0].test
    assert (found.clusters[test] >= 0).all() and (np.delete(found.clusters, test) == -1).all()
    assert found.score.sums.sum() == len(test)


def test_tables_without_a_choice() -> None:
    assert adjusted_rand(np.array([[5.0]])) == 1
    assert adjusted_rand(np.array([[3.0, 0], [0, 4.0]])) == 1
    assert np.isnan(adjusted_rand(np.zeros((2, 2))))
    assert adjusted_rand(np.array([[1.0, 1.0], [1.0, 1.0]])) == pytest.approx(
        adjusted_rand_score([0, 0, 1, 1], [0, 1, 0, 1])
    )
    alone = agreement(np.array([0, 0, 1]), np.array([1, 1, 0]), np.array([0, 0, 1]), 3)
    assert alone.sums.shape == (3, 4) and alone.value == 1


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_constant_features_are_worth_chance() -> None:
    data = blobs()
    x = np.full((240, 8), 8**-0.5)
    assert cluster(x, *data.args()[1:]).score.value == pytest.approx(0, abs=1e-9)
    few = fewshot.few_shot(x, *data.args()[1:], draws_of(data))
    assert all(abs(score.value - 1 / 3) < 0.05 for score in few.scores.values())


def test_nan_is_refused_in_a_sentence() -> None:
    data = blobs()
    bad = np.full_like(data.x, np.nan)
    for call in (retrieval.retrieve, cluster):
        with pytest.raises(ProtocolError, match="240 of 240 embeddings hold NaN or infinity"):
            call(bad, *data.args()[1:])
    with pytest.raises(ProtocolError, match="240 of 240 embeddings hold NaN or infinity"):
        fewshot.few_shot(bad, *data.args()[1:], draws_of(data))
