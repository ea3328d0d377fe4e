"""The short-list: every row looked at, by its first numbers in 8 bits.

One row is 64 bytes, a twelfth of 384 numbers in half precision, and a search is bound by what it reads. Nothing is
trained, and no row is skipped: so a filter is a bit a row, an added row needs no rebalancing, a deleted one no repair.
The product is faiss's (`QT_8bit_direct_signed`: integers, exact sums); codes are split into parts, because faiss shares
out queries among cores, not rows, and a person asks one question at a time.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from pathryoshka.search.manifest import SearchError

PART_ROWS = 2**18
LARGEST = 127


@cache
def threads() -> ThreadPoolExecutor:
    """One thread a core, in which faiss starts none of its own."""
    faiss = library()
    return ThreadPoolExecutor(os.cpu_count() or 1, "scan", initializer=faiss.omp_set_num_threads, initargs=(1,))


def library():  # type: ignore[no-untyped-def]
    try:
        import faiss
    except ImportError:
        raise SearchError("faiss is not installed; pip install 'pathryoshka[search]'") from None
    return faiss


@dataclass(frozen=True)
class Coding:
    """How first numbers become 8 bits: (x - centre) / scale. That all rows of a segment share both keeps their order,
    and the centre leaves more of the 8 bits for what tells rows apart."""

    centre: np.ndarray
    scale: float

    @classmethod
    def of(cls, head_NS: np.ndarray) -> Coding:
        """For rows of length 1."""
        centre = head_NS.mean(0, dtype=np.float64).astype(np.float32)
        largest = max((float(np.abs(part - centre).max()) for part in in_parts(head_NS)), default=0.0)
        return cls(centre, max(largest, 1e-12) / LARGEST)

    def codes(self, head_NS: np.ndarray) -> np.ndarray:
        """uint8 [N, S]: the code and 128, as faiss has it."""
        return (np.clip(np.rint((head_NS - self.centre) / self.scale), -LARGEST, LARGEST) + 128).astype(np.uint8)


def in_parts(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + PART_ROWS] for start in range(0, len(rows), PART_ROWS)]


def head(vectors_ND: np.ndarray, short: int) -> np.ndarray:
    """fp32 [N, short]: the first numbers of each row, of length 1 again."""
    first = vectors_ND[:, :short].astype(np.float32)
    return first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)


class Scanner:
    """The codes of one segment, held in memory: 64 bytes a row."""

    def __init__(self, codes_NS: np.ndarray, coding: Coding) -> None:
        faiss = library()
        self.coding, self.short, self.parts = coding, codes_NS.shape[1], []
        for part in in_parts(codes_NS):
            index = faiss.IndexScalarQuantizer(
                self.short, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
            )
            index.add_sa_codes(np.ascontiguousarray(part))
            self.parts.append(index)

    def tasks(self, query_S: np.ndarray, listed: int, allowed: np.ndarray | None):  # type: ignore[no-untyped-def]
        """One function a part, each giving (rows, approximate cosines) of its best `listed`."""
        faiss = library()
        unit = max(float(np.abs(query_S).max()), 1e-12) / LARGEST
        whole = np.rint(query_S / unit)[None].astype(np.float32)
        offset = float(query_S @ self.coding.centre)

        def task(number: int) -> tuple[np.ndarray, np.ndarray]:
            index, start, options = self.parts[number], number * PART_ROWS, None
            if allowed is not None:
                bits = np.packbits(allowed[start : start + index.ntotal], bitorder="little")
                options = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
            scores, rows = index.search(whole, min(listed, index.ntotal), params=options)
            found = rows[0] >= 0
            return rows[0][found] + start, scores[0][found] * (unit * self.coding.scale) + offset

        return [lambda number=number: task(number) for number in range(len(self.parts))]


def short_list(
    scanners: list[Scanner], query_S: np.ndarray, listed: int, allowed: list[np.ndarray | None]
) -> list[np.ndarray]:
    """For each segment the rows, rising, that are among the best `listed` of all.

    Args:
        query_S: first numbers of a query; zeros at the end leave those out of the comparison.
        allowed: for each segment bool [N], or None where all are.
    """
    work = [
        (number, task)
        for number, (scanner, may) in enumerate(zip(scanners, allowed, strict=True))
        for task in scanner.tasks(query_S, listed, may)
    ]
    found = list(threads().map(lambda one: one[1](), work))
    if not found:
        return [np.empty(0, np.int64) for _ in scanners]
    segments = np.concatenate([np.full(len(rows), number) for (number, _), (rows, _) in zip(work, found, strict=True)])
    rows, scores = (np.concatenate([pair[i] for pair in found]) for i in (0, 1))
    if len(rows) > listed:
        best = np.argpartition(-scores, listed)[:listed]
        segments, rows = segments[best], rows[best]
    return [np.sort(rows[segments == number]) for number in range(len(scanners))]
