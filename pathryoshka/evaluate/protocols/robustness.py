"""Does an embedding see the tissue, or who cut, stained and scanned it?

Two measures. The robustness index of PathoROB (Kömen et al. 2025) asks of the neighbours of a tile whether they share
its biology across centres or its centre across biology. PLISM-style consistency (Ochi et al. 2024; Filiot et al. 2025)
asks of the same tissue, stained and scanned several times, how alike its embeddings stay and whether they find one
another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathryoshka.evaluate.protocols.knn import top
from pathryoshka.evaluate.protocols.rows import ProtocolError, balanced_accuracy, blocks, check, check_finite, size
from pathryoshka.evaluate.tally import Tally, ratio, tally

NEIGHBOURS = (1, 3, 5, 7, 9, *range(11, 600, 10))
"""Where PathoROB looks for the best number of neighbours (up to 600, 1,000 or 1,200 there, by data set)."""
TOP = 10
"""How near a tile's twin has to be."""


@dataclass(frozen=True)
class Robustness:
    """Of the k nearest tiles of other slides.

    Attributes:
        k: as given, else the first of `NEIGHBOURS` at which a majority vote predicts the biology best.
        accuracy: balanced accuracy of that vote.
        same_biology: [N] neighbours of the same class from other centres (SO).
        same_centre: [N] neighbours of other classes from the same centre (OS).
        score: sum SO / (sum SO + sum OS), 0 (sees the centre) to 1 (sees the tissue). Of several sub-sets (the pairs of
            PathoROB's TCGA 2x2) scored at one k, it is the ratio of the added `sums`.
    """

    k: int
    accuracy: float
    same_biology: np.ndarray
    same_centre: np.ndarray
    score: Tally


def robustness_index(
    x_ND: np.ndarray, labels: np.ndarray, centres: np.ndarray, groups: np.ndarray, k: int | None = None
) -> Robustness:
    """PathoROB's index; it fits nothing, so it has no folds.

    To compare encoders PathoROB takes one k for all: the median of those that suit each of them best. So call this once
    an encoder without `k`, then once with the median.

    Args:
        x_ND: rows of length 1.
        labels: [N] strings, the biology.
        centres: [N] strings, what should not matter. Classes and centres have to be crossed for the index to mean much.
        groups: [N] codes of slides (or patients): a tile's own slide is no neighbour.

    Raises:
        ProtocolError: see `rows.check`; a single slide or centre; k beyond the tiles of other slides.
    """
    check(x_ND, labels, groups, ())
    codes = np.unique(labels, return_inverse=True)[1]
    places = np.unique(centres, return_inverse=True)[1]
    most = len(groups) - int(np.bincount(groups).max())
    if most < 1 or places.max() == 0:
        raise ProtocolError("all tiles are of one slide or one centre; robustness needs tiles of several")
    if k is not None and not 1 <= k <= most:
        raise ProtocolError(f"k is {k}, but some tile has only {most} tiles of other slides; take 1 to {most}")
    ks = [n for n in NEIGHBOURS if n <= most] if k is None else [k]
    guesses = np.zeros((len(ks), len(labels)), np.int64)
    counts = np.zeros((len(ks), len(labels), 2))
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
    accuracies = [balanced_accuracy(codes, guess) for guess in guesses]
    best = int(np.argmax(accuracies))
    so, os = counts[best].T
    score = tally(np.stack([so, so + os], axis=1), groups, size(groups), ratio)
    return Robustness(ks[best], accuracies[best], so, os, score)


@dataclass(frozen=True)
class Consistency:
    """Of the same tissue under several conditions (slides): pairs of slides that differ in scanner, stain or both.

    Attributes:
        pairs: kind -> its pairs of slides; kinds are `all`, `scanner` (same stain), `stain` (same scanner), `both`.
        cosine: kind -> median over pairs of the mean cosine of the same tissue.
        top: kind -> median over pairs of the share of tiles whose twin is among the 10 nearest of both slides.
    """

    pairs: dict[str, tuple[tuple[int, int], ...]]
    cosine: dict[str, Tally]
    top: dict[str, Tally]


def consistency(x_STD: np.ndarray, scanners: Sequence[str], stains: Sequence[str], groups: np.ndarray) -> Consistency:
    """PLISM-style scores.

    Args:
        x_STD: rows of length 1; x[s, t] is place t of the tissue on slide s.
        scanners, stains: [S] of each slide.
        groups: [T] codes of places that are drawn together (a core, a region).

    Raises:
        ProtocolError: numbers that are not finite, fewer than two slides, lengths that do not belong together.
    """
    num_slides, num_places = x_STD.shape[:2]
    if num_slides < 2 or not num_slides == len(scanners) == len(stains) or len(groups) != num_places:
        raise ProtocolError(
            f"{num_slides} slides of {num_places} places with {len(scanners)} scanners, {len(stains)} stains and "
            f"{len(groups)} groups; give two slides or more, one scanner and stain a slide, one group a place"
        )
    check_finite(x_STD, "slides")
    pairs = [(a, b) for a in range(num_slides) for b in range(a + 1, num_slides)]
    cosines = np.zeros((num_places, len(pairs)))
    found = np.zeros((num_places, len(pairs)))
    for number, (a, b) in enumerate(pairs):
        cosines[:, number] = np.einsum("td,td->t", x_STD[a], x_STD[b])
        found[:, number] = (twins_found(x_STD[a], x_STD[b]) + twins_found(x_STD[b], x_STD[a])) / 2
    kinds: dict[str, list[int]] = {"all": [], "scanner": [], "stain": [], "both": []}
    for number, (a, b) in enumerate(pairs):
        kinds["all"].append(number)
        scanner, stain = scanners[a] != scanners[b], stains[a] != stains[b]
        if scanner or stain:
            kinds["both" if scanner and stain else "scanner" if scanner else "stain"].append(number)
    kinds = {kind: numbers for kind, numbers in kinds.items() if numbers}
    return Consistency(
        pairs={kind: tuple(pairs[number] for number in numbers) for kind, numbers in kinds.items()},
        cosine={kind: median_over_pairs(cosines[:, numbers], groups) for kind, numbers in kinds.items()},
        top={kind: median_over_pairs(found[:, numbers], groups) for kind, numbers in kinds.items()},
    )


def twins_found(a_TD: np.ndarray, b_TD: np.ndarray) -> np.ndarray:
    """[T] 1 where fewer than 10 other rows of both slides are as near to a row of `a` as its twin in `b`, else 0.

    So an embedding that tells nothing apart finds nothing.
    """
    out = np.zeros(len(a_TD))
    for part in blocks(len(a_TD)):
        rows = np.arange(len(a_TD))[part]
        own, other = a_TD[part] @ a_TD.T, a_TD[part] @ b_TD.T
        own[np.arange(len(rows)), rows] = -np.inf
        twin = other[np.arange(len(rows)), rows][:, None]
        out[part] = (own >= twin).sum(1) + (other >= twin).sum(1) - 1 < TOP
    return out


def median_over_pairs(values: np.ndarray, groups: np.ndarray) -> Tally:
    """The median over pairs of the means over places of `values` [T, P]."""
    num_pairs = values.shape[1]
    stats = np.concatenate([values, np.ones((len(values), 1))], axis=1)

    def finish(sums: np.ndarray) -> np.ndarray:
        number = sums[..., num_pairs]
        means = sums[..., :num_pairs] / np.maximum(number, 1)[..., None]
        return np.where(number > 0, np.median(means, axis=-1), np.nan)

    return tally(stats, groups, size(groups), finish)
