"""Resampling of tiles: Pillow is the judge, and the bytes do not depend on the processor."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pathryoshka.tiles.pixels import flat, from_corner, resampled

SIDES = (24.0, 32.0, 32.064, 43.84, 63.36, 83.2, 118.4)
DIGEST = "from tests.test_pixels import digest; print(digest())"


def noise(width: int = 300, height: int = 200) -> np.ndarray:
    """Grain and edges: worse than tissue."""
    grain = np.random.default_rng(0).integers(0, 60, (height, width, 3))
    stripes = 180 * (np.arange(width) // 9 % 2)[None, :, None]
    return (grain + stripes).astype(np.uint8)


def digest() -> str:
    pixels = noise()
    tiles = [resampled(pixels, (7, 11, 7 + side, 11 + side), 32) for side in SIDES]
    return hashlib.sha256(b"".join(tile.tobytes() for tile in tiles)).hexdigest()


@pytest.mark.parametrize("side", SIDES)
def test_whole_corners_are_within_a_grey_level_of_pillow(side: float) -> None:
    pixels, across = noise(), math.ceil(side)
    part = Image.fromarray(pixels[11 : 11 + across, 7 : 7 + across])
    there = np.asarray(part.resize((32, 32), Image.Resampling.BICUBIC, box=(0, 0, side, side)), np.int16)
    for tile in (resampled(pixels, (7, 11, 7 + side, 11 + side), 32), from_corner(pixels[11:, 7:], side, 32)):
        assert tile.shape == (32, 32, 3) and tile.flags["C_CONTIGUOUS"]
        inside = np.abs(tile - there)[:-2, :-2]  # `from_corner` may look at what lies beyond
        assert inside.max() <= 1 and inside.mean() < 0.02


@pytest.mark.parametrize("box", [(7.25, 11.0, 50.75, 54.5), (0.5, 0.0, 44.0, 43.5), (240.3, 140.9, 299.9, 199.9)])
def test_corners_between_pixels_are_pillows_and_see_their_surroundings(box: tuple[float, ...]) -> None:
    pixels = noise()
    there = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC, box=box)
    left, top, right, bottom = box
    # taken out of the strip first, which moves the fractions by a rounding
    assert np.abs(np.subtract(resampled(pixels, (left, top, right, bottom), 32), there, dtype=np.int16)).max() <= 1


def test_every_processor_gives_the_same_bytes() -> None:
    env = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}  # torch without AVX2 and AVX-512
    plain = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=True)
    assert plain.stdout.split() == [digest()]


def test_glass_is_flat_and_a_faint_edge_is_not() -> None:
    pixels = np.full((100, 100, 3), 230, np.uint8)
    assert flat(pixels, (10, 10, 90, 90))
    pixels[:, 50:, 1] -= 14  # a deviation of 7
    assert flat(pixels, (10, 10, 90, 90))
    pixels[:, 50:, 1] -= 4  # of 9
    assert not flat(pixels, (10, 10, 90, 90)) and flat(pixels, (0, 0, 49, 100))
