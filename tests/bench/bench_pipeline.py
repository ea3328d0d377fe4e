"""Full pipeline against a bare single-process loop, CPU seconds a view and wall time, interleaved."""

from __future__ import annotations

import argparse
import bisect
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.driver import Ready, fit, prepared
from pathryoshka.metrics import read_metrics
from pathryoshka.recipes import recipe_by_name
from pathryoshka.s3server import S3Server
from pathryoshka.tiles.phantom import write_phantom
from tests.bench.common import finish

GOAL, STEPS, WARM = 0.85, 40, 10


class Sampler:
    """CPU seconds of this process tree over time by what each process does, without the S3 server and the bare loop."""

    def __init__(self, without: list[int]):
        self.without, self.times, self.used = set(without), [], []  # type: ignore[var-annotated]
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self) -> None:
        roles: dict[int, str] = {}
        total: dict[int, np.ndarray] = {}
        while True:
            time.sleep(0.5)
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    if process.pid not in self.without:
                        roles[process.pid] = role_of(process)
                        times = process.cpu_times()
                        total[process.pid] = np.array([times.user, times.system])
            by_role: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
            for pid, seconds in total.items():  # of processes that ended, what they had used
                by_role[roles[pid]] += seconds
            self.used.append(by_role)
            self.times.append(time.time())

    def between(self, start: float, end: float) -> dict[str, np.ndarray]:
        """User and system seconds by role, from the samples nearest to the moments, scaled to the time between."""
        i, j = (min(bisect.bisect(self.times, t), len(self.times) - 1) for t in (start, end))
        scale = (end - start) / (self.times[j] - self.times[i])
        return {role: scale * (self.used[j][role] - self.used[i][role]) for role in self.used[j]}


def role_of(process: psutil.Process) -> str:
    """`Replica`, `TrainWorker`, ... of Ray's workers, whose title is `ray::Class.method`; else the program's name."""
    title = (process.cmdline() or [process.name()])[0]
    match = re.match(r"ray::(?:_?)(\w+)(?:\((\w+))?", title)
    return (match[2] or match[1]) if match else Path(title).name


def pipeline(ready: Ready, attempt: int, sampler: Sampler) -> dict[str, float]:
    """STEPS steps of a fresh attempt; seconds a view from step WARM on, start-up apart."""
    job = replace(ready.job, token=ready.job.token + attempt, max_steps=STEPS)
    checkpoint.record_attempt(job.run_uri, job.token, job.run.storage)
    started = time.time()
    fit(replace(ready, job=job), lambda _: None)
    time.sleep(1.5)
    lines = read_metrics(job.run_uri, job.run.storage)[-STEPS // job.run.train.log_every :]
    first, last = lines[WARM // job.run.train.log_every - 1], lines[-1]
    views = (last["step"] - first["step"]) * job.run.train.global_batch
    used = sampler.between(first["time"], last["time"])
    for role, seconds in sorted(used.items(), key=lambda item: -item[1].sum())[:8]:
        if seconds.sum() > 1e-4 * views:
            user, system = 1000 * seconds / views
            print(f"  {role}: {user + system:.1f} CPU ms a view, {system:.1f} of it in the kernel", flush=True)
    return {
        "cpu": sum(seconds.sum() for seconds in used.values()) / views,
        "wall": (last["time"] - first["time"]) / views,
        "start": lines[0]["time"] - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], help="as pathryoshka's own --set")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, S3Server(Path(name) / "s3", bucket="bench") as server:
        os.environ.update(server.env)
        run = recipe_by_name("demo").model_dump()
        for text in args.set:
            run = config.overlay(run, config.parse_setting(text))
        over = {
            "name": "pipeline",
            "data": {"tiles": ["s3://bench/tiles"]},
            "storage": {"root": "s3://bench/runs"},
            "plan": {"num_views": 10**6},
            "train": {"checkpoint_every": 10**6, "log_every": 5},
        }
        full = config.make_run(config.overlay(run, over))
        local = config.make_run(config.overlay(run, over | {"data": {"tiles": [f"{name}/tiles"]}}))
        for where in (full, local):
            write_phantom(where.data.tiles[0], where.storage, num_tiles=2000, num_patients=20, num_sites=2, size=224)
        with prepared(full, (), print) as ready:
            fitted = Path(name) / "standardisers.safetensors"
            fitted.write_bytes(storage.read_bytes(storage.join(ready.job.run_uri, fitted.name), full.storage))
            file = Path(name) / "run.json"
            file.write_text(json.dumps(local.model_dump(mode="json")))
            bare = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.bare", str(file), str(fitted)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert bare.stdin and bare.stdout

            def ask(threads: int, steps: int) -> dict[str, float]:
                assert bare.stdin and bare.stdout
                bare.stdin.write(f"{threads} {steps}\n")
                bare.stdin.flush()
                answer = json.loads(bare.stdout.readline())
                return {"cpu": answer["cpu"] / answer["views"], "wall": answer["wall"] / answer["views"]}

            ask(1, 5)
            sampler = Sampler([server.pid, bare.pid])
            cores = os.cpu_count() or 1
            cpu, wall = [], []
            for repeat in range(1, args.repeats + 1):
                one, many = ask(1, 15), ask(cores, 15)
                whole = pipeline(ready, repeat, sampler)
                cpu.append(one["cpu"] / whole["cpu"])
                wall.append(many["wall"] / whole["wall"])
                print(
                    f"repeat {repeat}: bare {1000 * one['cpu']:.1f} CPU ms a view (one thread), "
                    f"{1000 * many['wall']:.1f} ms wall ({cores} threads); pipeline {1000 * whole['cpu']:.1f} CPU ms, "
                    f"{1000 * whole['wall']:.1f} ms wall, after {whole['start']:.0f} s of start-up; ratios "
                    f"{cpu[-1]:.2f} and {wall[-1]:.2f}",
                    flush=True,
                )
            bare.kill()
        both = (statistics.median(cpu), statistics.median(wall))
    print(f"CPU ratio {both[0]:.3f}, wall ratio {both[1]:.3f}; the smaller one counts")
    finish("pipeline", cpu if both[0] <= both[1] else wall, GOAL, cpu=both[0], wall=both[1])


if __name__ == "__main__":
    main()
