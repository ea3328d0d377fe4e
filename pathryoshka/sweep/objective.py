"""What a trial is judged by, measured inside it once its plan is done: on unseen tiles, by probe, and what it costs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from pathryoshka import config, storage
from pathryoshka.distill.losses import distill_terms, teacher_weights
from pathryoshka.distill.measure import Metrics, add, reduce_metrics
from pathryoshka.distill.measure import measure as measured
from pathryoshka.distill.metrics import mean_unexplained, read_metrics
from pathryoshka.distill.step import standardise
from pathryoshka.distill.stream import make_dataset, micro_batch_of
from pathryoshka.evaluate.compare import evaluate
from pathryoshka.evaluate.contenders import Contender
from pathryoshka.runs import results
from pathryoshka.runs.driver import Ready, Result
from pathryoshka.runs.inputs import make_stream, plan_of, student_grid, tiles_of
from pathryoshka.sweep.space import Sweep, Validation
from pathryoshka.teachers import standardize
from pathryoshka.tiles.ledger import Ledger

Values = dict[str, float]
LATE = 0.05
"""Share of a plan over which a student's last state is measured: a line may be of very few views."""


def measure(sweep: Sweep, base: config.Run, ready: Ready, result: Result) -> Values:
    """The metrics of `space.METRICS` (but `seconds`) that an objective asks for, and all that cost nothing.

    Returns:
        metric -> value; `validation/<width>` and `probe/<width>` beside the one at full width.
    """
    run = ready.job.run
    asked = {objective.metric.partition("/")[0] for objective in sweep.objective}
    values = {"unexplained": late_share(read_metrics(result.run_uri, run.storage), run.plan.num_views)}
    values["full_width"] = float(run.student.widths[-1])
    student = results.fresh_module(run, run.train.seed).student
    values |= {"num_params": float(student.num_params), "gflops": student.gflops()}
    if "validation" in asked or sweep.validation.tiles:
        values |= validation(sweep.validation, ready)
    if "probe" in asked:
        on_gpu = run.train.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        task = ray.remote(probe).options(num_cpus=0, num_gpus=1 if on_gpu else 0, max_retries=1)
        scores: Values = ray.get(task.remote(run, base))
        values |= scores
    return values


def late_share(lines: Sequence[dict[str, Any]], num_views: int) -> float:
    """Fraction unexplained, mean of the teachers, over the last log lines that make up `LATE` of the plan, by views."""
    starts = [0.0, *(line["views"] for line in lines[:-1])]
    total, seen = 0.0, 0.0
    for line, start in zip(reversed(lines), reversed(starts), strict=True):
        views = line["views"] - start
        total, seen = total + views * mean_unexplained(line), seen + views
        if seen >= LATE * num_views:
            break
    return total / seen


def validation(asked_for: Validation, ready: Ready) -> Values:
    """Fraction unexplained on unmixed views of tiles that training never saw, through the trial's own teachers."""
    run, stream = ready.job.run, ready.job.stream
    over = {
        "data": {"tiles": asked_for.tiles, "splits": asked_for.splits},
        "plan": {"num_views": asked_for.num_views, "balance": "none"},
        "views": {"mix_share": 0.0},
    }
    there = config.make_run(config.overlay(run.model_dump(), over))
    tiles = tiles_of(there)
    unseen = make_stream(there, tiles, plan_of(there, tiles), student_grid(run), stream.dims)
    failures = storage.join(ready.job.run_uri, "validation-failures")
    unseen = replace(unseen, directory=stream.directory, failures_uri=failures, codecs=stream.codecs)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "standardisers.safetensors"
        path.write_bytes(storage.read_bytes(storage.join(ready.job.run_uri, path.name), run.storage))
        fitted = standardize.load(path)
    module = results.trained_module(run)
    asked = {"summary": run.student.widths, "tokens": run.student.widths}
    asked |= {str(kind): () for kind, weight in run.loss.kinds.items() if weight == 0}
    dispersion = {teacher: s.dispersion for (teacher, kind), s in fitted.items() if kind == "summary"}
    cfg = run.loss.model_copy(update={"teacher_drop": 0.0, "relation": 0.0})
    total: Metrics = {}
    rows = make_dataset(unseen, Ledger()).iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=1)
    for row in rows:
        micro = {k: v for k, v in micro_batch_of(row).items() if k not in ("digest", "origin") and "seconds" not in k}
        batch = {name: torch.from_numpy(np.array(value)) for name, value in micro.items()}
        with torch.inference_mode():
            targets, lost = standardise(batch, fitted, asked)
            weight = teacher_weights(batch["weight"], lost, cfg, batch["seq"], run.train.seed, 0)
            (preds,) = module(batch["views"], batch["token_pos"], asked["summary"], asked["tokens"])
            terms = distill_terms(preds, targets, cfg, dispersion, weight, {})
            add(total, measured(torch.zeros(()), terms, batch["weight"], weight, lost, cfg))
    return by_width(reduce_metrics([total]), run.student.widths[-1])


def by_width(values: Values, full: int) -> Values:
    """`validation/<width>` as the mean over teachers and kinds, and `validation`, which is that of the full width."""
    shares: dict[int, list[float]] = {}
    for key, value in values.items():
        if key.startswith("unexplained/") and key.count("/") == 3:
            shares.setdefault(int(key.rsplit("/", 1)[1]), []).append(value)
    out = {f"validation/{width}": float(np.mean(some)) for width, some in shares.items()}
    return out | {"validation": out[f"validation/{full}"]}


def probe(run: config.Run, base: config.Run) -> Values:
    """Balanced accuracy of the student's linear probes, mean over the data sets of `evaluate.tiles`, at each width.

    Tiles and patients that training saw are refused, as everywhere; what it saw is read once for the whole sweep.
    """
    seen = results.seen_by(base if run.data == base.data else run)
    student, device = results.trained_module(run).student, results.device_of(run)
    contender = Contender("student", "student", results.encode_with(student, device), student.num_params, 0.0)
    found = evaluate(
        [contender], run.student.widths, run.evaluate, run.storage,
        size=run.views.size, seen=(seen,), protocols=("linear",),
    )  # fmt: skip
    rows = [row for row in found.scores.rows if row.protocol == "linear"]
    widths = run.student.widths
    out = {f"probe/{w}": float(np.mean([row.score for row in rows if row.width == w])) for w in widths}
    return out | {"probe": out[f"probe/{widths[-1]}"]}
