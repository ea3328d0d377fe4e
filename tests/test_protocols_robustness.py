"""Gene expression (HEST), centres (PathoROB), scanners and stains (PLISM), against scikit-learn, SciPy and loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from pathryoshka.evaluate.protocols import consistency, ridge, robustness
from pathryoshka.evaluate.protocols.rows import ProtocolError
from tests.blobs import Blobs, blobs, unit

NUM_GENES = 7


def expression(data: Blobs, noise: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(4)
    return (
        data.x @ rng.standard_normal((data.x.shape[1], NUM_GENES)) + noise * rng.standard_normal((240, NUM_GENES)) + 3
    )


@pytest.mark.parametrize(("dim", "num_components"), [(30, 256), (30, 8), (400, 64)])
def test_gene_expression_is_scikit_learns_pca_and_ridge(dim: int, num_components: int) -> None:
    """As the benchmark has it: no intercept, alpha from the number of components and genes."""
    data = blobs(dim=dim)
    genes = expression(data)
    found = ridge.gene_expression(data.x, genes, data.groups, data.folds, num_components)
    for number, fold in enumerate(data.folds):
        scaler = StandardScaler().fit(data.x[fold.fit])
        pca = PCA(min(num_components, dim), svd_solver="full").fit(scaler.transform(data.x[fold.fit]))
        train, test = (pca.transform(scaler.transform(data.x[rows])) for rows in (fold.fit, fold.test))
        model = Ridge(alpha=100 / (train.shape[1] * NUM_GENES), fit_intercept=False).fit(train, genes[fold.fit])
        predicted = model.predict(test)
        np.testing.assert_allclose(found.predicted[fold.test], predicted + genes[fold.fit].mean(0), atol=1e-8)
        expected = [pearsonr(predicted[:, g], genes[fold.test, g])[0] for g in range(NUM_GENES)]
        np.testing.assert_allclose(found.correlations[number], expected, atol=1e-8)
    assert found.score.value == pytest.approx(found.correlations.mean())


def test_correlations_of_redrawn_patients_are_those_of_repeated_rows() -> None:
    data = blobs()
    genes = expression(data)
    found = ridge.gene_expression(data.x, genes, data.groups, data.folds)
    counts = np.random.default_rng(0).integers(0, 3, (3, 12))
    for drawn, value in zip(counts, found.score.under(counts), strict=True):
        folds = []
        for fold in data.folds:
            rows = np.repeat(fold.test, drawn[data.groups[fold.test]])
            if len(rows):
                folds.append(np.mean([pearsonr(found.predicted[rows, g], genes[rows, g])[0] for g in range(NUM_GENES)]))
        assert value == pytest.approx(np.mean(folds))


def test_genes_that_do_not_vary_and_rows_that_nobody_tests_are_left_out() -> None:
    data = blobs().with_official_split()
    genes = expression(data)
    genes[:, 2] = 5.0
    found = ridge.gene_expression(data.x, genes, data.groups, data.folds)
    test = data.folds[0].test
    assert np.isnan(np.delete(found.predicted, test, axis=0)).all() and np.isfinite(found.predicted[test]).all()
    assert np.isnan(found.correlations[0, 2]) and np.isfinite(np.delete(found.correlations[0], 2)).all()
    assert found.score.value == pytest.approx(np.nanmean(found.correlations))
    flat = ridge.gene_expression(np.ones((240, 4)), genes, data.groups, data.folds)
    assert np.isnan(flat.score.value)  # a constant correlates with nothing
    genes[3, 1] = np.nan
    with pytest.raises(ProtocolError, match="1 of 240 rows of expression hold NaN or infinity, the first in row 3"):
        ridge.gene_expression(data.x, genes, data.groups, data.folds)
    with pytest.raises(ProtocolError, match="expression has 1 axes"):
        ridge.gene_expression(data.x, genes[:, 0], data.groups, data.folds)


def crossed(biology: float, centre: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two classes in two centres, 4 slides of 10 tiles each; how much either shows in the embedding."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(["a", "b"], 80)
    centres = np.tile(np.repeat(["x", "y"], 40), 2)
    slides = np.repeat(np.arange(16), 10)
    directions = rng.standard_normal((2, 24))
    x = biology * np.where(labels == "a", 1, -1)[:, None] * directions[0]
    x = x + centre * np.where(centres == "x", 1, -1)[:, None] * directions[1] + rng.standard_normal((160, 24))
    return unit(x), labels, centres, slides


@pytest.mark.parametrize("k", [None, 11])
def test_the_robustness_index_is_a_count_of_neighbours(k: int | None) -> None:
    x, labels, centres, slides = crossed(0.4, 0.4)
    found = robustness.robustness_index(x, labels, centres, slides, k)
    _, near = NearestNeighbors(n_neighbors=160, metric="cosine", algorithm="brute").fit(x).kneighbors(x)
    near = np.array([[j for j in row if slides[j] != slides[i]] for i, row in enumerate(near)])

    def majority(n: int) -> float:
        guesses = [max("ab", key=lambda c: ((labels[row[:n]] == c).sum(), c == "a")) for row in near]
        return balanced_accuracy_score(labels, guesses)

    ks = [n for n in robustness.NEIGHBOURS if n <= 150] if k is None else [k]
    best = max(majority(n) for n in ks)
    assert found.k == next(n for n in ks if majority(n) == best) and found.vote.value == pytest.approx(best)
    so = os = 0
    for i, row in enumerate(near[:, : found.k]):
        so += sum(labels[j] == labels[i] and centres[j] != centres[i] for j in row)
        os += sum(labels[j] != labels[i] and centres[j] == centres[i] for j in row)
    assert (found.same_biology.sum(), found.same_centre.sum()) == (so, os)
    assert found.score.value == pytest.approx(so / (so + os))


def test_counts_of_parts_are_added_and_k_suits_them_together() -> None:
    both = [crossed(0.5, 0.5), crossed(0.3, 0.6, seed=1)]
    x, labels, centres, slides = (np.concatenate(columns) for columns in zip(*both, strict=True))
    parts = np.repeat(["TCGA b", "TCGA a"], 160)
    found = robustness.robustness_index(x, labels, centres, slides, 15, parts)
    alone = [robustness.robustness_index(*one, 15) for one in both]
    np.testing.assert_array_equal(found.same_biology, np.concatenate([one.same_biology for one in alone]))
    so, os = (sum(getattr(one, name).sum() for one in alone) for name in ("same_biology", "same_centre"))
    assert found.score.value == pytest.approx(so / (so + os))
    assert found.vote.value == pytest.approx(np.mean([one.vote.value for one in alone]))

    def mean_vote(n: int) -> float:
        return float(np.mean([robustness.robustness_index(*one, n).vote.value for one in both]))

    best = robustness.robustness_index(x, labels, centres, slides, parts=parts).k
    assert mean_vote(best) == pytest.approx(max(mean_vote(n) for n in robustness.NEIGHBOURS if n <= 150))


def test_the_index_tells_who_sees_the_tissue_from_who_sees_the_centre() -> None:
    values = [robustness.robustness_index(*crossed(b, c), 15).score.value for b, c in ((2, 0.2), (0.5, 0.5), (0.2, 2))]
    assert values[0] > 0.95 and values[2] < 0.05 and values[0] > values[1] > values[2]


def test_what_has_no_robustness_is_refused() -> None:
    x, labels, centres, slides = crossed(1, 1)
    with pytest.raises(ProtocolError, match="all tiles are of one slide or one centre"):
        robustness.robustness_index(x, labels, np.full(160, "x"), slides)
    with pytest.raises(ProtocolError, match="all tiles are of one slide or one centre"):
        robustness.robustness_index(x, labels, centres, np.zeros(160, int))
    parts = np.repeat(["good", "bad"], 80)
    with pytest.raises(ProtocolError, match="all tiles of bad are of one slide or one centre"):
        robustness.robustness_index(x, labels, np.where(parts == "bad", "x", centres), slides, parts=parts)
    with pytest.raises(ProtocolError, match="k is 151, but some tile has only 150 tiles of other slides"):
        robustness.robustness_index(x, labels, centres, slides, 151)


def plism(scanner: float, stain: float, places: int = 60) -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
    """Tissue on 2 stains x 3 scanners; what either adds to the embedding."""
    rng = np.random.default_rng(1)
    tissue = rng.standard_normal((places, 16))
    names = [(f"scanner{i}", f"stain{j}") for j in range(2) for i in range(3)]
    add = {name: rng.standard_normal(16) for pair in names for name in pair}
    slides = [tissue + scanner * add[a] + stain * add[b] + 0.3 * rng.standard_normal(tissue.shape) for a, b in names]
    return unit(np.stack(slides)), [a for a, _ in names], [b for _, b in names], np.arange(places) // 10


def test_consistency_is_a_median_over_pairs_of_slides() -> None:
    x, scanners, stains, groups = plism(0.5, 1.0)
    found = consistency.consistency(x, scanners, stains, groups)
    cosines: dict[str, list[float]] = {"all": [], "scanner": [], "stain": [], "both": []}
    tops: dict[str, list[float]] = {kind: [] for kind in cosines}
    for a in range(6):
        for b in range(a + 1, 6):
            both = np.concatenate([x[a], x[b]])
            similarity = both @ both.T
            np.fill_diagonal(similarity, -np.inf)
            nearest = np.argsort(-similarity, axis=1)[:, :10]
            twin = np.r_[np.arange(60, 120), np.arange(60)]
            kind = {(True, False): "scanner", (False, True): "stain", (True, True): "both"}[
                scanners[a] != scanners[b], stains[a] != stains[b]
            ]
            for name in (kind, "all"):
                cosines[name].append(float((x[a] * x[b]).sum(1).mean()))
                tops[name].append(float((nearest == twin[:, None]).any(1).mean()))
    assert {kind: len(pairs) for kind, pairs in found.pairs.items()} == {"all": 15, "scanner": 6, "stain": 3, "both": 6}
    for kind in cosines:
        assert found.cosine[kind].value == pytest.approx(np.median(cosines[kind]))
        assert found.top[kind].value == pytest.approx(np.median(tops[kind]))
    assert found.cosine["scanner"].value > found.cosine["stain"].value > found.cosine["both"].value
    assert len(found.top["all"].sums) == 6 and np.isnan(found.top["all"].under(np.zeros((1, 6))))


def test_an_embedding_that_tells_nothing_apart_finds_no_twin() -> None:
    x, scanners, stains, groups = plism(0, 0)
    flat = consistency.consistency(np.full_like(x, 0.25), scanners, stains, groups)
    assert flat.cosine["all"].value == 1 and flat.top["all"].value == 0
    same = consistency.consistency(np.repeat(x[:1], 6, axis=0), scanners, stains, groups)
    assert same.top["all"].value == 1
    with pytest.raises(ProtocolError, match="6 slides of 60 places with 5 scanners"):
        consistency.consistency(x, scanners[1:], stains, groups)
    with pytest.raises(ProtocolError, match="slides hold NaN or infinity"):
        consistency.consistency(x * np.nan, scanners, stains, groups)
