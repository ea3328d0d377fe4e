"""Does the student learn tissue? Distil on half of real H&E, probe patients of the other half; then swap the halves.

Needs a folder of real tissue, named by PATHRYOSHKA_REAL_DATA: `tiles/lc25000/*.jpeg` (class before `___`, 768 px),
`tiles/glas/{images,grade.csv,tiles224.csv}` and `slides/`. `ARGS="--views 200000 --halves a,b"` decide the length.
Prints balanced accuracy of student, start, random weights, each teacher and their PCA by linear probe and k-NN, and the
share of the teachers' mean that the student reaches; the goal is .95 on LC25000 and .85 on GlaS, both as one ratio.
LC25000's images are grouped by cluster of near-duplicates, in the halves and in the folds.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from pathryoshka import config
from pathryoshka.recipes import recipe_by_name
from pathryoshka.runs import results
from pathryoshka.runs.devices import logical_cpus
from pathryoshka.runs.job import distill
from pathryoshka.session import ray_session
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.importing import import_images
from pathryoshka.tiles.slides import cut_slides
from tests.bench.common import finish
from tests.bench.lc25000 import unit_of

GOALS = {"lc25000": 0.95, "glas": 0.85}
CROP, STRIDE, TILE = 448, 160, 224
"""Distillation takes tiles of CROP pixels every STRIDE from whole images, for views to be cut from; probes see TILE."""


def half_of(name: str) -> str:
    return "ab"[hashlib.blake2b(name.encode()).digest()[0] % 2]


def glas_halves(rows: list[dict[str, str]]) -> dict[str, str]:
    """Patients dealt in turn within each grade, so that both halves hold both."""
    grade = {row["patient"]: row["grade2"] for row in rows}
    halves = {}
    for value in sorted(set(grade.values())):
        for i, patient in enumerate(sorted((p for p in grade if grade[p] == value), key=int)):
            halves[patient] = "ab"[i % 2]
    return halves


def cut(image: Image.Image, size: int, stride: int) -> list[tuple[int, int, Image.Image]]:
    """(x, y, crop) on a grid that reaches the far edges; a smaller image comes whole."""

    def starts(length: int) -> list[int]:
        return sorted({*range(0, max(1, length - size + 1), stride), max(0, length - size)})

    w, h = image.size
    return [(x, y, image.crop((x, y, min(x + size, w), min(y + size, h)))) for y in starts(h) for x in starts(w)]


def write_images(source: Path, to: Path) -> None:
    """PNG crops and one CSV for each of {distil, lc25000, glas} x {a, b}."""
    sheets: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def add(kind: str, half: str, name: str, crop: Image.Image, **facts: Any) -> None:
        path = to / f"{kind}_{half}" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.convert("RGB").save(path, quality=95)
        sheets.setdefault((kind, half), []).append({"tile": path.name, **facts})

    for file in sorted((source / "tiles/lc25000").glob("*.jpeg")):
        label, unit = file.name.split("___")[0], unit_of(file.stem)
        half = half_of(unit)
        image = Image.open(file)
        for x, y, crop in cut(image, CROP, STRIDE):
            add("distil", half, f"lc_{file.stem}_{x}_{y}", crop, patient=f"lc_{unit}")
        for x, y, crop in cut(image, TILE, TILE)[:9]:
            add("lc25000", half, f"{file.stem}_{x}_{y}", crop, patient=f"lc_{unit}", label=label)
    rows = list(csv.DictReader((source / "tiles/glas/tiles224.csv").open()))
    halves = glas_halves(rows)
    images: dict[str, Image.Image] = {}
    for file in sorted((source / "tiles/glas/images").iterdir()):
        images[file.stem] = Image.open(file).convert("RGB")
    patients = {row["image"]: row["patient"] for row in rows}
    for name, image in images.items():
        if name in patients:
            for x, y, crop in cut(image, CROP, STRIDE):
                facts = {"patient": f"glas_{patients[name]}"}
                add("distil", halves[patients[name]], f"glas_{name}_{x}_{y}", crop, **facts)
    for row in rows:
        x, y = int(row["x"]), int(row["y"])
        crop = images[row["image"]].crop((x, y, x + TILE, y + TILE))
        facts = {"patient": f"glas_{row['patient']}", "label": row["grade2"]}
        add("glas", halves[row["patient"]], f"{row['image']}_{x}_{y}", crop, **facts)
    for (kind, half), lines in sheets.items():
        with (to / f"{kind}_{half}.csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, fieldnames=list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)


def make_tiles(source: Path, work: Path, root: str, cfg: config.Storage) -> None:
    if not (work / "images/done").exists():
        write_images(source, work / "images")
        (work / "images/done").touch()
    for half in "ab":
        for kind in ("distil", "lc25000", "glas"):
            folder = work / "images" / f"{kind}_{half}"
            import_images(folder, f"{root}/{kind}_{half}", cfg, csv=folder.with_suffix(".csv"))
    slides = sorted(p for p in (source / "slides").iterdir() if p.suffix in (".svs", ".tif"))
    cut_slides(slides, f"{root}/slides", cfg, size=CROP, stride=CROP // 2, mpp=0.5, slide_mpp=0.25)


def run_of(half: str, views: int, settings: list[str]) -> config.Run:
    """Distils on `half` and the slides, is scored on the other one."""
    other, root = "ba"["ab".index(half)], "s3://learns/tiles"
    # their features in bf16 are 4-7 % off, a tenth of what the student leaves unexplained, and 1.5 times sooner here
    teachers = {name: {"precision": "bf16"} for name in recipe_by_name("demo").teachers.models}
    over: dict[str, Any] = {
        "name": f"learns-{half}-{views}",
        "storage": {"root": "s3://learns/runs"},
        "data": {"tiles": [f"{root}/distil_{half}", f"{root}/slides"]},
        "plan": {"num_views": views},
        "teachers": {"models": teachers},
        # a view shows what a 224-px tile shows, give or take a third
        "views": {"scale": (0.12, 0.5), "mix_share": 0.5, "stain": 0.05},
        "evaluate": {"tiles": [f"{root}/lc25000_{other}", f"{root}/glas_{other}"], "folds": 5},
        "train": {"checkpoint_every": 500, "log_every": 50},
        "standardise": {"num_views": 2000},
    }
    for text in settings:
        over = config.overlay(over, config.parse_setting(text))
    return config.make_run(config.overlay(recipe_by_name("demo").model_dump(), over))


def shares(scores: Any, widths: tuple[int, ...], teachers: list[str]) -> dict[str, dict[str, float]]:
    """By data set: the linear probe of everything, and the student's share of the teachers' mean."""
    out: dict[str, dict[str, float]] = {}
    for facts in scores.datasets:
        name = facts.name.rsplit("_", 1)[0]

        def score(encoder: str, width: int | None = None, name: str = facts.name) -> float:
            row = scores.row(name, "linear", encoder, width)
            return float("nan") if row is None else row.score

        mean = statistics.mean(score(t) for t in teachers)
        line = {f"student/{w}": score("student", w) for w in widths} | {t: score(t) for t in teachers}
        line |= {"start": score("start", widths[-1]), "random": score("random", widths[-1]), "teachers": mean}
        out[name] = line | {"share": line[f"student/{widths[-1]}"] / mean}
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--views", type=int, default=150_000)
    parser.add_argument("--halves", default="a,b")
    parser.add_argument("--work", type=Path, default=Path("out/learns"))
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    source = os.environ.get("PATHRYOSHKA_REAL_DATA")
    if not source:
        sys.exit("bench learns needs real tissue: set PATHRYOSHKA_REAL_DATA to a folder as this file's docstring says")
    ratios, tables = [], {}
    with S3Server(args.work / "s3", bucket="learns") as server:
        os.environ.update(server.env)
        for half in args.halves.split(","):
            run = run_of(half, args.views, args.set)
            with ray_session(logical_cpus(run)):
                make_tiles(Path(source), args.work, "s3://learns/tiles", run.storage)
                started = time.perf_counter()
                distill(run)
                minutes = (time.perf_counter() - started) / 60
            scores = results.evaluate_run(run)
            results.report_run(run, args.work / f"report_{half}_{args.views}.html")
            table = shares(scores, run.student.widths, list(run.teachers.models))
            tables[half] = table | {"minutes": {"distil": minutes}}
            for name, line in table.items():
                print(f"distilled on half {half}, {name}: " + "  ".join(f"{k} {v:.3f}" for k, v in line.items()))
            ratios.append(min(table[name]["share"] / goal for name, goal in GOALS.items()))
    finish("learns", ratios, 1.0, views=args.views, settings=args.set, tables=tables)


if __name__ == "__main__":
    main()
