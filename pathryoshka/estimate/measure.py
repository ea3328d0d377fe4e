"""Rates of this machine for a run, in about a minute: what a core reads, what a device embeds and trains."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from pathryoshka import config
from pathryoshka.estimate.rates import EstimateError, Measured, rows_of, untrained

if TYPE_CHECKING:
    import torch


def measure(run: config.Run, say: Callable[[str], None], seconds: float = 8.0) -> Measured:
    """Runs each part alone for `seconds`, after it is warm: the production code on one core or device.

    Raises:
        EstimateError: the run has no tiles to read.
        EncoderError: a teacher that cannot be had.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)  # so that a "device" is one core: pools are as many
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"one core of {platform.processor() or 'this CPU'}"
    )
    read = views_per_second(reading(run), seconds)
    say(f"reading: {read:,.0f} views/s a core")
    teachers = {}
    for teacher, rate in teaching(run, device, seconds):
        teachers[teacher] = rate
        say(f"teacher {teacher}: {rate:,.1f} views/s on {name}")
    student = views_per_second(training(run, device), seconds)
    say(f"student: {student:,.1f} views/s of training on {name}")
    where = f"{os.cpu_count()} cores, {platform.machine()}"
    return Measured(name, where, datetime.date.today().isoformat(), read, teachers, student)


def views_per_second(work: Iterator[int], seconds: float) -> float:
    """`work` does a piece at each step and says how many views it was; the first is to get warm."""
    next(work)
    started, done = time.perf_counter(), 0
    for count in work:
        done += count
        if time.perf_counter() - started > seconds:
            break
    return done / (time.perf_counter() - started)


def reading(run: config.Run) -> Iterator[int]:
    """Segments of the run's own plan, through decoding and augmenting."""
    from pathryoshka.runs.inputs import make_stream, plan_of, student_grid, tiles_of
    from pathryoshka.tiles.ledger import Ledger
    from pathryoshka.tiles.segments import segment_batches

    if not run.data.tiles:
        raise EstimateError("what a core reads is measured on tiles; name some in data.tiles")
    tiles = tiles_of(run)
    source = make_stream(run, tiles, plan_of(run, tiles), student_grid(run), {}).source
    while True:
        for index in range(source.plan.num_segments):
            for made in segment_batches(source, source.plan.segment(index), Ledger()):
                yield len(made.views)


def teaching(run: config.Run, device: object, seconds: float) -> Iterator[tuple[str, float]]:
    """(teacher, views a second) of each, with random weights: they take as long as real ones."""
    import torch

    from pathryoshka.teachers.tune import random_encoder

    assert isinstance(device, torch.device)

    def work(name: str, teacher: config.Teacher) -> Iterator[int]:
        encoder = random_encoder(name, teacher, device)
        views = np.random.default_rng(0).integers(
            0, 256, (teacher.batch_size, run.views.size, run.views.size, 3), np.uint8
        )
        while True:
            encoder(views)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            yield len(views)

    for name, teacher in run.teachers.models.items():
        yield name, views_per_second(work(name, teacher), seconds)


def training(run: config.Run, device: object) -> Iterator[int]:
    """Forward and backward of student and heads and a step of AdamW, on one device, without DeepSpeed."""
    import torch

    from pathryoshka.distill.model import build_module
    from pathryoshka.runs.inputs import student_grid, tokens_kept

    assert isinstance(device, torch.device)
    dims = {name: (row.summary_dim, row.token_dim) for name, row in rows_of(run).items()}
    module = build_module(untrained(run), dims).to(device)
    optimizer = torch.optim.AdamW(module.parameters())
    size, batch, grid = run.views.size, run.train.micro_batch, student_grid(run)
    views = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    kept = tokens_kept(run, grid)
    places = torch.arange(kept, device=device).expand(batch, kept)
    narrow = run.student.widths[-1:] if run.loss.token_widths_per_step else run.student.widths
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=run.train.precision == "bf16")
    while True:
        with autocast:
            (preds,) = module(views, places, run.student.widths, narrow if kept else ())
            loss = torch.stack([tensor.float().square().mean() for tensor in leaves(preds)]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield batch


def leaves(tree: object) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
