"""The training step: one optimizer step from its micro-batches, without waiting for the device.

Nothing here copies a number to the host: what is measured stays in tensors until `reduce_metrics` at the end of a log
interval, a micro-batch whose loss is not finite is cut out on the device and counted, and what a step draws (widths,
teachers to leave out) is a function of (seed, step), so that every rank builds the same graph and a resumed run goes on
as it would have.

The loss of a step is sum(weight * loss) / sum(weight) over the micro-batches of *all* ranks. Engines average gradients
over ranks and over micro-batches; `divided_by` undoes that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from pathryoshka import config
from pathryoshka.distill.losses import choose_widths, combine, distill_terms, teacher_weights
from pathryoshka.distill.measure import Metrics, add, measure, reduce_metrics
from pathryoshka.distill.model import Distiller

__all__ = ["Distiller", "reduce_metrics", "train_step"]

Batch = Mapping[str, torch.Tensor]
TOKEN_DRAW = 1 << 32
"""Added to the seed, so that summaries and tokens draw their widths apart."""


class Standardiser(Protocol):
    """What the step needs of one; it does not know the teachers' room."""

    @property
    def kind(self) -> str: ...
    @property
    def dispersion(self) -> float: ...
    @property
    def inverse(self) -> np.ndarray | None: ...
    def apply(self, y: torch.Tensor) -> torch.Tensor: ...
    def __hash__(self) -> int: ...


def train_step(
    engine: Any,
    micro_batches: Sequence[Batch],
    standardisers: Mapping[tuple[str, str], Standardiser],
    run: config.Run,
    step: int,
    divided_by: float | None = None,
) -> Metrics:
    """One optimizer step; returns metrics as `[sum, weight]` tensors, for `reduce_metrics`.

    Args:
        engine: a callable wrapper of a `Distiller` (its `.module`), with `.backward(loss)` and `.step()`; both are
            called for each micro-batch, and it is for the engine to know which step completes a batch.
        micro_batches: this rank's, on the device: `views` uint8 [B, S, S, 3], `weight` [B], `token_pos` [B, K],
            `<teacher>.<kind>` raw features [B, D] or [B, K, D], and `seq` [B] if teachers are dropped.
        standardisers: (teacher, kind) -> what to apply to its features.
        divided_by: what the engine divides gradients by; none = ranks x micro-batches, as DeepSpeed does.
    """
    cfg, seed = run.loss, run.train.seed
    total = global_sum(torch.stack([batch["weight"].sum() for batch in micro_batches]).sum())
    scale = (divided_by or world_size() * len(micro_batches)) / total.clamp_min(1e-12)
    asked = {
        "summary": choose_widths(run.student.widths, cfg.widths_per_step, seed, step),
        "tokens": choose_widths(run.student.widths, cfg.token_widths_per_step, seed + TOKEN_DRAW, step),
    }
    asked |= {str(kind): () for kind, weight in cfg.kinds.items() if weight == 0}
    dispersion = {teacher: s.dispersion for (teacher, kind), s in standardisers.items() if kind == "summary"}
    variances = {key: v for key, s in standardisers.items() if (v := whitened(s, total.device)) is not None}
    metrics: Metrics = {}
    for batch in micro_batches:
        targets, lost_TB = standardise(batch, standardisers, asked)
        weight_TB = teacher_weights(batch["weight"], lost_TB, cfg, batch.get("seq"), seed, step)
        (preds,) = engine(batch["views"], batch["token_pos"], asked["summary"], asked["tokens"])
        terms = distill_terms(preds, targets, cfg, dispersion, weight_TB, variances)
        loss = combine(terms, weight_TB, cfg)
        engine.module.keep = torch.isfinite(loss)
        engine.backward(loss * scale)
        engine.step()
        add(metrics, measure(loss, terms, batch["weight"], weight_TB, lost_TB, cfg))
    return metrics


def standardise(
    batch: Batch, standardisers: Mapping[tuple[str, str], Standardiser], asked: Mapping[str, Sequence[int]]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Standardised features {teacher: {kind: ...}} in fp32, and {teacher: [B]} views in which some are not finite."""
    targets: dict[str, dict[str, torch.Tensor]] = {}
    lost_TB: dict[str, torch.Tensor] = {}
    for (teacher, kind), standardiser in standardisers.items():
        if asked[kind]:
            raw = batch[f"{teacher}.{kind}"].float()
            # A sum is finite exactly where all of its terms are: fp16 numbers cannot overflow it.
            lost = ~torch.isfinite(raw.flatten(1).sum(1)) & (batch["weight"] > 0)
            lost_TB[teacher] = lost_TB[teacher] | lost if teacher in lost_TB else lost
            targets.setdefault(teacher, {})[kind] = standardiser.apply(raw)
    return targets, lost_TB


@lru_cache(maxsize=32)
def whitened(standardiser: Standardiser, device: torch.device) -> torch.Tensor | None:
    """[D] variances that whitening took from a teacher's principal components, none if it is not whitened."""
    if standardiser.kind != "pca_whiten" or standardiser.inverse is None:
        return None
    # The inverse is an orthogonal matrix times the deviations, so they are the lengths of its columns.
    return torch.from_numpy(np.square(standardiser.inverse).sum(0)).to(device, torch.float32)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def global_sum(x: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized():
        dist.all_reduce(x)
    return x
