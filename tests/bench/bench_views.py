"""What do more tissue and more training buy? Score against distinct views and against views presented, on real tissue.

Needs PATHRYOSHKA_REAL_DATA as `learns` does, and distils on its half a. The views go through the teachers once and lie
on disk with the answers; then students of the demo's size learn from the first 2,250, 9,000 or 36,000 of them, a core
each, and are scored on half b. The ratio is the mean score with the most views over that with the fewest, at the
longest training: what distinct views are worth where training stays the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from pathryoshka import config
from pathryoshka.distill.learner import learning_rate
from pathryoshka.distill.model import build_module
from pathryoshka.distill.step import train_step
from pathryoshka.distill.train import to_device
from pathryoshka.driver import student_grid
from pathryoshka.evaluate.compare import Contender, evaluate
from pathryoshka.results import encode_with
from pathryoshka.session import ray_session
from pathryoshka.teachers import standardize
from pathryoshka.teachers.encoder import load_encoder
from pathryoshka.teachers.standardize import Moments
from tests.bench import bare
from tests.bench.bench_learns import make_tiles, run_of
from tests.bench.common import finish

DISTINCT, PRESENTED = (2_250, 9_000, 36_000), (36_000, 72_000)


def run_on(work: Path, presented: int) -> config.Run:
    """Half a of `learns` with its tiles in a folder; nothing of it needs a server."""
    run = run_of("a", presented, [])
    here = {key: [uri.replace("s3://learns", str(work)) for uri in part.tiles] for key, part in
            (("data", run.data), ("evaluate", run.evaluate))}  # fmt: skip
    over = {"data": {"tiles": here["data"]}, "evaluate": {"tiles": here["evaluate"], "allow_seen": True}}
    return config.make_run(config.overlay(run.model_dump(), over))


def column(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def remember(work: Path, num_views: int) -> Path:
    """The first views of the plan and what the teachers say of them, a column a file."""
    folder = work / f"remembered_{num_views}"
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    run = run_on(work, num_views)
    grid = student_grid(run)
    teachers = {n: load_encoder(n, spec, grid, "cpu", run.storage) for n, spec in run.teachers.models.items()}
    files: dict[str, np.ndarray] = {}
    done = 0
    for batch in bare.batches(run, teachers, grid):
        take = min(len(batch["seq"]), num_views - done)
        for name, value in batch.items():
            if name not in files:
                shape = (num_views, *value.shape[1:])
                files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", value.dtype, shape)
            files[name][done : done + take] = value[:take]
        done += take
        if done % 3200 == 0 or done == num_views:
            print(f"{done} of {num_views} views through the teachers", flush=True)
        if done == num_views:
            break
    fitted = {}
    for name in teachers:
        for kind, how in (("summary", run.standardise.summary), ("tokens", run.standardise.tokens)):
            x = np.asarray(files[f"{name}.{kind}"][: run.standardise.num_views], np.float64)
            x = x.reshape(-1, x.shape[-1])
            moments = Moments(x.shape[1])
            moments.update(x)
            fitted[name, kind] = standardize.fit(moments, how, x[:4096].astype(np.float32))
    standardize.save(fitted, folder / "standardisers.safetensors")
    (folder / "done").touch()
    return folder


def presented_batches(folder: Path, distinct: int, micro_batch: int) -> Iterator[dict[str, np.ndarray]]:
    """Passes over the first `distinct` rows, each in an order of its own."""
    columns = {file.stem: column(folder, file.stem) for file in sorted(folder.glob("*.npy"))}
    rng = np.random.default_rng(0)
    rows: list[int] = []
    while True:
        while len(rows) < micro_batch:
            rows += rng.permutation(distinct).tolist()
        taken, rows = np.sort(rows[:micro_batch]), rows[micro_batch:]
        yield {name: values[taken] for name, values in columns.items()}


def learn(work: Path, folder: Path, distinct: int, presented: int) -> dict[str, float]:
    """Data set and width -> balanced accuracy of a student that saw `distinct` views, `presented` in all."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = run_on(work, presented)
    fitted = standardize.load(folder / "standardisers.safetensors")
    dims = {n: (len(fitted[n, "summary"].mean), len(fitted[n, "tokens"].mean)) for n in run.teachers.models}
    module = build_module(run, dims)
    engine = bare.PlainEngine(module, run)
    stream = presented_batches(folder, distinct, run.train.micro_batch)
    for step in range(presented // run.train.global_batch):
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(run, step * run.train.global_batch)
        micro = [to_device(next(stream), torch.device("cpu"), run) for _ in range(engine.accumulate)]
        train_step(engine, micro, fitted, run, step, divided_by=engine.accumulate)
    student = Contender("student", "student", encode_with(module.student, "cpu"), module.student.num_params, 0.0)
    scores = evaluate([student], run.student.widths, run.evaluate, run.storage, size=run.views.size).scores
    rows = [row for row in scores.rows if row.probe == "linear"]
    return {f"{row.dataset.rsplit('_', 1)[0]}/{row.width}": row.score for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("out/views"))
    args = parser.parse_args()
    source = os.environ.get("PATHRYOSHKA_REAL_DATA")
    if not source:
        sys.exit("bench views needs real tissue: set PATHRYOSHKA_REAL_DATA to a folder as bench_learns.py says")
    with ray_session(os.cpu_count() or 1):
        make_tiles(Path(source), args.work, f"{args.work}/tiles", run_on(args.work, 1).storage)
    folder = remember(args.work, max(DISTINCT))
    asked = [(d, p) for p in sorted(PRESENTED, reverse=True) for d in DISTINCT]
    table = {}
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for (distinct, presented), line in zip(
            asked, pool.map(learn, *zip(*[(args.work, folder, d, p) for d, p in asked], strict=True)), strict=True
        ):
            table[f"{distinct}/{presented}"] = line
            said = "  ".join(f"{k} {v:.3f}" for k, v in line.items())
            print(f"{distinct} distinct views, {presented} presented: {said}", flush=True)
    most, least = (statistics.mean(table[f"{d}/{PRESENTED[-1]}"].values()) for d in (DISTINCT[-1], DISTINCT[0]))
    finish("views", [most / least], 1.0, table=table)


if __name__ == "__main__":
    main()
