"""The simulation against local Ray runs with sleeping teachers; then 16, 64, 512 GPUs and a billion views.

Three constants of this machine are calibrated in runs of their own, none of which is among the settings that count:
what passes between two blocks of a replica, how much later Ray Data gives a block's place to the next, and how long a
killed replica stays away.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from dataclasses import dataclass, replace

import ray

from pathryoshka import config
from pathryoshka.distill.stream import make_dataset
from pathryoshka.estimate.reckon import Ask, estimate, fleet
from pathryoshka.estimate.simulate import Line, Pool, simulate
from pathryoshka.prices import read_prices
from pathryoshka.recipes import recipe_by_name
from pathryoshka.runs.inputs import make_stream, plan_of, tiles_of
from pathryoshka.session import ray_session
from pathryoshka.teachers.pool import TeacherPool
from pathryoshka.tiles.ledger import Ledger
from pathryoshka.tiles.phantom import write_phantom
from tests.bench.common import finish

WITHIN, SECONDS = 0.15, 14.0


@dataclass(frozen=True)
class Setting:
    """Teachers: name -> (replicas, seconds a view). student: seconds a block. kill: one replica, in the middle."""

    what: str
    teachers: dict[str, tuple[int, float]]
    micro: int = 8
    student: float = 0.0
    in_flight: int = 8
    kill: bool = False


CALIBRATION = Setting("to calibrate", {"a": (1, 0.03)})
NARROW = Setting("to calibrate two places", {"a": (2, 0.03)}, in_flight=2)
"""Not one: for one task alone Ray Data waits, at several it looks ten times a second."""
SETTINGS = (
    Setting("one replica", {"a": (1, 0.06)}),
    Setting("two replicas", {"a": (2, 0.06)}),
    Setting("four replicas", {"a": (4, 0.12)}),
    Setting("blocks of 16", {"a": (2, 0.06)}, micro=16),
    Setting("two teachers alike", {"a": (2, 0.06), "b": (2, 0.06)}),
    Setting("two teachers, one slow", {"a": (2, 0.12), "b": (1, 0.03)}),
    Setting("the student is slow", {"a": (4, 0.03)}, student=0.4),
    Setting("two blocks in flight", {"a": (4, 0.12)}, in_flight=2),
    Setting("a replica killed", {"a": (2, 0.06)}, kill=True),
)


def run_of(tiles: str, one: Setting) -> config.Run:
    models = {
        name: {"model": "mock", "device": "mock", "batch_size": one.micro, "replicas": n, "mock_seconds": s}
        for name, (n, s) in one.teachers.items()
    }
    tree = recipe_by_name("debug").model_dump() | {"data": {"tiles": [tiles], "read_tasks": 2}}
    over = {
        "name": one.what.replace(" ", "-").replace(",", ""), "plan": {"num_views": 10**6},
        "teachers": {"models": models, "max_in_flight": one.in_flight},
        "train": {"micro_batch": one.micro, "global_batch": one.micro},
    }  # fmt: skip
    return config.make_run(tree | over)


def measured(run: config.Run, one: Setting) -> tuple[float, float]:
    """(views a second over SECONDS in steady state, seconds that a reader took for a block)."""
    tiles, grid = tiles_of(run), (4, 4)
    stream = make_stream(run, tiles, plan_of(run, tiles), grid, {name: (64, 48) for name in one.teachers})
    reading: list[float] = []
    with TeacherPool(run.name, run.teachers, grid, run.views.size, run.storage) as pool:
        pool.wait_ready()
        warm, count, started = 6 * max(n for n, _ in one.teachers.values()), 0, 0.0
        for i, block in enumerate(make_dataset(stream, Ledger()).iter_batches(batch_size=1, prefetch_batches=2)):
            if i == warm:
                started = time.perf_counter()
                if one.kill:
                    threading.Timer(SECONDS / 2, lambda: ray.kill(pool.members[0].actor, no_restart=False)).start()
            if one.student:
                time.sleep(one.student)
            if i > warm:
                count += 1
                reading.append(float(block["seconds.read"].ravel()[0]))
                if time.perf_counter() - started > SECONDS:
                    break
        return one.micro * count / (time.perf_counter() - started), sum(reading) / len(reading)


def predicted(one: Setting, read_s: float, restart_s: float, handover_s: float, release_s: float) -> float:
    drill = (SECONDS / 2,) if one.kill else ()
    teachers = {
        name: Pool(n, s * one.micro, restart_s=restart_s, killed_at=drill if i == 0 else ())
        for i, (name, (n, s)) in enumerate(one.teachers.items())
    }
    read, student = Pool(2, max(1e-4, read_s)), Pool(1, max(1e-4, one.student))
    line = Line(
        one.micro, read, teachers, student, in_flight=one.in_flight, handover_s=handover_s, release_s=release_s
    )  # fmt: skip
    # as many views as take about as long as was measured
    whole = replace(line, teachers={name: replace(pool, killed_at=()) for name, pool in teachers.items()})
    return simulate(line, int(SECONDS * simulate(whole, 200 * one.micro).views_per_s)).views_per_s


def beyond_the_teacher(run: config.Run, one: Setting) -> float:
    """Seconds that a block takes beyond its only teacher's time."""
    replicas, seconds = one.teachers["a"]
    rate, _ = measured(run, one)
    return max(0.0, one.micro * min(replicas, one.in_flight) / rate - one.micro * seconds)


def restart_seconds(run: config.Run) -> float:
    """From the kill of the only replica until it answers again."""
    with TeacherPool(run.name, run.teachers, (4, 4), run.views.size, run.storage) as pool:
        pool.wait_ready()
        actor, pid = pool.members[0].actor, pool.facts["a"].pid
        ray.kill(actor, no_restart=False)
        started = time.perf_counter()
        while True:
            try:
                if ray.get(actor.ready.remote(), timeout=60).pid != pid:
                    return time.perf_counter() - started
            except ray.exceptions.RayError:
                time.sleep(0.05)


def at_scale(release_s: float) -> list[dict[str, object]]:
    """A billion views of paper_b, on H100 by capacity block for the student and L40S for teachers."""
    run = recipe_by_name("paper_b")
    run = config.make_run(config.overlay(run.model_dump(), {"plan": {"num_views": 10**9}}))
    prices, rows = read_prices(), []
    for teachers, students in ((8, 1), (56, 1), (448, 8)):
        ask = Ask(run, prices, fleet(prices, f"g6e.xlarge={teachers}", "spot"), fleet(prices, f"p5.48xlarge-block={students}", "on_demand"))  # fmt: skip  # noqa: E501
        found = estimate(ask)
        block = run.train.micro_batch
        hour = 3600.0
        line = Line(
            block,
            Pool(max(1, 8 * students), block * 8 * students / found.stages["read"].mid),
            {"all": Pool(teachers, block * teachers / found.stages["teachers"].mid, 0.1, mtbf_s=20 * hour, restart_s=600)},  # noqa: E501
            Pool(8 * students, block * 8 * students / found.stages["student"].mid, mtbf_s=5000 * hour),
            checkpoint_blocks=run.train.checkpoint_every * run.train.global_batch // block,
            recover_s=300,
            release_s=release_s,
        )  # fmt: skip
        views = int(min(10**9, 6 * hour * found.stages[found.bottleneck].mid))
        seen = simulate(line, views, seed=1)
        hours = 10**9 / seen.views_per_s / 3600
        rows.append({
            "gpus": teachers + 8 * students, "bottleneck": seen.bottleneck, "views_per_s": round(seen.views_per_s),
            "of_ideal": round(seen.views_per_s / found.stages[found.bottleneck].mid, 3), "hours": round(hours, 1),
            "usd": round(hours * found.usd_per_hour), "failures": seen.failures, "repeated": round(seen.repeated, 5),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ratios, table = [], []
    with tempfile.TemporaryDirectory() as name, ray_session(16, say=lambda _: None):
        write_phantom(f"{name}/tiles", config.Storage(), num_tiles=256, num_patients=4, num_sites=1, size=32)
        restart_s = restart_seconds(run_of(f"{name}/tiles", CALIBRATION))
        handover_s = beyond_the_teacher(run_of(f"{name}/tiles", CALIBRATION), CALIBRATION)
        # the replica hands over while the place is being released
        release_s = beyond_the_teacher(run_of(f"{name}/tiles", NARROW), NARROW)
        print(f"a replica is back after {restart_s:.1f} s; {handover_s * 1e3:.0f} ms between two blocks of a replica, "
              f"{release_s * 1e3:.0f} ms between two of a place", flush=True)  # fmt: skip
        for one in SETTINGS:
            real, read_s = measured(run_of(f"{name}/tiles", one), one)
            said = predicted(one, read_s, restart_s, handover_s, release_s)
            table.append({"setting": one.what, "measured": round(real, 2), "predicted": round(said, 2)})
            ratios.append(abs(said / real - 1))
            print(f"{one.what}: measured {real:.1f} views/s, predicted {said:.1f} ({said / real - 1:+.1%})", flush=True)
    figures = {"settings": table, "restart_s": restart_s, "handover_s": handover_s, "release_s": release_s}
    finish("simulation", [max(ratios)], WITHIN, below=True, **figures, at_scale=at_scale(release_s))


if __name__ == "__main__":
    main()
