"""Searching by a short-list: the exact search against NumPy and faiss, what rounding and short-lists may miss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathryoshka.evaluate.protocols import adaptive
from pathryoshka.evaluate.protocols.rows import ProtocolError
from tests.blobs import unit


def nested(num: int, dim: int = 96, seed: int = 0) -> np.ndarray:
    """Rows of length 1 in clusters, most of whose variance lies in the first numbers; far from centred."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, dim))
    x = centres[rng.integers(0, 40, num)] + 0.7 * rng.standard_normal((num, dim))
    return unit(x * np.arange(1, dim + 1) ** -0.7 + np.r_[3.0, np.zeros(dim - 1)]).astype(np.float32)


def by_sorting(x: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries.astype(np.float64) @ x.T.astype(np.float64)), axis=1)[:, :k]


def same(found: np.ndarray, expected: np.ndarray, x: np.ndarray, queries: np.ndarray) -> None:
    """The same rows, but for those whose cosines fp32 cannot tell apart."""
    cosines = queries.astype(np.float64) @ x.T.astype(np.float64)
    one, other = (np.take_along_axis(cosines, rows, axis=1) for rows in (found, expected))
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize("num", [1, 31, 2048, 2049, 5000])  # a block, a chunk and their fringes
def test_exact_search_is_a_sort(num: int) -> None:
    x, queries = nested(num), nested(37, seed=1)
    found = adaptive.search(adaptive.make_archive(x), queries)
    assert found.shape == (37, min(10, num))
    same(found, by_sorting(x, queries, 10), x, queries)


def test_exact_search_is_that_of_faiss() -> None:
    faiss = pytest.importorskip("faiss", reason="SKIPPED: faiss is not installed")
    x, queries = nested(5000), nested(50, seed=1)
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    same(adaptive.search(adaptive.make_archive(x), queries), index.search(queries, 10)[1], x, queries)


def test_largest_products_are_found_wherever_they_lie() -> None:
    """All of the best in one block, then each in a block of its own, then more asked for than there are blocks."""
    for rows in (np.arange(320, 330), np.arange(0, 3200, 320), np.arange(3190, 3200)):
        x = -np.ones((3200, 4), np.float32)
        x[rows, 0] = np.arange(1, 11)
        found = adaptive.nearest(torch.from_numpy(x), torch.tensor([[1.0, 0, 0, 0]]), 10)
        np.testing.assert_array_equal(found[0], rows[::-1])
    few = adaptive.nearest(torch.arange(40.0)[:, None], torch.ones(1, 1), 40)
    np.testing.assert_array_equal(few[0], np.arange(40)[::-1])


@pytest.mark.parametrize("num", [700, 2100])
def test_the_short_list_is_the_best_by_codes_and_exact_in_them(num: int) -> None:
    archive = adaptive.make_archive(nested(num))
    codes = adaptive.encode(torch.from_numpy(nested(20, seed=1)), 64)
    listed = adaptive.nearest(archive.codes, codes, 50)
    products = codes.numpy().astype(int) @ archive.codes.numpy().astype(int).T
    expected = -np.sort(-products, axis=1)[:, :50]
    np.testing.assert_array_equal(np.take_along_axis(products, listed.numpy(), axis=1), expected)


def test_codes_order_rows_as_their_first_numbers_do() -> None:
    x, queries = nested(3000), nested(30, seed=1)
    archive = adaptive.make_archive(x)
    codes = adaptive.encode(torch.from_numpy(queries), 64)
    assert archive.codes.abs().max() == 127 and (codes.abs().amax(1) == 127).all()
    products = codes.numpy().astype(float) @ archive.codes.numpy().astype(float).T
    cosines = unit(queries[:, :64]) @ unit(x[:, :64]).T
    for product, cosine in zip(products, cosines, strict=True):
        assert np.corrcoef(product, cosine)[0, 1] > 0.999


def test_a_short_list_finds_nearly_all_and_a_whole_one_everything() -> None:
    x, queries = nested(6000), nested(64, seed=1)
    archive = adaptive.make_archive(x)
    exact = adaptive.search(archive, queries)
    same(adaptive.search_adaptively(archive, queries, listed=6000), exact, x, queries)
    recalls = []
    for listed in (10, 50, 400):
        found = adaptive.search_adaptively(archive, queries, listed=listed)
        recalls.append(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)]))
    assert recalls[0] < recalls[1] <= recalls[2] and recalls[2] > 0.99


def test_queries_do_not_depend_on_one_another_nor_on_threads() -> None:
    x, queries = nested(3000), nested(300, seed=1)
    archive = adaptive.make_archive(x)
    whole = adaptive.search_adaptively(archive, queries)
    alone = np.concatenate([adaptive.search_adaptively(archive, queries[i : i + 1]) for i in range(20)])
    same(whole[:20], alone, x, queries[:20])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        same(adaptive.search_adaptively(archive, queries), whole, x, queries)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_recall_is_a_share_of_the_exact_neighbours_by_group() -> None:
    archive = adaptive.make_archive(nested(4000))
    queries, groups = nested(40, seed=1), np.arange(40) // 10
    found = adaptive.adaptive_retrieval(archive, queries, groups, listed=20)
    exact, short = adaptive.search(archive, queries), adaptive.search_adaptively(archive, queries, listed=20)
    expected = [len(set(a) & set(b)) / 10 for a, b in zip(exact, short, strict=True)]
    np.testing.assert_allclose(found.recalls, expected, atol=1e-12)
    assert found.recall.value == pytest.approx(np.mean(expected)) and found.recall.sums.shape == (4, 2)
    assert found.exact_seconds > 0 and found.adaptive_seconds > 0


def test_what_cannot_be_searched_is_refused() -> None:
    x = nested(100)
    with pytest.raises(ProtocolError, match="rows have 64 numbers; adaptive retrieval needs more than 64"):
        adaptive.make_archive(x[:, :64])
    with pytest.raises(ProtocolError, match="100 of 100 embeddings hold NaN or infinity"):
        adaptive.make_archive(x * np.nan)
    with pytest.raises(ProtocolError, match="1 of 5 queries hold NaN or infinity, the first in row 2"):
        queries = nested(5)
        queries[2, 0] = np.inf
        adaptive.adaptive_retrieval(adaptive.make_archive(x), queries, np.zeros(5, int))


def test_constant_rows_are_searched_without_a_fuss() -> None:
    archive = adaptive.make_archive(np.full((100, 80), 80**-0.5))
    assert adaptive.search_adaptively(archive, np.full((3, 80), 80**-0.5)).shape == (3, 10)
