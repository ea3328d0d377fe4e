"""A million embeddings: is a short-list on 64 numbers, re-ranked by all, as good as exact search, and how much faster?

Exact search and adaptive retrieval (see pathryoshka/evaluate/protocols/adaptive.py) take turns on the same cores, on
archives of a million rows with 512 queries that are not among them:

simulated   384 and 768 numbers: 20,000 clusters, noise in each, both with a spectrum that decays as in a nested
            embedding (deviation of number i proportional to i^-0.7).
real        embeddings of tiles of real tissue by EfficientNet-Lite0 (1,280 numbers, ImageNet weights), which is not
            nested: they are rotated to their principal directions, so that the first numbers carry most, and cut to
            384. About a thousand tiles are repeated to a million, each time with other noise, a third as large as the
            tiles differ among themselves and with their covariance: an archive where everything has near-duplicates.
            Needs PATHRYOSHKA_REAL_DATA (the JPEGs below its `tiles`) and the extra `teachers`; else left out, loudly.

Goal: at least 5 times the speed wherever recall@10 is at least .98; a set with less recall counts as no speed at all.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pathryoshka import config
from pathryoshka.evaluate.protocols.adaptive import LISTED, Archive, adaptive_retrieval, make_archive
from pathryoshka.teachers.encoder import load_encoder
from tests.bench.common import finish

GOAL, RECALL = 5.0, 0.98
ROWS, QUERIES = 1_000_000, 512
CLUSTERS, DECAY = 20_000, 0.7
CROPS = 4
"""Corners of an image that are cut out, of 224 pixels; a smaller image is one tile."""
NOISE = 1 / 3


def unit(x_ND: np.ndarray) -> np.ndarray:
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND


def filled(num: int, width: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
    """fp32 [num, width] of length 1, made in parts."""
    out = np.empty((num, width), np.float32)
    for start in range(0, num, 50_000):
        out[start : start + 50_000] = unit(make(min(50_000, num - start)))
    return out


def simulated(width: int, num: int) -> tuple[Archive, np.ndarray]:
    rng = np.random.default_rng(width)
    spectrum = (np.arange(1, width + 1) ** -DECAY).astype(np.float32)
    centres = rng.standard_normal((CLUSTERS, width), dtype=np.float32)

    def make(n: int) -> np.ndarray:
        noise = 0.7 * rng.standard_normal((n, width), dtype=np.float32)
        return (centres[rng.integers(0, CLUSTERS, n)] + noise) * spectrum

    return make_archive(filled(num, width, make)), filled(QUERIES, width, make)


def tiles(folder: Path) -> list[np.ndarray]:
    """uint8 [224, 224, 3] each."""
    out = []
    for path in sorted(folder.rglob("*.jp*g")):
        image = np.asarray(Image.open(path).convert("RGB"))
        bottom, right = image.shape[0] - 224, image.shape[1] - 224
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)][: CROPS if min(bottom, right) >= 224 else 1]
        out += [image[y : y + 224, x : x + 224] for y, x in corners]
    return out


def real(folder: Path, width: int, num: int) -> tuple[Archive, np.ndarray]:
    encoder = load_encoder("lite0", config.Teacher(model="efficientnet_lite0", device="cpu"), (7, 7), "cpu")
    views = tiles(folder)
    parts = [encoder(np.stack(views[i : i + 32]))["summary"].float().numpy() for i in range(0, len(views), 32)]
    x_ND = unit(np.concatenate(parts))
    rotation = np.linalg.svd(x_ND, full_matrices=False)[2][:width].T
    x_ND = x_ND @ rotation
    share = (x_ND[:, :64] ** 2).sum() / (x_ND**2).sum()
    print(f"{len(views)} real tiles; the first 64 of {width} numbers carry {share:.3f} of the length")
    rng = np.random.default_rng(0)
    spread = NOISE * x_ND.std(0)

    def make(n: int) -> np.ndarray:
        return x_ND[rng.integers(0, len(x_ND), n)] + spread * rng.standard_normal((n, width), dtype=np.float32)

    return make_archive(filled(num, width, make)), filled(QUERIES, width, make)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--listed", type=int, default=LISTED)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    sets = {f"simulated {width}": simulated(width, args.rows) for width in (384, 768)}
    source = os.environ.get("PATHRYOSHKA_REAL_DATA")
    if source:
        sets["real 384"] = real(Path(source) / "tiles", 384, args.rows)
    else:
        print("SKIPPED: real tissue; set PATHRYOSHKA_REAL_DATA to a folder as this file's docstring says")
    ratios, facts = [], []
    for repeat in range(args.repeats):
        speeds = {}
        for name, (archive, queries) in sets.items():
            found = adaptive_retrieval(archive, queries, np.arange(len(queries)), listed=args.listed)
            exact, quick = (len(queries) / s for s in (found.exact_seconds, found.adaptive_seconds))
            recall = found.recall.value
            speeds[name] = quick / exact if recall >= RECALL else 0.0
            facts.append({"set": name, "recall": round(recall, 4), "exact": round(exact), "adaptive": round(quick)})
            print(
                f"{repeat}: {name}: exact {exact:.0f} queries/s, adaptive {quick:.0f}, recall@10 {recall:.4f}",
                flush=True,
            )
        ratios.append(min(speeds.values()))
    finish("adaptive-retrieval", ratios, GOAL, rows=args.rows, listed=args.listed, found=facts)


if __name__ == "__main__":
    main()
