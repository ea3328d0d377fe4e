"""A view is a pure function of its key: (seed, tile, partner, view id) and the bytes of the tiles say every pixel.

So workers, restarts and schedules cannot change what is seen, and teacher features of a view can be stored. Two parts:
the *shared view* (crop, flips, quarter turns, stain jitter, mixing with a partner), which teachers and student see, the
same pixels; and the *student view* (photometric jitter on top), which only the student sees and no fingerprint has.

The same Pillow gives the same pixels on every processor: random numbers come from a counter-based generator keyed by a
hash; resampling is in fixed point; the stain map is IEEE multiplications and additions between two look-up tables,
without BLAS or SIMD transcendentals, whose last bits differ between processors.

What a view costs (128 px out of a 224 px JPEG of 20 kB, one Xeon core beside a busy one): decode .34 ms, crop, resize
and turns .36, stain .20; so 930 views a second, 620 where half of them are mixed, since a partner is decoded, too.
Bicubic instead of bilinear resampling would be another .13 ms a crop.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pathryoshka import config

VIEW_CODE_VERSION = 1
"""Raised whenever the same key would give other pixels; part of every fingerprint."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "JPEG2000")
MAX_PIXELS = 64_000_000
ASPECT = (3 / 4, 4 / 3)
CUT_SHARE = (0.2, 0.8)
BLEND_SHARE = (0.3, 0.7)
JITTER = 0.4

# Rows: haematoxylin, eosin, DAB (Ruifrok & Johnston 2001), optical density of R, G, B for one unit of stain.
RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED_FROM_RGB = np.round(np.linalg.inv(RGB_FROM_HED), 12)

# Optical density is taken as -log10((v + 1) / 256): white is 0 and black stays finite, so that the map can be undone.
# Densities are held in steps of 2^-14, fine enough (1/28 of a grey level at white) for one table to lead back.
STEPS = 1 << 14
DENSITY = np.round(-np.log10((np.arange(256) + 1) / 256) * STEPS).astype(np.float32)
GREY = np.clip(np.round(256 * 10 ** (-np.arange(int(DENSITY[0]) + 1) / STEPS) - 1), 0, 255).astype(np.uint8)

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class TileError(ValueError):
    """The bytes are no image that we take; the reason is the sentence."""


@dataclass(frozen=True)
class ViewKey:
    """What a view is a function of, beside the pixels of its tiles and the shared transform."""

    seed: int
    tile_id: str
    partner_id: str | None
    view_id: int

    def generator(self) -> np.random.Generator:
        """A fresh generator of its own for this key."""
        return keyed_generator(self.seed, self.tile_id, self.partner_id, self.view_id)


def keyed_generator(*key: int | str | None) -> np.random.Generator:
    """Philox keyed by 128 bits of BLAKE2b over the key's JSON: equal keys give equal draws, in any process."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def shared_transform(cfg: config.Views) -> dict[str, Any]:
    """The facts that decide the pixels of a shared view, as JSON: what fingerprints hold of `cfg`.

    Neither `photometric` (student only) nor `per_tile` (which views are asked for, not what they look like) is in it.
    """
    facts = cfg.model_dump(mode="json", exclude={"photometric", "per_tile"})
    return {"version": VIEW_CODE_VERSION, **facts}


def decode(image: bytes) -> np.ndarray:
    """An encoded image as RGB, uint8 [H, W, 3], read-only; transparency is laid on white, as slide readers do.

    Raises:
        TileError: not one of FORMATS, truncated, damaged, more than MAX_PIXELS claimed, or a mode without fixed range.
    """
    try:
        opened = Image.open(io.BytesIO(image), formats=FORMATS)
    except Exception as error:  # Pillow's plug-ins raise a dozen kinds on hostile bytes
        raise TileError(f"not a readable image ({len(image)} bytes): {error or type(error).__name__}") from None
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise TileError(f"claims {width} x {height} pixels, more than the {MAX_PIXELS // 10**6} MP allowed for a tile")
    try:
        opened.load()
        return as_rgb(opened)
    except TileError:
        raise
    except Exception as error:
        raise TileError(f"damaged {opened.format} of {len(image)} bytes: {error or type(error).__name__}") from None


def as_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "RGB":
        return np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise TileError(f"pixels of mode {image.mode} have no fixed range; save the image with 8 bits a channel")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def shared_view(tile: np.ndarray, key: ViewKey, cfg: config.Views, partner: np.ndarray | None) -> np.ndarray:
    """The view of a key: what teachers and student see.

    Args:
        tile: uint8 [H, W, 3].
        partner: pixels of the tile `key.partner_id`, or None where the key has none. It gets a crop, turns and stain of
            its own before it is mixed in.

    Returns:
        uint8 [size, size, 3], contiguous, writeable.
    """
    if (partner is None) != (key.partner_id is None):
        raise ValueError(f"view of {key.tile_id} needs the pixels of its partner {key.partner_id}, and only those")
    rng = key.generator()
    view, stains = place(tile, rng, cfg)
    view = restain(view, *stains)
    if partner is None:
        return view
    other, stains = place(partner, rng, cfg)
    share, along, across = rng.random(3)
    if cfg.mix == "blend":
        return blend(view, restain(other, *stains), BLEND_SHARE[0] + share * (BLEND_SHARE[1] - BLEND_SHARE[0]))
    if cfg.mix == "cut":
        area = rectangle(cfg.size, CUT_SHARE[0] + share * (CUT_SHARE[1] - CUT_SHARE[0]), along, across)
    else:
        area = half(cfg.size, int(share * 4))
    view[area] = restain(other[area], *stains)
    return view


def place(tile: np.ndarray, rng: np.random.Generator, cfg: config.Views) -> tuple[np.ndarray, tuple[Any, Any]]:
    """Crop, resize and turn a tile; and the stain map to be applied. Takes the same draws whatever `cfg` switches off.

    Returns:
        uint8 [size, size, 3] (any strides), and the (matrix, offset) for `restain`.
    """
    share, aspect, down, right, mirror, upside, turns = rng.random(7)
    normals = rng.standard_normal(6)
    top, left, height, width = crop_box(tile.shape[0], tile.shape[1], cfg.scale, share, aspect, down, right)
    view = resized(tile[top : top + height, left : left + width], cfg.size)
    if cfg.flip:
        view = view[:: -1 if upside < 0.5 else 1, :: -1 if mirror < 0.5 else 1]
    if cfg.quarter_turns:
        view = np.rot90(view, int(turns * 4))
    return view, stain_map(cfg.stain, normals)


def crop_box(
    height: int, width: int, scale: tuple[float, float], share: float, aspect: float, down: float, right: float
) -> tuple[int, int, int, int]:
    """Top, left, height and width, in whole pixels, of a random crop; the last four arguments are uniform in [0, 1).

    The crop's area is uniform between scale[0] and scale[1] of the tile's, its width/height log-uniform within ASPECT
    as far as it fits into the tile; where nothing fits (a long tile, a large share) it is cut off at the border.
    """
    area = (scale[0] + share * (scale[1] - scale[0])) * height * width
    low, high = max(ASPECT[0], area / height**2), min(ASPECT[1], width**2 / area)
    ratio = low * (high / low) ** aspect if low < high else min(max(low, ASPECT[0]), ASPECT[1])
    w = min(width, max(1, round(math.sqrt(area * ratio))))
    h = min(height, max(1, round(math.sqrt(area / ratio))))
    return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w


def resized(tile: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [size, size, 3], antialiased; nothing outside of `tile` has a say."""
    return np.asarray(Image.fromarray(tile).resize((size, size), Image.Resampling.BILINEAR))


def stain_map(sigma: float, normals: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Jitter of the three stains as a map of optical density: density @ matrix + offset; (None, None) for sigma 0.

    Each stain of the HED space is multiplied by exp(sigma n) and shifted by sigma m (n, m standard normal), as Tellez
    et al. 2018 do with uniform draws. Being linear in the stains it is linear in density.

    Args:
        normals: [6], n of the three stains, then m.

    Returns:
        matrix float64 [3, 3], offset float64 [3] in units of decimal optical density.
    """
    if sigma == 0:
        return None, None
    factors = np.array([math.exp(sigma * n) for n in normals[:3]])
    matrix = (HED_FROM_RGB[:, :, None] * factors[None, :, None] * RGB_FROM_HED[None, :, :]).sum(axis=1)
    return matrix, (sigma * normals[3:, None] * RGB_FROM_HED).sum(axis=0)


def restain(view: np.ndarray, matrix: np.ndarray | None, offset: np.ndarray | None) -> np.ndarray:
    """uint8 [H, W, 3] of any strides through a map of `stain_map`; a contiguous copy. No map: the same pixels."""
    if matrix is None or offset is None:
        return np.array(view, order="C")
    density = DENSITY.take(np.ascontiguousarray(view.transpose(2, 0, 1)), mode="clip")
    out = np.empty(view.shape, np.uint8)
    gain = matrix.astype(np.float32)
    shift = (offset * STEPS + 0.5).astype(np.float32)  # the half makes the truncation below a rounding
    part = np.empty_like(density[0])
    for channel in range(3):
        total = density[0] * gain[0, channel]
        for source in (1, 2):
            total += np.multiply(density[source], gain[source, channel], out=part)
        total += shift[channel]
        out[:, :, channel] = GREY.take(total.astype(np.intp), mode="clip")
    return out


def rectangle(size: int, share: float, down: float, right: float) -> tuple[slice, slice]:
    """CutMix: rows and columns of a square that is `share` of the view's area, anywhere inside it."""
    side = round(size * math.sqrt(share))
    top, left = int(down * (size - side + 1)), int(right * (size - side + 1))
    return slice(top, top + side), slice(left, left + side)


def half(size: int, which: int) -> tuple[slice, slice]:
    """Rows and columns of the upper, lower, left or right half (0, 1, 2, 3)."""
    everything, part = slice(0, size), slice(0, size // 2) if which % 2 == 0 else slice(size // 2, size)
    return (part, everything) if which < 2 else (everything, part)


def blend(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """mixup: `share` of the second view, to 1/256, the rest of the first."""
    weight = round(share * 256)
    total = first.astype(np.uint16) * np.uint16(256 - weight)
    total += second.astype(np.uint16) * np.uint16(weight)
    return ((total + np.uint16(128)) >> np.uint16(8)).astype(np.uint8)


def identity_view(tile: np.ndarray, size: int) -> np.ndarray:
    """The view of evaluation: the tile's shorter side resized to `size`, the centre kept. uint8 [size, size, 3]."""
    height, width = tile.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    square = (left, top, left + side, top + side)
    return np.array(Image.fromarray(tile).resize((size, size), Image.Resampling.BILINEAR, box=square))


def student_view(views_u8_BHWC: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, contrast and saturation jitter, each factor of each view uniform in 1 -+ 0.4 strength.

    Args:
        views_u8_BHWC: shared views, uint8 [B, H, W, 3]; not written to.
        strength: 0 (the same array comes back) to 1.

    Returns:
        uint8 [B, H, W, 3].
    """
    if strength == 0:
        return views_u8_BHWC
    num_views = len(views_u8_BHWC)
    bright_B, contrast_B, colour_B = rng.uniform(1 - JITTER * strength, 1 + JITTER * strength, (3, num_views))
    pixels_BPC = views_u8_BHWC.reshape(num_views, -1, 3).astype(np.float32)
    mean_B = (pixels_BPC.mean(axis=1) @ LUMA).astype(np.float64)
    # bright * (contrast * (colour * x + (1 - colour) * luma(x) - mean) + mean), gathered into one affine map a view
    grey_CC = np.repeat(LUMA[:, None], 3, axis=1)
    mixed_BCC = colour_B[:, None, None] * np.eye(3) + (1 - colour_B)[:, None, None] * grey_CC
    gain_BCC = ((bright_B * contrast_B)[:, None, None] * mixed_BCC).astype(np.float32)
    pixels_BPC = pixels_BPC @ gain_BCC
    pixels_BPC += (bright_B * (1 - contrast_B) * mean_B + 0.5).astype(np.float32)[:, None, None]
    return np.clip(pixels_BPC, 0, 255, out=pixels_BPC).astype(np.uint8).reshape(views_u8_BHWC.shape)
