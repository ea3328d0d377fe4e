"""PCA of the teachers side by side: what a linear student could be at most, at the price of all teachers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def pca_of(teachers: Sequence[np.ndarray], fit: np.ndarray, width: int) -> np.ndarray:
    """Principal components of all rows, by means, scales and directions of the rows `fit` alone.

    Each teacher is centred and divided by the root of its total variance, so that none counts more for being wider or
    louder.

    Args:
        teachers: [N, D_t] each, the same tiles in the same order. fit: row numbers.

    Returns:
        [N, r], components by falling variance; r is `width` or what the rows can span.
    """
    parts = []
    for x_ND in teachers:
        centred = np.asarray(x_ND, np.float64) - x_ND[fit].mean(0, dtype=np.float64)
        parts.append(centred / max(math.sqrt(centred[fit].var(0).sum()), 1e-12))
    joint = np.concatenate(parts, axis=1)
    known = joint[fit]
    n, dim = known.shape
    gram = known @ known.T if n < dim else known.T @ known
    values, vectors = np.linalg.eigh(gram)
    keep = np.flatnonzero(values > values[-1] * 1e-9)[::-1][:width]
    basis = vectors[:, keep]
    if n < dim:
        basis = known.T @ basis / np.sqrt(values[keep])
    return joint @ basis
