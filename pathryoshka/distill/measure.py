"""What a step measures: sums and the weights they were summed with, on the device until someone asks.

A metric is a tensor [sum, weight]: sums add up over micro-batches, steps and ranks, and are divided once, when a log
interval ends. That is the only place where numbers leave the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from pathryoshka import config
from pathryoshka.distill.losses import FRACTIONS, Terms

COUNT = "nonfinite/"
Metrics = dict[str, torch.Tensor]


def term_name(key: tuple[int, str, str], cfg: config.Loss) -> str:
    """`unexplained/<teacher>/<kind>/<width>` where the term is 1 for a predictor of the mean, else `term/...`."""
    width, teacher, kind = key
    fraction = kind != "relation" and getattr(cfg, kind) in FRACTIONS
    return f"{'unexplained' if fraction else 'term'}/{teacher}/{kind}/{width}"


def measure(
    loss: torch.Tensor,
    terms: Terms,
    weight_B: torch.Tensor,
    weight_TB: Mapping[str, torch.Tensor],
    lost_TB: Mapping[str, torch.Tensor],
    cfg: config.Loss,
) -> Metrics:
    """The sums of one micro-batch.

    Args:
        loss: the weighted sum, not yet divided; lost_TB: views whose features of a teacher were not finite.
    """
    loss = loss.detach()
    sums = {"loss": torch.stack([loss, weight_B.sum()])}
    for key, term in terms.items():
        weight = weight_TB[key[1]]
        sums[term_name(key, cfg)] = torch.stack([torch.dot(weight, term.detach()), weight.sum()])
    counts = {f"{COUNT}{teacher}": lost.sum() for teacher, lost in lost_TB.items()}
    counts[f"{COUNT}loss"] = ~torch.isfinite(loss)
    return sums | {name: torch.stack([n, torch.ones_like(n)]).float() for name, n in counts.items()}


def add(total: Metrics, more: Metrics) -> None:
    for name, value in more.items():
        total[name] = total[name] + value if name in total else value


def reduce_metrics(steps: Sequence[Metrics]) -> dict[str, float]:
    """Means over the steps and over all ranks; every rank must call it with the same names. One all-reduce, one copy.

    Returns:
        `loss`; `unexplained/<teacher>/<kind>/<width>` (or `term/...`) and `unexplained/<teacher>`, the mean over kinds
        at the full width; `nonfinite/<teacher>` and `nonfinite/loss`, which are counts of views and of micro-batches.
    """
    total: Metrics = {}
    for metrics in steps:
        add(total, metrics)
    names = sorted(total)
    if not names:
        return {}
    table = torch.stack([total[name] for name in names]).double()
    if dist.is_initialized():
        dist.all_reduce(table)
    values = {}
    for name, (value, weight) in zip(names, table.tolist(), strict=True):
        if name.startswith(COUNT):
            values[name] = value
        elif weight > 0 or weight != weight:
            values[name] = value / weight
    return values | by_teacher(values)


def by_teacher(values: Mapping[str, float]) -> dict[str, float]:
    """`unexplained/<teacher>`: the mean over kinds of what its full width leaves unexplained."""
    widest: dict[str, dict[str, tuple[int, float]]] = {}
    for name, value in values.items():
        if name.startswith("unexplained/"):
            _, teacher, kind, width = name.split("/")
            kinds = widest.setdefault(teacher, {})
            kinds[kind] = max(kinds.get(kind, (0, 0.0)), (int(width), value))
    return {f"unexplained/{t}": sum(v for _, v in kinds.values()) / len(kinds) for t, kinds in widest.items()}
