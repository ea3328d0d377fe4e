"""The grid on one slide: where tiles lie at the resolutions asked, and which of them are worth reading.

Corners are whole pixels of level 0. At one resolution tiles stand side by side, `stride` apart; with a range of
resolutions the cells of one grid get a tile each, around the middle of the cell, its resolution drawn by a hash.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pathryoshka.tiles.tiff import SlideError
from pathryoshka.tiles.tissue import Picture, black, ink, shares, sums

MOST_ENLARGED = 1.5
"""A slide may be this much coarser than asked; beyond it pixels would be made up."""
MOST_POSITIONS = 2**22
MOST_BLACK, MOST_INK = 0.3, 0.05
"""Shares of a tile: dark borders cut straight through tiles, and a stroke of a pen spoils the colours beside it."""
REASONS = ("no_tissue", "black", "pen", "cap", "white", "blur")
"""Why a tile is not kept; the last two are told from the pixels of the tile itself, the others before it is read."""
POSITION = np.dtype([("x", "i4"), ("y", "i4"), ("side", "f8"), ("mpp", "f8"), ("tissue", "f4"), ("reason", "i1")])
KEPT = -1


@dataclass(frozen=True)
class Cut:
    """How slides are cut: everything that decides a tile but the slide."""

    size: int = 224
    stride: int = 224
    mpp: tuple[float, ...] = (0.5,)
    mpp_range: tuple[float, float] | None = None
    """Instead of `mpp`: each tile at a resolution between the two."""
    min_tissue: float = 0.5
    keep: tuple[str, ...] = ()
    """Reasons of REASONS for which tiles are kept nevertheless."""
    cap: int | None = None
    """Most tiles of one slide."""
    image_format: str = "jpeg"
    quality: int = 92
    seed: int = 0


def resolutions(mpp: float | Sequence[float | str]) -> tuple[tuple[float, ...], tuple[float, float] | None]:
    """What was asked for as (resolutions, none) or, for one range `low..high`, (none at all, the range).

    Raises:
        SlideError: no number, not positive, more than one range.
    """
    asked = [str(one) for one in ([mpp] if isinstance(mpp, int | float | str) else mpp)]
    low, dots, high = asked[0].partition("..") if asked else ("", "", "")
    try:
        found = sorted({float(one) for one in ([low, high] if dots and len(asked) == 1 else asked)})
    except ValueError:
        found = []
    if not found or not 0.01 <= found[0] <= found[-1] <= 100 or (dots and len(found) < 2):
        raise SlideError(f"mpp must be micrometres a pixel, or one range as 0.25..2.0, not {', '.join(asked)!r}")
    return ((), (found[0], found[1])) if dots else (tuple(found), None)


def positions(size: tuple[int, int], mpp: float, cut: Cut, slide_id: str) -> np.ndarray:
    """Every place for a tile that lies inside the slide, POSITION [n], by resolution and then in reading order.

    Args:
        size: width and height of level 0.
        mpp: micrometres a pixel of level 0.

    Raises:
        SlideError: the slide is too coarse, or there would be too many.
    """
    finest = cut.mpp_range[0] if cut.mpp_range else min(cut.mpp)
    if finest / mpp * MOST_ENLARGED < 1:
        raise SlideError(f"the slide is {mpp:.3g} mpp, too coarse for mpp={finest}; ask for mpp={mpp:.3g}")
    if cut.mpp_range:
        found = ranged(size, mpp, cut, cut.mpp_range, slide_id)
    else:
        found = np.concatenate([regular(size, cut.size * m / mpp, cut.stride * m / mpp, m) for m in cut.mpp])
    if not len(found):
        raise SlideError(f"it is smaller than one tile: {size[0]} x {size[1]} pixels at {mpp:.3g} mpp")
    return found


def regular(size: tuple[int, int], side: float, step: float, mpp: float) -> np.ndarray:
    """Tiles of `side` pixels of level 0, `step` apart."""
    across, down = (max(0, math.floor((extent - side) / step + 1 + 1e-6)) for extent in size)
    if across * down > MOST_POSITIONS:
        raise SlideError(f"it would give {across * down} tiles, more than {MOST_POSITIONS}; is its mpp right?")
    found = np.zeros(across * down, POSITION)
    x, y = (np.floor(np.arange(n) * step + 1e-6) for n in (across, down))  # floor: never past the edge
    found["x"], found["y"] = np.tile(x, down), np.repeat(y, across)
    found["side"], found["mpp"], found["reason"] = side, mpp, KEPT
    return found


def ranged(
    size: tuple[int, int], level_0: float, cut: Cut, mpp_range: tuple[float, float], slide_id: str
) -> np.ndarray:
    """A tile a cell, its mpp spread evenly over the logarithm of the range: each doubling gets the same share."""
    low, high = mpp_range
    step = cut.stride * math.sqrt(low * high) / level_0
    cells = regular(size, step, step, 0.0)
    drawn = [uniform(cut.seed, slide_id, int(cell["x"]), int(cell["y"])) for cell in cells]
    cells["mpp"] = np.round(low * (high / low) ** np.array(drawn), 3)  # as tile ids say it
    cells["side"] = cut.size * cells["mpp"] / level_0
    for axis, extent in zip("xy", size, strict=True):
        corner = np.floor(cells[axis] + (step - cells["side"]) / 2)
        cells[axis] = np.clip(corner, 0, np.maximum(np.floor(extent - cells["side"] + 1e-6), 0))
    cells = cells[cells["side"] <= min(size)]
    cells = np.unique(cells)  # in a corner two may be the same
    return cells[np.lexsort((cells["x"], cells["y"]))]  # tiles moved inside at an edge are out of order


def uniform(*key: object) -> float:
    """A number in [0, 1) that is a function of the key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=6).digest(), "big") / 2**48


def judge(found: np.ndarray, small: Picture, mask: np.ndarray, cut: Cut, slide_id: str) -> None:
    """Fills in `tissue` and `reason` with what the small picture of the slide tells."""
    height, width = mask.shape
    left, top = (np.floor(found[axis] / small.step).astype(int) for axis in "xy")
    right = np.minimum(np.ceil((found["x"] + found["side"]) / small.step).astype(int), width)
    bottom = np.minimum(np.ceil((found["y"] + found["side"]) / small.step).astype(int), height)
    box = (np.minimum(left, right - 1), np.minimum(top, bottom - 1), right, bottom)
    found["tissue"] = shares(sums(mask), *box)
    found["reason"] = np.where(found["tissue"] < cut.min_tissue, REASONS.index("no_tissue"), KEPT)
    for reason, spoilt, most in (("pen", ink, MOST_INK), ("black", black, MOST_BLACK)):
        if reason not in cut.keep:
            found["reason"][shares(sums(spoilt(small.rgb)), *box) > most] = REASONS.index(reason)
    kept = np.flatnonzero(found["reason"] == KEPT)
    if cut.cap is not None and len(kept) > cut.cap:
        drawn = [uniform(cut.seed, slide_id, "cap", *found[i][["x", "y", "mpp"]].item()) for i in kept]
        found["reason"][kept[np.argsort(drawn)[cut.cap :]]] = REASONS.index("cap")


def strips(found: np.ndarray, indices: Sequence[int], widest: float) -> Iterator[list[int]]:
    """Tiles to be read in one go: of one size and row, hardly a gap between them, together at most `widest` pixels of
    level 0. `indices` are in reading order."""
    strip: list[int] = []
    for i in indices:
        tile = found[i]
        if strip:
            last = found[strip[-1]]
            same = (last["y"], last["side"]) == (tile["y"], tile["side"])
            near = tile["x"] <= last["x"] + 1.25 * last["side"]
            if not (same and near and tile["x"] + tile["side"] - found[strip[0]]["x"] <= widest):
                yield strip
                strip = []
        strip.append(int(i))
    if strip:
        yield strip
