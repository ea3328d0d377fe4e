"""Perceptual hashes: 64 bits that tell pictures apart, and survive saving again and resizing but not turning."""

from __future__ import annotations

import numpy as np
from PIL import Image

MAX_DISTANCE = 3
"""Bits in which hashes of one picture may differ. One of four parts of 16 bits is then equal: that is the index."""
SMALLEST_CONTRAST = 8.0
"""Grey levels: below this deviation a tile is background, whose hash would be noise; it has none. With it no two of
1,620 different H&E tiles (1.3 M pairs) are within `MAX_DISTANCE`, and every one of them resized to half its side, or
saved again as JPEG of quality 75, is (measured on LC25000, GlaS and CRC tiles of 224 px, the latter on a fifth)."""
PART = np.uint64(0x1111_1111_1111_1111)
"""Every fourth bit: parts that take bits of all frequencies fill their buckets more evenly than runs of bits would."""

# Rows 0-7 of the orthonormal DCT-II of 32 samples.
COSINES = np.sqrt(2 / 32) * np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None, :] + 1) / 64)
COSINES[0] /= np.sqrt(2)


def perceptual_hash(tile: np.ndarray) -> int:
    """64 bits of uint8 [H, W, 3]: signs of the lowest 8 x 8 cosines of the grey image about their median; 0 = none."""
    grey = np.asarray(Image.fromarray(tile).convert("L").resize((32, 32), Image.Resampling.BILINEAR), np.float64)
    if grey.std() < SMALLEST_CONTRAST:
        return 0
    low = (COSINES @ grey @ COSINES.T).ravel()
    bits = low > np.median(low[1:])
    bits[0] = True  # the mean brightness says nothing; set, so that 0 is free to mean "none"
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hashes: np.ndarray) -> np.ndarray:
    """int64 [P, 2]: every pair i < j of uint64 [N] within MAX_DISTANCE bits, in ascending order; 0 pairs with nothing.

    Equal hashes should be merged before: a bucket costs the square of its size. Sorted by one part, entries of a bucket
    are neighbours, and all that are `step` apart are compared at once. A million hashes take 1.5 s on one EPYC core
    (drawn with the covariance of the bits of 1,601 real tiles, buckets of at most 102; from uniform ones the time is
    the same), `duplicates.twins` of a million tiles 5 s and 1.1 GiB.
    """
    found = []
    for shift in range(4):
        part = hashes & (PART << np.uint64(shift))
        order = np.argsort(part, kind="stable")
        order = order[hashes[order] != 0]
        part, here = part[order], np.arange(len(order))
        step = 1
        while True:
            here = here[here + step < len(order)]
            here = here[part[here] == part[here + step]]
            if not len(here):
                break
            a, b = order[here], order[here + step]
            near = np.bitwise_count(hashes[a] ^ hashes[b]) <= MAX_DISTANCE
            found.append(np.sort(np.stack([a[near], b[near]], axis=1), axis=1))
            step += 1
    return np.unique(np.concatenate(found), axis=0) if found else np.empty((0, 2), np.int64)
