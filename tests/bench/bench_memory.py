"""Ten epochs: does any process grow, does the bound in flight hold, does a data set ten times larger need more?"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from pathryoshka import config
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.distill.stream import bytes_in_flight
from pathryoshka.runs.driver import Ready, fit, prepared
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.phantom import write_phantom
from tests.bench.common import finish
from tests.bench.sampling import Sampler, slope

GOAL = 1.1
FLAT_MIB = 2.0
"""Growth of a role an epoch that counts as none: 2 MiB of processes of 300-1000."""
OURS = {"python", "RayTrainWorker", "Replica", "FanOut", "MapBatches", "SplitCoordinator", "TrainController"}
"""Roles that must stay flat: the driver and what it started. Ray's own services are printed beside them."""
TILES, EPOCHS, SETTLED = 1920, 10, 3


def used(ready: Ready, server: S3Server) -> dict[str, object]:
    """Memory over a run of TILES x EPOCHS views: its peak, growth by role, the object store's peak."""
    run = ready.job.run
    with Sampler([server.pid]) as sampler:
        fit(ready, print)
    lines = read_metrics(ready.job.run_uri, run.storage)
    begin, end = lines[0]["time"], lines[-1]["time"]
    rows = [i for i, t in enumerate(sampler.times) if begin <= t <= end]
    when = [sampler.times[i] for i in rows]
    epochs = np.interp(when, [line["time"] for line in lines], [line["views"] / TILES for line in lines])
    late = [k for k, epoch in enumerate(epochs) if epoch >= SETTLED]
    grows = {
        role: slope([epochs[k] for k in late], [sampler.memory[rows[k]].get(role, 0.0) for k in late])
        for role in sampler.memory[rows[-1]]
        if all(role in sampler.memory[rows[k]] for k in late)
    }
    bound = sum(bytes_in_flight(ready.job.stream, max(run.worker_counts), run.data.prefetch_batches).values())
    return {
        "peak_mib": max(sum(sampler.memory[i].values()) + sampler.store[i] / 2**20 for i in rows),
        "grows_mib_an_epoch": {role: round(value, 2) for role, value in sorted(grows.items())},
        "store_mib": max(sampler.store[i] for i in rows) / 2**20,
        "bound_mib": bound / 2**20,
        "tiles_per_s": (lines[-1]["views"] - lines[0]["views"]) / (end - begin),
    }


def run_of(times: int) -> config.Run:
    mock = {"model": "mock", "device": "mock", "batch_size": 32, "mock_seconds": 0.004}
    tree = {
        "name": f"memory-{times}",
        "data": {"tiles": [f"s3://bench/tiles-{times}"]},
        "storage": {"root": "s3://bench/runs"},
        "plan": {"num_views": TILES * EPOCHS, "window": 4},
        "views": {"size": 128},
        "teachers": {"models": {"mock0": mock, "mock1": mock}},
        "train": {"global_batch": 64, "micro_batch": 32, "checkpoint_every": 50, "log_every": 5},
        "student": {"model_args": {"patch_size": 16, "embed_dim": 48, "depth": 2}},
    }
    return config.make_run(config.overlay(config.load_run("debug").model_dump(), tree))


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as name, S3Server(Path(name) / "s3", bucket="bench") as server:
        os.environ.update(server.env)
        for times in (1, 10):
            run = run_of(times)
            write_phantom(
                run.data.tiles[0], run.storage, num_tiles=TILES * times, num_patients=10, num_sites=2, size=128
            )
            with prepared(run, (), print) as ready:
                found[times] = used(ready, server)
            print(f"{TILES * times} tiles: {found[times]}", flush=True)
    one, ten = found[1], found[10]
    worst = max((value, role) for role, value in one["grows_mib_an_epoch"].items() if role in OURS)  # type: ignore[attr-defined]
    over = max(facts["store_mib"] / facts["bound_mib"] for facts in found.values())  # type: ignore[operator]
    print(f"fastest growth: {worst[1]} by {worst[0]:.2f} MiB an epoch (goal <= {FLAT_MIB})")
    print(f"object store: {over:.2f} of the printed bound at its peak (goal <= 1)")
    ratio = ten["peak_mib"] / one["peak_mib"]  # type: ignore[operator]
    print(f"a data set ten times larger: {ratio:.2f} of the memory (goal <= {GOAL})")
    finish("memory", [max(ratio / GOAL, worst[0] / FLAT_MIB, over)], 1.0, below=True, one=one, ten=ten)


if __name__ == "__main__":
    main()
