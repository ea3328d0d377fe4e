"""A phantom slide: patches of phantom tissue on glass, in a tiled, pyramidal TIFF that OpenSlide opens with its mpp.

The TIFF is written here, tile by tile as Pillow's JPEGs: no library that we depend on writes tiled ones, and the same
arguments give the same bytes (no software name, no date).
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pathryoshka.tiles.phantom import LABELS, MPP, PhantomError
from pathryoshka.tiles.phantom_scan import patient_of, phantom_rng, scanned, scanner_of, stained
from pathryoshka.tiles.phantom_tissue import KINDS, Tissue, noise

MAP_STEP = 16
"""Pixels of level 0 a cell of the label map."""
BLOCK, OVERLAP = 512, 32
BAND, BLUR_MARGIN = 1024, 8
LEVEL_STEP = 4
REGION = 700
"""Pixels between regions of different tissue, about."""
DESCRIPTION = b"phantom tissue: synthetic, no patient\0"


def phantom_slide(
    path: Path | str, width: int, height: int, seed: int = 0, mpp: float = MPP, tile: int = 256
) -> np.ndarray:
    """Writes a slide of `width` x `height` pixels; about 15 bytes of memory a pixel.

    Args:
        mpp: micrometres a pixel of level 0, and the scale of the tissue.
        tile: side of the TIFF's tiles; a multiple of 16.

    Returns:
        What lies where: uint8 [height / 16, width / 16] (rounded up), 0 for glass, else 1 + the index in LABELS.

    Raises:
        PhantomError: a size, tile or mpp that no slide can have.
    """
    if tile % 16 or tile <= 0 or min(width, height) < MAP_STEP or not 0.05 <= mpp <= 50:
        raise PhantomError(
            f"no phantom slide of {width} x {height} pixels, tile {tile}, mpp {mpp}: tile must be a multiple of 16, "
            f"the sides at least {MAP_STEP}, mpp between 0.05 and 50"
        )
    map_shape = (math.ceil(height / MAP_STEP), math.ceil(width / MAP_STEP))
    regions = label_map(map_shape, seed, REGION * MPP / mpp / MAP_STEP)
    pixels = pictured(grown(regions, (height, width), seed, mpp), seed)
    levels = [pixels]
    while max(levels[-1].shape) > 2 * tile:
        levels.append(np.asarray(Image.fromarray(levels[-1]).reduce(LEVEL_STEP)))
    write_pyramid(Path(path), levels, mpp, tile, scanner_of(0, seed).quality)
    return regions


def label_map(shape: tuple[int, int], seed: int, spacing: float) -> np.ndarray:
    """Blobs of tissue on glass, each point of them the label whose smooth noise is highest there; uint8 [h, w]."""
    rng = phantom_rng(seed, "slide", "map")
    labels = np.argmax([noise(rng, shape, spacing) for _ in LABELS], axis=0) + 1
    down, across = (np.linspace(-1, 1, n) for n in shape)
    outline = 0.75 - (down[:, None] ** 2 + across**2) + 0.25 * noise(rng, shape, spacing)
    return np.where(outline > 0, labels, 0).astype(np.uint8)


def grown(regions: np.ndarray, shape: tuple[int, int], seed: int, mpp: float) -> Tissue:
    """The tissue of a label map at full size: block by block, cross-faded where blocks overlap."""
    habit = patient_of(0, 0, seed).habit
    habit = replace(habit, scale=habit.scale * MPP / mpp)
    whole = Tissue(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
    shares = [Image.fromarray((regions == index + 1).astype(np.float32)) for index in range(len(LABELS))]
    for top, rows in fading(shape[0]):
        for left, cols in fading(shape[1]):
            size = (len(rows), len(cols))
            box = (left / MAP_STEP, top / MAP_STEP, (left + size[1]) / MAP_STEP, (top + size[0]) / MAP_STEP)
            window = (slice(top, top + size[0]), slice(left, left + size[1]))
            for label, share in zip(LABELS, shares, strict=True):
                part = share.resize(size[::-1], Image.Resampling.BILINEAR, box=box)
                if part.getextrema()[1] == 0:
                    continue
                tissue = KINDS[label](phantom_rng(seed, "slide", label, top, left), size, habit)
                weight = np.asarray(part) * rows[:, None] * cols
                whole.haem[window] += weight * tissue.haem
                whole.eosin[window] += weight * tissue.eosin
    return whole


def fading(length: int) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks along an axis: first pixel and weight of each pixel, float32; the weights of all blocks add up to 1."""
    for start in range(0, length, BLOCK):
        first, last = max(0, start - OVERLAP), min(length, start + BLOCK)
        weight = np.ones(last - first, np.float32)
        ramp = (np.arange(OVERLAP, dtype=np.float32) + 0.5) / OVERLAP
        if first:
            weight[:OVERLAP] = ramp
        if last < length:
            weight[-OVERLAP:] = ramp[::-1]
        yield first, weight


def pictured(tissue: Tissue, seed: int) -> np.ndarray:
    """Stained and scanned, band by band; uint8 [H, W, 3]."""
    scanner, stains, rng = scanner_of(0, seed), patient_of(0, 0, seed).stains, phantom_rng(seed, "slide", "scan")
    height, width = tissue.haem.shape
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, BAND):
        first, last = max(0, top - BLUR_MARGIN), min(height, top + BAND + BLUR_MARGIN)
        band = Tissue(tissue.haem[first:last], tissue.eosin[first:last])
        picture = scanned(stained(band, stains, scanner.white), scanner, rng)
        pixels[top : top + BAND] = picture[top - first :][:BAND]
    return pixels


def write_pyramid(path: Path, levels: Sequence[np.ndarray], mpp: float, tile: int, quality: int) -> None:
    """A generic tiled TIFF of JPEG tiles, largest level first; appears under its name only when it is complete.

    Args:
        levels: uint8 [H, W, 3] each; all but the first are marked as reduced images, which OpenSlide asks for.
    """
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(b"II*\0" + bytes(4))
        link = 4  # where the offset of the next directory goes
        for number, pixels in enumerate(levels):
            offsets, counts = [], []
            for data in jpeg_tiles(pixels, tile, quality):
                offsets.append(file.tell())
                counts.append(len(data))
                file.write(data)
            tags = directory(pixels.shape, number, mpp * levels[0].shape[1] / pixels.shape[1], tile, offsets, counts)
            start = file.seek(0, os.SEEK_END) + file.tell() % 2
            file.seek(start)
            file.write(tags_as_bytes(tags, start))
            file.seek(link)
            file.write(struct.pack("<I", start))
            link = start + 2 + 12 * len(tags)
            file.seek(0, os.SEEK_END)
    os.replace(partial, path)


def jpeg_tiles(pixels: np.ndarray, tile: int, quality: int) -> Iterator[bytes]:
    """Row by row; tiles over the border are filled up with its pixels, so that they compress well."""
    height, width, _ = pixels.shape
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            part = pixels[top : top + tile, left : left + tile]
            missing = (tile - part.shape[0], tile - part.shape[1])
            part = np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else part
            sink = io.BytesIO()
            Image.fromarray(part).save(sink, "JPEG", quality=quality, subsampling="4:2:0")
            yield sink.getvalue()


SHORT, LONG, RATIONAL, ASCII = 3, 4, 5, 2
Tag = tuple[int, int, tuple[int, ...] | bytes]


def directory(
    shape: tuple[int, ...], number: int, mpp: float, tile: int, offsets: list[int], counts: list[int]
) -> list[Tag]:
    """The tags of one level (TIFF 6.0 and its JPEG supplement): number, type, values."""
    resolution = (1_000_000_000, round(mpp * 100_000))  # pixels a centimetre
    return [
        (254, LONG, (int(number > 0),)),  # reduced image
        (256, LONG, (shape[1],)),
        (257, LONG, (shape[0],)),
        (258, SHORT, (8, 8, 8)),
        (259, SHORT, (7,)),  # JPEG
        (262, SHORT, (6,)),  # YCbCr
        (270, ASCII, DESCRIPTION),
        (277, SHORT, (3,)),
        (282, RATIONAL, resolution),
        (283, RATIONAL, resolution),
        (284, SHORT, (1,)),  # channels together
        (296, SHORT, (3,)),  # centimetres
        (322, LONG, (tile,)),
        (323, LONG, (tile,)),
        (324, LONG, tuple(offsets)),
        (325, LONG, tuple(counts)),
        (530, SHORT, (2, 2)),  # chroma subsampling
    ]


def tags_as_bytes(tags: Sequence[Tag], start: int) -> bytes:
    """A directory that lies at byte `start`: entries, an empty link to the next, values too long for an entry."""
    entries, rest = struct.pack("<H", len(tags)), b""
    after = start + 2 + 12 * len(tags) + 4
    for number, kind, values in tags:
        if isinstance(values, bytes):
            count, data = len(values), values
        else:
            data = struct.pack(f"<{len(values)}{'H' if kind == SHORT else 'I'}", *values)
            count = len(values) // 2 if kind == RATIONAL else len(values)
        if len(data) > 4:
            data, rest = struct.pack("<I", after + len(rest)), rest + data + bytes(len(data) % 2)
        entries += struct.pack("<HHI", number, kind, count) + data.ljust(4, b"\0")
    return entries + bytes(4) + rest
