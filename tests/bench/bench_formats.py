"""Kilobytes and tiles a second of a student's formats on one and two cores, beside the three teachers of the demo.

Everything takes uint8 tiles in memory, 128 px, batches of 16 (4 for the ViT), and gives vectors of length 1 at a
width. PyTorch is the network as `load` gives it; a format is opened as a user would. All take turns, each for a share
of a second, so that whatever else the machine does falls on all of them; seconds of processor are printed too. The
teachers' convolutions are fused, as in a run. The ViT-S of the recipe paper_s at 224 px, with random weights, which
cost the same, is measured whole.

The ratio is the best format's tiles/s over PyTorch's at the full width, the smaller of those on one and on two cores.
`--export` names the export of a student of the demo; without it the weights are random. The table is also drawn into
docs/formats.png.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from pathryoshka import config
from pathryoshka.evaluate.pictures import to_png
from pathryoshka.export.formats import write_formats
from pathryoshka.export.graph import Graph
from pathryoshka.export.load import Embedder, load
from pathryoshka.export.record import FILES, FOLDER
from pathryoshka.export.runtimes import open_format
from pathryoshka.recipes import recipe_by_name
from pathryoshka.student.encoder import build_student
from pathryoshka.student.heads import Heads
from pathryoshka.teachers.encoder import load_encoder
from tests.bench.common import finish
from tests.exports import DIMS, export

GOAL, BATCH = 1.0, 16
PYTORCH = "PyTorch"
CORES = (1, 2)
PICTURE = Path(__file__).parents[2] / "docs" / "formats.png"
Encode = Callable[[np.ndarray], np.ndarray]
Rates = dict[tuple[str, str, int, int], list[tuple[float, float]]]
"""(who, format, width, cores) -> tiles a second and a second of processor, of each repeat."""


@dataclass(frozen=True)
class Entrant:
    """`open`: number of threads -> uint8 [B, size, size, 3] to vectors; `widths` are what the vectors are cut to."""

    who: str
    format: str
    kilobytes: float
    size: int
    widths: tuple[int, ...]
    open: Callable[[int], Encode]


def random_export(to: Path, recipe: str) -> Path:
    """An export of a recipe's student with random weights and heads of two made-up teachers."""
    run = recipe_by_name(recipe)
    cfg = run.student.model_copy(update={"start": "random"})
    torch.manual_seed(0)
    student = build_student(cfg, run.views.size)
    golden = np.random.default_rng(0).integers(0, 256, (8, student.size, student.size, 3), dtype=np.uint8)
    over = {"student": student, "run": run.model_copy(update={"student": cfg}), "golden": golden, "scores": None}
    heads = Heads(cfg.widths, DIMS, config.Heads(hidden=0), student.token_width)
    export(to, heads=heads, **over)
    return to


def pytorch(embedder: Embedder) -> Callable[[int], Encode]:
    graph = Graph(embedder).eval()

    @torch.inference_mode()
    def encode(tiles: np.ndarray) -> np.ndarray:
        return graph(torch.from_numpy(tiles)).numpy()

    return lambda num_threads: encode


def formats_of(folder: Path, who: str, widths: tuple[int, ...] = ()) -> list[Entrant]:
    """A student in PyTorch and in every format; writes them first where they are missing."""
    if not all((folder / FOLDER / file).exists() for file in FILES.values()):
        write_formats(folder, say=lambda line: print(f"{who}: {line}", flush=True))
    embedder = load(folder)
    size, asked = embedder.size, widths or embedder.widths
    weights = (folder / "model.safetensors").stat().st_size / 1e3
    out = [Entrant(who, PYTORCH, weights, size, asked, pytorch(embedder))]
    for kind, file in FILES.items():
        path = folder / FOLDER / file
        opened = open_format(path) if kind == "torch-export" else None  # ONNX Runtime fixes its threads when it opens
        out.append(
            Entrant(who, kind, path.stat().st_size / 1e3, size, asked,
                    lambda n, path=path, opened=opened: opened or open_format(path, n))
        )  # fmt: skip
    return out


def teacher(n: int, size: int) -> Entrant:
    cfg = config.Teacher.model_validate({"model": f"efficientnet_lite{n}", "device": "cpu", "input_size": size})
    encoder = load_encoder(f"lite{n}", cfg, (4, 4), "cpu")

    def encode(tiles: np.ndarray) -> np.ndarray:
        return encoder(tiles)["summary"].float().numpy()

    width = encode(np.zeros((1, size, size, 3), np.uint8)).shape[1]
    return Entrant(
        f"EfficientNet-Lite{n}", "teacher", encoder.num_params * 4 / 1e3, size, (width,), lambda threads: encode
    )


def rate(encode: Encode, width: int, tiles: np.ndarray, seconds: float) -> tuple[float, float]:
    """Tiles a second, and a second of processor; at least two batches."""
    count, began, busy = 0, time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - began) < seconds or count < 2 * len(tiles):
        z = encode(tiles)[:, :width]
        z / np.linalg.norm(z, axis=1, keepdims=True)
        count += len(tiles)
    return count / spent, count / (time.process_time() - busy)


def measure(entrants: list[Entrant], repeats: int, seconds: float) -> Rates:
    rng = np.random.default_rng(0)
    batch = {e.size: BATCH if e.size < 200 else BATCH // 4 for e in entrants}
    tiles = {size: rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8) for size, n in batch.items()}
    found: Rates = {}
    for cores in CORES:
        torch.set_num_threads(cores)
        opened = [entrant.open(cores) for entrant in entrants]
        for entrant, encode in zip(entrants, opened, strict=True):
            encode(tiles[entrant.size])  # memory and kernels are chosen at the first call
        for _ in range(repeats):
            for entrant, encode in zip(entrants, opened, strict=True):
                for width in entrant.widths:
                    one = rate(encode, width, tiles[entrant.size], seconds)
                    found.setdefault((entrant.who, entrant.format, width, cores), []).append(one)
    return found


def middle(rates: list[tuple[float, float]], which: int = 0) -> float:
    return round(statistics.median(one[which] for one in rates), 1)


def table(entrants: list[Entrant], found: Rates) -> list[dict[str, Any]]:
    rows = []
    for e in entrants:
        for width in e.widths:
            rates = {f"tiles_s_{c}": middle(found[e.who, e.format, width, c]) for c in CORES}
            rates["tiles_cpu_s"] = middle(found[e.who, e.format, width, 1], 1)
            row = {"who": e.who, "format": e.format, "kilobytes": round(e.kilobytes), "size": e.size, "width": width}
            rows.append({**row, "bytes": 4 * width, **rates})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print("| encoder | format | kB | px | width | bytes | tiles/s, 1 core | 2 cores | a CPU second |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


def draw(rows: list[dict[str, Any]]) -> bytes:
    """Bars of tiles/s on one and two cores, whole vectors, kilobytes beside each name."""
    whole = [row for row in rows if row["width"] == max(r["width"] for r in rows if r["who"] == row["who"])]
    figure = Figure(figsize=(8.6, 0.42 * len(whole) + 1.2), layout="constrained")
    axes = figure.subplots()
    for cores, shift, colour in ((1, -0.2, "#0b5cc4"), (2, 0.2, "#c2571a")):
        rates = [row[f"tiles_s_{cores}"] for row in whole]
        bars = axes.barh(
            np.arange(len(whole)) + shift, rates, 0.38, color=colour, label=f"{cores} core{'s' * (cores > 1)}"
        )
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.set_yticks(range(len(whole)), [f"{r['who']}, {r['format']} ({r['kilobytes'] / 1e3:.1f} MB)" for r in whole])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("tiles a second (log), CPU")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return to_png(figure, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", type=Path, help="an exported student of the demo  [default: random weights]")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--no-vit", action="store_true", help="leave the ViT-S out, which takes two minutes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        student = args.export or random_export(Path(name) / "demo", "demo")
        small = formats_of(student, "student")
        entrants = [*small, *(teacher(n, small[0].size) for n in range(3))]
        found = measure(entrants, args.repeats, args.seconds)
        if not args.no_vit:
            vit = formats_of(random_export(Path(name) / "vit", "paper_s"), "ViT-S/14", (384,))
            found |= measure(vit, max(1, args.repeats // 2), args.seconds)
            entrants += vit
    rows = table(entrants, found)
    show(rows)
    PICTURE.write_bytes(draw(rows))
    width = max(small[0].widths)
    ratios = {}
    for cores in CORES:
        base = found["student", PYTORCH, width, cores]
        best = max(FILES, key=lambda kind: middle(found["student", kind, width, cores]))
        ratios[cores] = [a / b for (a, _), (b, _) in zip(found["student", best, width, cores], base, strict=True)]
        print(f"{cores} core(s): {best} {statistics.median(ratios[cores]):.2f} times PyTorch")
    worst = min(CORES, key=lambda cores: statistics.median(ratios[cores]))
    finish("formats", ratios[worst], GOAL, rows=rows, weights=args.export is not None, load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
