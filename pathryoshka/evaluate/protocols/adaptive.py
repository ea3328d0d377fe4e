"""Adaptive retrieval: a short-list by the first numbers of an embedding, re-ranked by all of them.

MRL (Kusupati et al. 2022, section 4.3): what a nested embedding is good for when an archive is large. The short-list
comes from the first 64 numbers, normalised again and rounded to 8 bits, by exhaustive search: nothing is trained, no
row is skipped. The exact search that it is measured against is as fast as this machine allows and shares all its code.

Where the time goes, one core of an EPYC, 256 queries against rows of 384 numbers, a similarity: the product 8.3 ns
(fp32), with 64 numbers 1.4 ns in fp32, .7 in bf16 (which rounds the similarities themselves, too coarse to rank by) and
.36 in int8, whose sums are exact. Finding the largest among a million would take longer than that, so only the maximum
of every `SPAN` similarities is kept (.07 ns): the k largest rows of a query lie in the k blocks with the largest
maxima, which alone are looked into again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from pathryoshka.evaluate.protocols.rows import ProtocolError, check_finite, size
from pathryoshka.evaluate.tally import Tally, mean_of

SHORT = 64
"""Numbers that the short-list is made by."""
LISTED = 400
"""Rows of the short-list."""
FOUND = 10
SPAN = 32
"""Rows a block."""
ROWS, QUERIES = 2048, 256
"""Rows and queries of a product: 2 MiB of similarities."""


@dataclass(frozen=True)
class Archive:
    """What is searched: fp32 rows [N, D] of length 1, and int8 codes [N, 64] of their first numbers.

    Codes are of the differences to the mean row: that changes every similarity of a query by the same, so no order, and
    leaves more of the 8 bits for what tells rows apart.
    """

    rows: torch.Tensor
    codes: torch.Tensor


def make_archive(x_ND: np.ndarray, short: int = SHORT) -> Archive:
    """An archive of rows of length 1; fp32 rows are not copied.

    Raises:
        ProtocolError: rows that are not finite, or have no more numbers than the short-list is made by.
    """
    if x_ND.shape[1] <= short:
        raise ProtocolError(f"rows have {x_ND.shape[1]} numbers; adaptive retrieval needs more than {short}")
    check_finite(x_ND)
    rows = torch.from_numpy(np.ascontiguousarray(x_ND, np.float32))
    parts = rows.split(2**16)
    mean = sum((prefix(part, short).sum(0) for part in parts), torch.zeros(short)) / max(1, len(rows))
    largest = max((float((prefix(part, short) - mean).abs().max()) for part in parts), default=0.0)
    codes = torch.empty(len(rows), short, dtype=torch.int8)
    for part, out in zip(parts, codes.split(2**16), strict=True):
        out.copy_(((prefix(part, short) - mean) * (127 / max(largest, 1e-12))).round())
    return Archive(rows, codes)


def prefix(rows: torch.Tensor, short: int) -> torch.Tensor:
    """The first numbers of each row, normalised again."""
    return torch.nn.functional.normalize(rows[:, :short], dim=1)


def encode(queries: torch.Tensor, short: int) -> torch.Tensor:
    """int8 [Q, short], each query by its own largest number: no other query changes what it finds."""
    short_QD = prefix(queries, short)
    return (short_QD * (127 / short_QD.abs().amax(1, keepdim=True).clamp_min(1e-12))).round().to(torch.int8)


def search(archive: Archive, queries_QD: np.ndarray, k: int = FOUND) -> np.ndarray:
    """Exact: [Q, k] numbers of the rows with the largest cosine, falling."""
    k = min(k, len(archive.rows))
    return in_threads(lambda queries: nearest(archive.rows, queries, k), queries_QD)


def search_adaptively(archive: Archive, queries_QD: np.ndarray, k: int = FOUND, listed: int = LISTED) -> np.ndarray:
    """The same of a short-list of `listed` rows: [Q, k]."""
    k = min(k, len(archive.rows))
    listed = min(max(k, listed), len(archive.rows))

    def work(queries: torch.Tensor) -> torch.Tensor:
        short_lists = nearest(archive.codes, encode(queries, archive.codes.shape[1]), listed)
        pairs = zip(short_lists, queries, strict=True)
        return torch.stack([best_of(archive.rows, query, short_list, k) for short_list, query in pairs])

    return in_threads(work, queries_QD)


def in_threads(work: Callable[[torch.Tensor], torch.Tensor], queries_QD: np.ndarray) -> np.ndarray:
    """`work` on parts of the queries, each in a thread of its own, on as many cores as torch may use.

    Looking into the blocks is many small steps, which would leave all cores but one idle if only products were shared.
    """
    num_threads = torch.get_num_threads()
    queries = torch.from_numpy(np.ascontiguousarray(queries_QD, np.float32))
    parts = queries.split(max(1, min(QUERIES, -(-len(queries) // num_threads))))
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(work, parts))).numpy()
    finally:
        torch.set_num_threads(num_threads)


def nearest(rows: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    """[Q, k] numbers of the rows with the largest product, falling; fp32, or int8 with exact sums."""
    kind = torch.float32 if rows.is_floating_point() else torch.int32
    multiply = torch.mm if rows.is_floating_point() else torch._int_mm
    columns = queries.T.contiguous()
    num_blocks = -(-len(rows) // SPAN)
    maxima = torch.empty(num_blocks, len(queries), dtype=kind)
    products = torch.empty(ROWS, len(queries), dtype=kind)
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        multiply(part, columns, out=products[: len(part)])
        blocks = -(-len(part) // SPAN)
        products[len(part) : blocks * SPAN] = products[len(part) - 1]  # the last block may be short
        first = start // SPAN
        torch.amax(products[: blocks * SPAN].view(blocks, SPAN, -1), dim=1, out=maxima[first : first + blocks])
    best = maxima.T.contiguous().topk(min(k, num_blocks), dim=1, sorted=False).indices
    inside = (best[:, :, None] * SPAN + torch.arange(SPAN)).flatten(1)
    return torch.stack([best_of(rows, query, some, k) for some, query in zip(inside, queries, strict=True)])


def best_of(rows: torch.Tensor, query: torch.Tensor, candidates: torch.Tensor, k: int) -> torch.Tensor:
    """[k] of the numbers [M] of candidate rows, falling; numbers beyond the last row are none."""
    candidates = candidates[candidates < len(rows)]
    gathered = rows.index_select(0, candidates)
    product = gathered @ query if rows.is_floating_point() else torch._int_mm(gathered, query[:, None])[:, 0]
    return candidates[product.topk(k).indices]


@dataclass(frozen=True)
class Adaptive:
    """`recalls`: [Q] share of the exact 10 nearest that are found; seconds of both searches for all queries."""

    recalls: np.ndarray
    recall: Tally
    exact_seconds: float
    adaptive_seconds: float


def adaptive_retrieval(
    archive: Archive, queries_QD: np.ndarray, groups: np.ndarray, k: int = FOUND, listed: int = LISTED
) -> Adaptive:
    """Both searches on the same cores.

    Args:
        queries_QD: rows of length 1.
        groups: [Q] codes of the queries' groups.

    Raises:
        ProtocolError: queries that are not finite.
    """
    check_finite(queries_QD, "queries")
    start = time.perf_counter()
    exact = search(archive, queries_QD, k)
    middle = time.perf_counter()
    found = search_adaptively(archive, queries_QD, k, listed)
    end = time.perf_counter()
    recalls = (exact[:, :, None] == found[:, None, :]).any(2).mean(1)
    return Adaptive(recalls, mean_of(recalls, groups, size(groups)), middle - start, end - middle)
