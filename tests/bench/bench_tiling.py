"""Tiles a second of `tiles cut` with two workers against a plain loop of OpenSlide and Pillow, wall time, interleaved.

The slides are as large as real ones: the tissue of the one that ships, again and again, as JPEG tiles in a pyramid, at
0.499 mpp. The loop gets the positions for nothing, reads, resamples and encodes each with the same filter and quality,
and writes files. `tiles cut` finds them itself, judges every tile and writes shards. Memory over 200 slides is printed
at the end. HS2P_PYTHON names a python with hs2p 6, to compare with it too: hs2p_cut.py says what to install.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import psutil
import pyarrow.parquet as pq
import simplejpeg
import tifffile
from PIL import Image

from pathryoshka import config
from pathryoshka.session import ray_session
from pathryoshka.tiles.slides import cut_slides
from tests.bench.common import finish

GOAL, SIZE, MPP, QUALITY = 1.8, 224, 0.5, 92
CMU = Path(__file__).parents[1] / "data" / "slides" / "CMU-1-Small-Region.svs"
CFG = config.Storage()


def mosaic(where: Path) -> Path:
    """A slide of 17760 x 17802 pixels out of 48 times the one that ships: levels 1, 4, 16, JPEG tiles."""
    with openslide.OpenSlide(CMU) as slide:
        whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    whole = np.tile(whole, (6, 8, 1))
    tifffile._imagecodecs.jpeg_encode = None  # tifffile looks for an encoder though what it gets is encoded already
    with tifffile.TiffWriter(where) as tiff:
        for step in (1, 4, 16):
            pixels = whole if step == 1 else np.asarray(Image.fromarray(whole).reduce(step))
            facts = {"shape": pixels.shape, "dtype": np.uint8, "photometric": "ycbcr", "subsampling": (1, 1)}
            facts |= {"resolution": (1e4 / 0.499, 1e4 / 0.499), "resolutionunit": "CENTIMETER", "metadata": None}
            tiff.write(jpegs(pixels), tile=(256, 256), compression="jpeg", subfiletype=int(step > 1), **facts)
    return where


def jpegs(pixels: np.ndarray) -> Iterator[bytes]:
    """The tiles of a level, encoded."""
    for y in range(0, pixels.shape[0], 256):
        for x in range(0, pixels.shape[1], 256):
            tile = np.full((256, 256, 3), 255, np.uint8)
            part = pixels[y : y + 256, x : x + 256]
            tile[: part.shape[0], : part.shape[1]] = part
            yield simplejpeg.encode_jpeg(tile, quality=85, colorspace="RGB", colorsubsampling="444")


def plain(slides: list[Path], cut: Path, out: Path) -> int:
    """The loop: every tile that is kept, as a JPEG file."""
    out.mkdir()
    count = 0
    for path in slides:
        found = pq.read_table(cut / "_slides" / f"{path.stem}.parquet").to_pylist()
        with openslide.OpenSlide(path) as slide:
            level_0 = float(slide.properties["openslide.mpp-x"])
            side = SIZE * MPP / level_0
            level = slide.get_best_level_for_downsample(MPP / level_0)
            part = side / slide.level_downsamples[level]
            for place in (one for one in found if one["kept"]):
                at = (place["x"], place["y"])
                region = slide.read_region(at, level, (math.ceil(part),) * 2).convert("RGB")
                tile = region.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(0, 0, part, part))
                tile.save(out / f"{path.stem}-{count}.jpg", quality=QUALITY, subsampling=0)
                count += 1
    return count


def hs2p(python: str, slides: list[Path], out: Path) -> float | None:
    """Tiles a second of hs2p, as tests/bench/hs2p_cut.py measured them, without the start of its interpreter."""
    script = Path(__file__).with_name("hs2p_cut.py")
    command = [python, str(script), str(out), str(SIZE), str(MPP), *map(str, slides)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"hs2p failed and is left out: {done.stderr.strip().splitlines()[-1:]}")
        return None
    encoder, count, seconds = done.stdout.split()[-3:]
    print(f"  hs2p ({encoder}): {count} tiles in {float(seconds):.1f} s, {int(count) / float(seconds):.0f} tiles/s")
    return int(count) / float(seconds)


def children_mib() -> float:
    """Resident memory of everything below this process."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss if "pathryoshka.tiles.child" in process.cmdline() else 0
        except psutil.Error:
            continue
    return total / 2**20


def memory(slides: list[Path], folder: Path) -> tuple[float, float]:
    """MiB of all children together, median of the second tenth and of the last tenth of 200 slides."""
    (folder / "many").mkdir()
    many = [folder / "many" / f"{i:03d}{slides[i % len(slides)].suffix}" for i in range(200)]
    for i, path in enumerate(many):
        path.symlink_to(slides[i % len(slides)])
    seen: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            seen.append(children_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    cut_slides(many, str(folder / "cut_many"), CFG, size=SIZE, mpp=1.0, cap=60)
    stop.set()
    thread.join()
    tenth = max(1, len(seen) // 10)
    return float(np.median(seen[tenth : 2 * tenth])), float(np.median(seen[-tenth:]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--slides", nargs="*", type=Path, default=[], help="slides with mpp  [default: two large ones, made here]"
    )
    args = parser.parse_args()
    ratios, ours, others = [], [], []
    with tempfile.TemporaryDirectory() as name, ray_session(2):
        folder = Path(name)
        originals = args.slides or [mosaic(folder / "mosaic.tif")]
        slides = []
        for i in range(2):
            for path in originals:
                copy = folder / f"{path.stem}-{i}{path.suffix}"
                copy.symlink_to(path.resolve())
                slides.append(copy)
        print(f"{len(slides)} slides", flush=True)
        cut_slides(slides, str(folder / "warm"), CFG, size=SIZE, mpp=MPP)  # workers and their children start
        for repeat in range(args.repeats):
            begun = time.perf_counter()
            count = plain(slides, folder / "warm", folder / f"plain{repeat}")
            middle = time.perf_counter()
            rows = cut_slides(slides, str(folder / f"cut{repeat}"), CFG, size=SIZE, mpp=MPP).rows
            ended = time.perf_counter()
            assert rows == count, (rows, count)
            ratios.append((middle - begun) / (ended - middle))
            ours.append(rows / (ended - middle))
            print(
                f"repeat {repeat}: plain {count / (middle - begun):.0f} tiles/s, tiles cut {ours[-1]:.0f}", flush=True
            )
            if python := os.environ.get("HS2P_PYTHON"):
                rate = hs2p(python, slides, folder / f"hs2p{repeat}")
                others += [rate] if rate else []
        if not os.environ.get("HS2P_PYTHON"):
            print("SKIPPED: HS2P_PYTHON names no python with hs2p; not compared")
        if others:
            print(f"{statistics.median(ours) / statistics.median(others):.2f} times as many tiles a second as hs2p")
        early, late = memory(originals, folder)
        print(f"200 slides: {early:.0f} MiB of readers early on, {late:.0f} MiB at the end")
    finish("tiling", ratios, GOAL, tiles=count, tiles_per_s=statistics.median(ours), hs2p=others, mib=[early, late])


if __name__ == "__main__":
    sys.exit(main())
