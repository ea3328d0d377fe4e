"""Tiles a second of teachers with random weights, against what the device does in matrix products alone."""

from __future__ import annotations

import multiprocessing
import queue
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pathryoshka import config
from pathryoshka.teachers.check import peak_memory_bytes
from pathryoshka.teachers.tune import random_encoder


@dataclass(frozen=True)
class Rate:
    """Of one teacher: tiles a second, TFLOP a second by its row's count, and its peak memory."""

    teacher: str
    batch_size: int
    precision: str
    tiles_per_s: float
    tflops: float
    memory_gib: float

    def line(self, peak_tflops: float) -> str:
        what = f"{self.teacher:<12} batch {self.batch_size:>4} {self.precision}"
        share = f"{self.tflops / peak_tflops:.0%} of the {peak_tflops:.0f} of a large product"
        return (
            f"{what}: {self.tiles_per_s:8.1f} tiles/s, {self.tflops:.1f} TFLOP/s = {share}, {self.memory_gib:.1f} GiB"
        )


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_tflops(
    device: torch.device, n: int = 8192, dtype: torch.dtype = torch.bfloat16, seconds: float = 2.0
) -> float:
    """The quickest product of two n x n matrices within about `seconds`, two operations for each multiply-add."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        for _ in range(3):
            a @ b
        wait_for(device)
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        wait_for(device)
        best = min(best, (time.perf_counter() - started) / 10)
    return 2 * n**3 / best / 1e12


def rate_of(
    name: str, cfg: config.Teacher, device: torch.device, seconds: float, size: int = 224, barrier: Any = None
) -> Rate:
    """Runs one teacher for `seconds` once it is warm; with a barrier, while all who wait there do the same."""
    encoder = random_encoder(name, cfg, device)
    views = np.random.default_rng(0).integers(0, 256, (cfg.batch_size, size, size, 3), np.uint8)
    for _ in range(3):
        encoder(views)
    wait_for(device)
    if barrier is not None:
        barrier.wait(timeout=600)
    started, num_tiles = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        encoder(views)
        wait_for(device)
        num_tiles += len(views)
    per_s = num_tiles / (time.perf_counter() - started)
    memory = peak_memory_bytes(device) / 2**30
    gflop = encoder.row.gflop
    return Rate(name, cfg.batch_size, str(encoder.fingerprint["precision"]), per_s, per_s * gflop / 1e3, memory)


def rates_side_by_side(teachers: dict[str, config.Teacher], device: str, seconds: float, size: int = 224) -> list[Rate]:
    """Several teachers on one device at once, each in a process of its own, as replicas with a share of a GPU are."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(len(teachers)), context.Queue()
    jobs = [
        context.Process(target=one_of_several, args=(name, cfg, device, seconds, size, barrier, answers), daemon=True)
        for name, cfg in teachers.items()
    ]
    for job in jobs:
        job.start()
    try:
        rates = {rate.teacher: rate for rate in (take(answers, jobs) for _ in jobs)}
    finally:
        for job in jobs:
            job.join(timeout=30)
            job.kill()
    return [rates[name] for name in teachers]


def take(answers: Any, jobs: list[Any]) -> Rate:
    while True:
        try:
            found = answers.get(timeout=5)
        except queue.Empty:
            dead = [job.exitcode for job in jobs if job.exitcode not in (None, 0)]
            assert not dead, f"a teacher's process ended with {dead}"
            continue
        assert isinstance(found, Rate), found
        return found


def one_of_several(
    name: str, cfg: config.Teacher, device: str, seconds: float, size: int, barrier: Any, answers: Any
) -> None:
    try:
        answers.put(rate_of(name, cfg, torch.device(device), seconds, size, barrier))
    except BaseException as error:
        barrier.abort()
        answers.put(f"{name}: {type(error).__name__}: {error}")
