"""A benchmark as a row of facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pathryoshka.benchmarks.layouts import Layout

Task = Literal["classification", "regression", "pairs", "robustness"]
"""`regression`: numbers measured at each tile; `pairs`: the same tissue on several slides; `robustness`: classes in
several hospitals."""


@dataclass(frozen=True)
class Benchmark:
    """What is known of a public data set. None: not verified, so nothing is checked against it.

    Attributes:
        classes: in their order. counts: images of each split, `all` where it has none of its own.
        unit: what no two parts of a fold may share. mpp: micrometres a pixel as published; size: pixels.
        layout: how it is read.
        form: whether a form or an account stands before the download. urls: files that can be fetched without.
        get: how to get it and where what must lie, in words.
    """

    name: str
    title: str
    task: Task
    classes: tuple[str, ...]
    counts: Mapping[str, int] | None
    unit: str
    size: str
    mpp: float | None
    metric: str
    licence: str
    source: str
    citation: str
    get: str
    layout: Layout
    form: bool = False
    urls: tuple[str, ...] = ()
    remarks: str = ""
