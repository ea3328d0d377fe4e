"""Six widths of one embedding against one width: CPU seconds of embedding, k-NN and linear probes, in one run.

The student of 22 M parameters (recipe `paper_s`, random weights: they cost the same) on the tiles of GlaS by patient,
where PATHRYOSHKA_REAL_DATA names a folder as bench_learns.py says, else on phantom tissue of the same size.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from pathryoshka import config
from pathryoshka.evaluate.embed import embed_tiles
from pathryoshka.evaluate.folds import make_folds
from pathryoshka.evaluate.scoring import cut, make_task, score
from pathryoshka.recipes import recipe_by_name
from pathryoshka.runs.results import encode_with
from pathryoshka.session import ray_session
from pathryoshka.student.encoder import build_student
from pathryoshka.tiles.importing import import_images
from pathryoshka.tiles.phantom import write_phantom
from tests.bench.bench_learns import write_images
from tests.bench.common import finish

GOAL = 1.15
WIDTHS = (32, 64, 128, 192, 256, 384)
CFG = config.Storage()


def tiles(folder: Path) -> str:
    source, to = os.environ.get("PATHRYOSHKA_REAL_DATA"), str(folder / "tiles")
    if not source:
        write_phantom(to, CFG, num_tiles=1980, num_patients=16, num_sites=2)
        return to
    write_images(Path(source), folder / "images")
    sheets = [folder / "images" / f"glas_{half}.csv" for half in "ab"]
    named = [f"{sheet.stem}/{line}" for sheet in sheets for line in sheet.read_text().splitlines()[1:]]
    (folder / "images" / "glas.csv").write_text("\n".join([sheets[0].read_text().splitlines()[0], *named]) + "\n")
    with ray_session(os.cpu_count() or 1):
        import_images(folder / "images" / "glas.csv", to, CFG)
    return to


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-tiles", type=int, default=2000)
    args = parser.parse_args()
    run = recipe_by_name("paper_s")
    torch.manual_seed(0)
    cfg = run.student.model_copy(update={"start": "random"})
    encode = encode_with(build_student(cfg, run.views.size), "cpu")
    with tempfile.TemporaryDirectory() as name:
        uri = tiles(Path(name))
        started = time.process_time()
        embedded = embed_tiles({"student": encode}, uri, CFG, size=run.views.size, max_tiles=args.max_tiles)
        embedding = time.process_time() - started
    folds = make_folds(embedded.labels, embedded.patients)
    task = make_task(embedded.labels, embedded.patients, folds)
    seconds = {}
    for width in WIDTHS:
        started = time.process_time()
        score(task, cut(embedded.vectors["student"], width), ("linear", "knn"))
        seconds[width] = time.process_time() - started
        print(f"width {width}: probes {seconds[width]:.1f} CPU s", flush=True)
    ratio = (embedding + sum(seconds.values())) / (embedding + seconds[WIDTHS[-1]])
    print(f"{len(embedded)} tiles of {len(set(embedded.patients))} patients: embedding {embedding:.0f} CPU s")
    finish("widths", [ratio], GOAL, below=True, tiles=len(embedded), embedding=embedding, probes=seconds)


if __name__ == "__main__":
    main()
