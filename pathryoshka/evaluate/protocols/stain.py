"""Stain: does an embedding still know a tile after it was stained anew? Simulated, so a lower bound on what labs do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pathryoshka.evaluate.protocols.rows import check_finite, size
from pathryoshka.evaluate.tally import Tally, mean_of


@dataclass(frozen=True)
class Stain:
    """`found`: share of tiles whose nearest tile, when stained anew, is they themselves; `cosine`: mean of the pairs.

    Cosine alone misleads: an embedding that holds everything to be alike has the highest.
    """

    found: Tally
    cosine: Tally


def stain_stability(x_ND: np.ndarray, anew_nD: np.ndarray, rows: np.ndarray, groups: np.ndarray) -> Stain:
    """Of the tiles `rows` [n] of a data set, among all its tiles.

    Args:
        x_ND: rows of length 1. anew_nD: rows of length 1, of the tiles `rows` in other stains.
        groups: [N] codes.

    Raises:
        ProtocolError: an embedding that is not finite.
    """
    check_finite(x_ND)
    check_finite(anew_nD, "embeddings of tiles stained anew")
    similarity = anew_nD @ x_ND.T
    own = similarity[np.arange(len(rows)), rows]
    found = (own >= similarity.max(1)).astype(float)
    return Stain(mean_of(found, groups[rows], size(groups)), mean_of(own, groups[rows], size(groups)))
