"""Does an embedding see the tissue, or the hospital that cut, stained and scanned it?

PathoROB's robustness index (Kömen et al. 2025, arXiv 2507.17845): do the neighbours of a tile share its biology
across centres, or its centre across biology?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathryoshka.evaluate.protocols.knn import top
from pathryoshka.evaluate.protocols.rows import ProtocolError, balanced_accuracy, blocks, check, size
from pathryoshka.evaluate.tally import Tally, balanced_mean_of, ratio, tally

NEIGHBOURS = (1, 3, 5, 7, 9, *range(11, 600, 10))
"""Where PathoROB looks for the best number of neighbours (up to 600, 1,000 or 1,200 there, by data set)."""


@dataclass(frozen=True)
class Robustness:
    """Of the k nearest tiles of other slides.

    Attributes:
        k: as given, else the first of `NEIGHBOURS` at which a majority vote predicts the biology best.
        same_biology: [N] neighbours of the same class from other centres (SO).
        same_centre: [N] neighbours of other classes from the same centre (OS).
        score: sum SO / (sum SO + sum OS), 0 (sees the centre) to 1 (sees the tissue).
        vote: balanced accuracy of the majority of the k.
    """

    k: int
    same_biology: np.ndarray
    same_centre: np.ndarray
    score: Tally
    vote: Tally


def robustness_index(
    x_ND: np.ndarray,
    labels: np.ndarray,
    centres: np.ndarray,
    groups: np.ndarray,
    k: int | None = None,
    parts: np.ndarray | None = None,
) -> Robustness:
    """PathoROB's index; it fits nothing, so it has no folds.

    To compare encoders PathoROB takes one k for all: the median of those that suit each of them best. So call this once
    an encoder without `k`, then once with the median.

    Args:
        x_ND: rows of length 1.
        labels: [N] strings, the biology.
        centres: [N] strings, what should not matter. Classes and centres have to be crossed for the index to mean much.
        groups: [N] codes of slides (or patients): a tile's own slide is no neighbour.
        parts: [N] strings: neighbours are sought among tiles of the same part (a pair of classes and centres of
            PathoROB's TCGA 2x2), counts are added. One part where None.

    Raises:
        ProtocolError: see `rows.check`; a part of a single slide or centre; k beyond the tiles of other slides.
    """
    check(x_ND, labels, groups, ())
    codes = np.unique(labels, return_inverse=True)[1]
    places = np.unique(centres, return_inverse=True)[1]
    of_part = np.zeros(len(labels), int) if parts is None else np.unique(parts, return_inverse=True)[1]
    members = [np.flatnonzero(of_part == number) for number in range(int(of_part.max()) + 1)]
    most = min(len(rows) - int(np.bincount(groups[rows]).max()) for rows in members)
    for rows in members:
        if len(np.unique(groups[rows])) < 2 or len(np.unique(places[rows])) < 2:
            of = f" of {parts[rows[0]]}" if parts is not None and len(members) > 1 else ""
            raise ProtocolError(f"all tiles{of} are of one slide or one centre; robustness needs tiles of several")
    if k is not None and not 1 <= k <= most:
        raise ProtocolError(f"k is {k}, but some tile has only {most} tiles of other slides; take 1 to {most}")
    ks = [n for n in NEIGHBOURS if n <= most] if k is None else [k]
    counts, guesses = np.zeros((len(ks), len(labels), 2)), np.zeros((len(ks), len(labels)), np.int64)
    for rows in members:
        counts[:, rows], guesses[:, rows] = neighbours(x_ND[rows], codes[rows], places[rows], groups[rows], ks)
    accuracies = [np.mean([balanced_accuracy(codes[rows], guess[rows]) for rows in members]) for guess in guesses]
    best = int(np.argmax(accuracies))
    so, os = counts[best].T
    score = tally(np.stack([so, so + os], axis=1), groups, size(groups), ratio)
    vote = balanced_mean_of((guesses[best] == codes).astype(float), labels, groups, size(groups))
    return Robustness(ks[best], so, os, score, vote)


def neighbours(
    x_ND: np.ndarray, codes: np.ndarray, places: np.ndarray, groups: np.ndarray, ks: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Counts [K, N, 2] (SO, OS) among the k nearest tiles of other groups, and what their majority says [K, N]."""
    guesses = np.zeros((len(ks), len(codes)), np.int64)
    counts = np.zeros((len(ks), len(codes), 2))
    ends = np.array(ks) - 1
    for part in blocks(len(x_ND)):
        similarity = x_ND[part] @ x_ND.T
        similarity[groups[part, None] == groups] = -np.inf
        nearest = top(similarity, ks[-1])
        kin, near = codes[nearest] == codes[part, None], places[nearest] == places[part, None]
        counts[:, part, 0] = np.cumsum(kin & ~near, axis=1)[:, ends].T
        counts[:, part, 1] = np.cumsum(~kin & near, axis=1)[:, ends].T
        tallied = [np.cumsum(codes[nearest] == c, axis=1)[:, ends] for c in range(int(codes.max()) + 1)]
        guesses[:, part] = np.argmax(tallied, axis=0).T
    return counts, guesses
