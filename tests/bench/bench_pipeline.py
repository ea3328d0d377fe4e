"""Full pipeline against a bare single-process loop on the same cores, CPU seconds a view and wall time, interleaved.

Both use all cores, because work costs more CPU seconds where its neighbour core is busy, too. The bare loop's CPU
seconds with one thread on an otherwise idle machine are printed beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.recipes import recipe_by_name
from pathryoshka.runs.driver import Ready, fit, prepared
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.phantom import write_phantom
from tests.bench.common import finish
from tests.bench.sampling import Sampler

GOAL, STEPS, WARM = 0.85, 40, 10


def pipeline(ready: Ready, attempt: int, sampler: Sampler) -> dict[str, float]:
    """STEPS steps of a fresh attempt; seconds a view from step WARM on, start-up apart."""
    _, ledger = checkpoint.current_ledger(ready.job.run_uri, ready.job.run.storage)
    until = ledger.count + STEPS * ready.job.run.train.global_batch
    job = replace(ready.job, token=ready.job.token + attempt, until=until)
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
            write_phantom(where.data.tiles[0], where.storage, num_tiles=800, num_patients=20, num_sites=2, size=224)
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
            cores = os.cpu_count() or 1
            cpu, wall, alone = [], [], []
            with Sampler([server.pid, bare.pid]) as sampler:
                for repeat in range(1, args.repeats + 1):
                    one, many = ask(1, 15), ask(cores, 15)
                    whole = pipeline(ready, repeat, sampler)
                    cpu.append(many["cpu"] / whole["cpu"])
                    wall.append(many["wall"] / whole["wall"])
                    alone.append(one["cpu"] / whole["cpu"])
                    print(
                        f"repeat {repeat}: bare {1000 * many['cpu']:.1f} CPU ms a view, {1000 * many['wall']:.1f} ms "
                        f"wall with {cores} threads, {1000 * one['cpu']:.1f} CPU ms with one; pipeline "
                        f"{1000 * whole['cpu']:.1f} CPU ms, {1000 * whole['wall']:.1f} ms wall, after "
                        f"{whole['start']:.0f} s of start-up; ratios {cpu[-1]:.2f} CPU, {wall[-1]:.2f} wall, "
                        f"{alone[-1]:.2f} CPU against one thread",
                        flush=True,
                    )
            bare.kill()
        both = (statistics.median(cpu), statistics.median(wall))
    print(f"CPU ratio {both[0]:.3f}, wall ratio {both[1]:.3f}; the smaller one counts")
    facts = {"cpu": both[0], "wall": both[1], "cpu_one_thread": statistics.median(alone), "settings": args.set}
    finish("pipeline", cpu if both[0] <= both[1] else wall, GOAL, **facts)


if __name__ == "__main__":
    main()
