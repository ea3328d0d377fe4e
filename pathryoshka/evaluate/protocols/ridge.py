"""Gene expression from a tile: the protocol of the HEST benchmark (Jaume et al. 2024): PCA, ridge, Pearson.

Features are standardised and reduced to 256 principal components on the training rows of a fold; one ridge regression
of all G genes has the penalty alpha = 100 / (D G), D being the number of components; its score is Pearson's correlation
a gene over the test rows of a fold, then the mean over genes, then over folds. The benchmark's own code says the same
and fits no intercept: its components are centred, so that one only shifts predictions, which no correlation sees. It is
added here, so that predictions are in the unit of the genes. Two differences: rows are L2-normalised beforehand, as in
every protocol here, and a gene that does not vary in the test rows of a fold is left out of its mean (NaN there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols.rows import ProtocolError, check, check_finite, size
from pathryoshka.evaluate.tally import Tally

NUM_COMPONENTS = 256
PENALTY = 100.0


@dataclass(frozen=True)
class Expression:
    """Out-of-fold regressions.

    Attributes:
        predicted: [N, G] in the unit of the genes; NaN where no fold tests the row.
        correlations: [F, G] Pearson's over the test rows of each fold; NaN where either side does not vary.
        score: their mean over genes, then folds; sums a group, so that patients can be redrawn.
    """

    predicted: np.ndarray
    correlations: np.ndarray
    score: Tally


def gene_expression(
    x_ND: np.ndarray | Sequence[np.ndarray],
    genes_NG: np.ndarray,
    groups: np.ndarray,
    folds: Sequence[Fold],
    num_components: int = NUM_COMPONENTS,
) -> Expression:
    """Ridge regression of every gene from components of the rows.

    Args:
        x_ND: rows as they are stored; or such rows of each fold, where a transform was fitted on what it learns from.
        genes_NG: expression, log1p of normalised counts in HEST.
        groups: [N] codes of patients.
        folds: by patient; a ridge has nothing to choose, so it is fitted on `fit`.

    Raises:
        ProtocolError: see `rows.check`; genes that are not one row a tile, or not finite.
    """
    if genes_NG.ndim != 2:
        raise ProtocolError(f"expression has {genes_NG.ndim} axes; give [tiles, genes]")
    by_fold = [x_ND] * len(folds) if isinstance(x_ND, np.ndarray) else x_ND
    for rows_ND in by_fold[:1] if isinstance(x_ND, np.ndarray) else by_fold:
        check(rows_ND, genes_NG[:, 0], groups, folds)
    check_finite(genes_NG, "rows of expression")
    predicted = np.full(genes_NG.shape, np.nan)
    sums = np.zeros((size(groups), len(folds), genes_NG.shape[1], 6))
    for number, (fold, rows_ND) in enumerate(zip(folds, by_fold, strict=True)):
        predicted[fold.test] = regress(rows_ND[fold.fit], genes_NG[fold.fit], rows_ND[fold.test], num_components)
        # shifted by their means: no digits are lost in differences of large sums
        p, t = (y[fold.test] - y[fold.test].mean(0) for y in (predicted, np.asarray(genes_NG, np.float64)))
        stats = np.stack([np.ones_like(p), p, t, p * p, t * t, p * t], axis=-1)
        np.add.at(sums[:, number], groups[fold.test], stats)
    shape = sums.shape[1:]

    def finish(flat: np.ndarray) -> np.ndarray:
        by_fold = mean_of_known(pearson(flat.reshape(*flat.shape[:-1], *shape)))
        return mean_of_known(by_fold)

    return Expression(predicted, pearson(sums.sum(0)), Tally(sums.reshape(len(sums), -1), finish))


def regress(train_ND: np.ndarray, genes_NG: np.ndarray, test_MD: np.ndarray, num_components: int) -> np.ndarray:
    """[M, G] by ridge on the principal components of the standardised training rows; fewer where these span fewer."""
    mean, spread = train_ND.mean(0, dtype=np.float64), train_ND.std(0, dtype=np.float64)
    spread = np.where(spread > 0, spread, 1)
    train, test = (train_ND - mean) / spread, (test_MD - mean) / spread
    values, vectors = np.linalg.eigh(train.T @ train)
    keep = np.flatnonzero(values > values[-1] * 1e-10)[::-1][:num_components]
    centre = genes_NG.mean(0, dtype=np.float64)
    if not len(keep):
        return np.broadcast_to(centre, (len(test), len(centre)))
    alpha = PENALTY / (len(keep) * genes_NG.shape[1])
    basis = vectors[:, keep]
    weights = basis @ ((basis.T @ (train.T @ (genes_NG - centre))) / (values[keep] + alpha)[:, None])
    return test @ weights + centre


def pearson(sums: np.ndarray) -> np.ndarray:
    """[...] of sums [..., 6]: number, p, t, p p, t t, p t; NaN where p or t does not vary."""
    number = np.maximum(sums[..., 0], 1)
    _, p, t, pp, tt, pt = np.moveaxis(sums, -1, 0)
    var_p, var_t = pp - p * p / number, tt - t * t / number
    known = (var_p > 1e-12 * pp) & (var_t > 1e-12 * tt)
    return np.divide(
        pt - p * t / number, np.sqrt(np.where(known, var_p * var_t, 1)), out=np.full(p.shape, np.nan), where=known
    )


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN where all are."""
    known = np.isfinite(values)
    number = known.sum(-1)
    total = np.where(known, values, 0).sum(-1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
