"""PCA of teachers side by side, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from pathryoshka.evaluate.pca import pca_of

FIT = np.arange(60)


@pytest.mark.parametrize("dims", [(20, 12), (150, 130)])  # fewer and more numbers than training rows
def test_it_is_sklearns_on_the_training_rows(dims: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    teachers = [1000 * rng.standard_normal((90, dims[0])) @ np.diag(np.geomspace(1, 9, dims[0])) + 5,
                rng.standard_normal((90, dims[1]))]  # fmt: skip
    found = pca_of(teachers, FIT, 8)
    parts = [(x - x[:60].mean(0)) / np.sqrt(x[:60].var(0).sum()) for x in teachers]
    joint = np.concatenate(parts, axis=1)
    assert [round(part[:60].var(0).sum(), 9) for part in parts] == [1, 1]  # neither teacher counts for more
    reference = PCA(8, svd_solver="full").fit(joint[:60]).transform(joint)
    signs = np.sign((reference[:60] * found[:60]).sum(0))
    np.testing.assert_allclose(found * signs, reference, atol=1e-9)


def test_no_more_numbers_than_the_rows_span() -> None:
    x = np.random.default_rng(0).standard_normal((20, 50))
    assert pca_of([x], np.arange(12), 64).shape == (20, 11)


def test_the_other_rows_are_not_looked_at() -> None:
    x = np.random.default_rng(0).standard_normal((30, 10))
    spoilt = x.copy()
    spoilt[20:] *= 50
    one, other = pca_of([x], np.arange(20), 4), pca_of([spoilt], np.arange(20), 4)
    np.testing.assert_allclose(one[:20], other[:20])
