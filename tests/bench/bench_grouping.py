"""What a split that ignores patients is worth: GlaS by tile, by image and by patient, one frozen encoder.

A third of the crops of the 165 images of 16 patients (PATHRYOSHKA_REAL_DATA), EfficientNet-Lite0 with its
ImageNet weights, linear probe and neighbours by five folds; only the unit that folds keep together differs, and that of
the intervals with it. The ratio is the linear probe's balanced accuracy on the five grades by patient over by tile.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pathryoshka import config
from pathryoshka.evaluate import scoring
from pathryoshka.evaluate.folds import make_folds
from pathryoshka.evaluate.statistics import interval
from pathryoshka.teachers.encoder import load_encoder
from tests.bench.common import finish

EVERY = 3
"""One in so many crops of an image."""
UNITS = ("tile", "image", "patient")


def crops(glas: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """uint8 [N, 224, 224, 3] and columns [N] of strings."""
    with (glas / "tiles224.csv").open() as file:
        rows = list(csv.DictReader(file))[::EVERY]
    pixels = []
    for row in rows:
        with Image.open(next((glas / "images").glob(f"{row['image']}.*"))) as image:
            x, y, size = (int(row[key]) for key in ("x", "y", "size"))
            pixels.append(np.asarray(image.convert("RGB").crop((x, y, x + size, y + size))))
    columns = {key: np.array([row[key] for row in rows]) for key in ("image", "patient", "grade2", "grade5")}
    return np.stack(pixels), {**columns, "tile": np.array([f"{i}" for i in range(len(rows))])}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    source = os.environ.get("PATHRYOSHKA_REAL_DATA")
    if not source:
        sys.exit("SKIPPED: set PATHRYOSHKA_REAL_DATA to the folder of the development data")
    views, columns = crops(Path(source) / "tiles" / "glas")
    started = time.perf_counter()
    encode = load_encoder(
        "lite0", config.Teacher(model="efficientnet_lite0", device="cpu"), (7, 7), "cpu", config.Storage()
    )
    parts = [encode(views[i : i + 32])["summary"].float().numpy() for i in range(0, len(views), 32)]
    x_ND = scoring.normalise(np.concatenate(parts))
    print(f"{len(views)} crops embedded in {time.perf_counter() - started:.0f} s", flush=True)
    table: dict[str, dict[str, float]] = {}
    for grade in ("grade2", "grade5"):
        for unit in UNITS:
            labels, groups = columns[grade], columns[unit]
            task = scoring.make_task(labels, groups, make_folds(labels, groups))
            for protocol, profile in scoring.score(task, x_ND, ("linear", "knn")).profiles.items():
                if protocol != "calibration":
                    found = interval(profile, share=True)
                    table[f"{grade}/{unit}/{protocol}"] = {"score": found.value, "low": found.low, "high": found.high}
                    print(f"{grade} by {unit:<8} {protocol:<7} {found.value:.3f} [{found.low:.2f}, {found.high:.2f}]"
                          f"  {len(task.group_names)} units, {len(task.folds)} folds", flush=True)  # fmt: skip
    ratio = table["grade5/patient/linear"]["score"] / table["grade5/tile/linear"]["score"]
    finish("grouping", [ratio], 1.0, below=True, table=table)


if __name__ == "__main__":
    main()
