"""The same tissue, stained and scanned several times: how alike do its embeddings stay, and do they find one another?

PLISM's score (Ochi et al. 2024; Filiot et al. 2025, arXiv 2501.16239).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathryoshka.evaluate.protocols.rows import ProtocolError, blocks, check_finite, size
from pathryoshka.evaluate.tally import Tally, tally

TOP = 10
"""How near a tile's twin has to be."""


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
