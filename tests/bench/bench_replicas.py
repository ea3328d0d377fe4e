"""Throughput of sleeping teachers with 1, 2, 4 and 8 replicas on a local cluster of two nodes, against linear."""

from __future__ import annotations

import os
import statistics
import tempfile
import time

import ray
from ray.cluster_utils import Cluster

from pathryoshka import config
from pathryoshka.distill.stream import make_dataset
from pathryoshka.recipes import recipe_by_name
from pathryoshka.runs.devices import logical_cpus
from pathryoshka.runs.inputs import make_stream, plan_of, tiles_of
from pathryoshka.teachers.pool import TeacherPool
from pathryoshka.tiles.ledger import Ledger
from pathryoshka.tiles.phantom import write_phantom
from tests.bench.common import cpu_seconds, finish

GOAL, COUNTS, REPEATS = 0.9, (1, 2, 4, 8), 3
SECONDS_A_VIEW, MICRO = 0.12, 8


def rate(run: config.Run, replicas: int) -> tuple[float, float]:
    """(views a second in steady state, share of the cores in use) with `replicas` of one sleeping teacher."""
    tiles, grid = tiles_of(run), (4, 4)
    stream = make_stream(run, tiles, plan_of(run, tiles), grid, {"sleeper": (64, 48)})
    with TeacherPool(run.name, run.teachers, grid, run.views.size, run.storage) as pool:
        pool.wait_ready()
        times = []
        for i, _ in enumerate(make_dataset(stream, Ledger()).iter_batches(batch_size=1, prefetch_batches=2)):
            times.append((time.perf_counter(), cpu_seconds()))
            if i == 12 * replicas + 12:
                break
    warm = 3 * replicas
    (a, used_a), (b, used_b) = times[warm], times[-1]
    return MICRO * (len(times) - 1 - warm) / (b - a), (used_b - used_a) / (b - a) / (os.cpu_count() or 1)


def main() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 16, "include_dashboard": False, "temp_dir": f"/tmp/pry-{os.getpid()}"},
        )
        cluster.add_node(num_cpus=16)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        tree = recipe_by_name("debug").model_dump() | {"data": {"tiles": [f"{name}/tiles"]}}
        tree = config.overlay(tree, {"plan": {"num_views": 10**6}, "data": {"read_tasks": 3}})
        write_phantom(f"{name}/tiles", config.Storage(), num_tiles=256, num_patients=4, num_sites=1, size=32)
        teacher = {"model": "mock", "device": "mock", "batch_size": MICRO, "mock_seconds": SECONDS_A_VIEW}
        ratios: dict[int, list[float]] = {n: [] for n in COUNTS}
        for _ in range(REPEATS):
            base = 0.0
            for n in COUNTS:
                pools = {"models": {"sleeper": teacher | {"replicas": n}}, "max_in_flight": 2 * n + 2}
                run = config.make_run(
                    tree
                    | {"name": f"replicas{n}", "teachers": pools, "train": {"micro_batch": MICRO, "global_batch": 16}}
                )
                assert logical_cpus(run) <= 32
                views, busy = rate(run, n)
                base = base or views
                ratios[n].append(views / base / n)
                print(
                    f"{n} replicas: {views:.1f} views/s, {ratios[n][-1]:.2f} of linear, cores {busy:.0%} busy",
                    flush=True,
                )
        ray.shutdown()
        cluster.shutdown()
    worst = min(COUNTS[1:], key=lambda n: statistics.median(ratios[n]))
    finish(
        "replicas", ratios[worst], GOAL, worst_at=worst, by_count={n: statistics.median(r) for n, r in ratios.items()}
    )


if __name__ == "__main__":
    main()
