"""Tiles a second of each stage: measured where somebody did, else from operations and what a device can do.

A transformer's forward pass at full batches reaches a share of the peak that its maker states. That share is the
largest uncertainty of an estimate that was not measured, and so a range: `SHARE`. Training a view costs three forward
passes of the student, for its two gradients cost as much each (Kaplan et al. 2020, section 2.1).
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pathryoshka import config

if TYPE_CHECKING:
    from pathryoshka.teachers.row import Row

SHARE = (0.25, 0.35, 0.50)
"""Of a device's peak, low, middle, high: assumed. `estimate --measure` on a machine replaces it."""
READ_PER_CPU = (180.0, 375.0, 450.0)
"""Views of 224 px that a core reads, decodes and augments a second: the middle was measured on a core of an AMD EPYC
(`estimate --measure`, November 2026); half of it and a fifth more are assumed for other processors and tiles."""
TRAINING = 3


class EstimateError(ValueError):
    """What cannot be reckoned, in one sentence that says what to give."""


@dataclass(frozen=True)
class Range:
    """Low, middle and high of one quantity."""

    low: float
    mid: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.mid * factor, self.high * factor)

    def under(self, total: float) -> Range:
        """`total` divided by it: what took a high rate takes a low time."""
        return Range(total / self.high, total / self.mid, total / self.low)


def exactly(value: float, within: float = 0.1) -> Range:
    """A measured value, with the spread that repeats on a shared machine show."""
    return Range(value * (1 - within), value, value * (1 + within))


@dataclass(frozen=True)
class Work:
    """What a view asks of each stage.

    Attributes:
        teacher_gflop: by teacher that is run, forward, of one view.
        student_gflop: forward of student and heads, of one view.
        moved_bytes: of features that go from the teachers' machines to the student's, a view.
    """

    teacher_gflop: dict[str, float]
    student_gflop: float
    moved_bytes: float


def work_of(run: config.Run, live: tuple[str, ...] | None = None) -> Work:
    """From the rows of the zoo and the student's own layers; nothing is downloaded and no weight is made.

    Args:
        live: teachers that are run; none = all of the run. The others' features come from a store.

    Raises:
        EstimateError: a teacher whose operations no row states.
    """
    rows = rows_of(run)
    lacking = [f"{name} ({rows[name].name})" for name in rows if not rows[name].gflop and not is_mock(run, name)]
    if lacking:
        raise EstimateError(f"nobody has counted the operations of {', '.join(lacking)}; measure: estimate --measure")
    asked = tuple(rows) if live is None else live
    gflop, kept = student_facts(run)
    moved = sum(2 * (rows[name].summary_dim + kept * rows[name].token_dim) for name in asked)
    return Work({name: rows[name].gflop for name in asked}, gflop, float(moved))


def is_mock(run: config.Run, name: str) -> bool:
    return run.teachers.models[name].device == "mock"


def rows_of(run: config.Run) -> dict[str, Row]:
    from pathryoshka.teachers.zoo import row_by_name

    return {name: row_by_name(teacher.model) for name, teacher in run.teachers.models.items()}


def student_facts(run: config.Run) -> tuple[float, int]:
    """(GFLOP of one view through student and heads, forward; tokens of a view that teachers' features are kept of)."""
    return counted(run.model_dump_json(include={"student", "views", "teachers", "loss"}))


def untrained(run: config.Run) -> config.Run:
    """The run with a student whose start needs no download: counted and timed it is as any other."""
    return run.model_copy(update={"student": run.student.model_copy(update={"start": "random"})})


@functools.cache
def counted(text: str) -> tuple[float, int]:
    """Operator by operator, on tensors without memory."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pathryoshka.distill.model import build_module
    from pathryoshka.runs.inputs import tokens_kept

    run = config.make_run(json.loads(text))
    widths = run.student.widths
    token_widths = widths[-1:] if run.loss.token_widths_per_step else widths
    dims = {name: (row.summary_dim, row.token_dim) for name, row in rows_of(run).items()}
    with torch.device("meta"):
        module = build_module(untrained(run), dims)
        kept = tokens_kept(run, module.student.grid)
        views = torch.zeros(1, run.views.size, run.views.size, 3, dtype=torch.uint8)
        places = torch.zeros(1, kept, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(views, places, widths, token_widths if kept else ())
    return counter.get_total_flops() / 1e9, kept


@dataclass(frozen=True)
class Measured:
    """Rates of one machine, as `estimate --measure` writes them: a core's views, a device's views of each model.

    Attributes:
        read: views a second and core. teachers, student: views a second and device, the student training.
        device, date, machine: of what was measured.
    """

    device: str
    machine: str
    date: str
    read: float
    teachers: dict[str, float]
    student: float

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_measured(path: str | Path) -> Measured:
    """Raises EstimateError where it is not what `--measure` wrote."""
    try:
        return Measured(**json.loads(Path(path).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise EstimateError(f"{path} is not what `pathryoshka estimate --measure` wrote: {error}") from error


def device_rate(gflop: float, tflops: float, shares: tuple[float, float, float] = SHARE) -> Range:
    """Views a second of a device with a peak of `tflops`."""
    return Range(*(share * tflops * 1e3 / gflop for share in shares))
