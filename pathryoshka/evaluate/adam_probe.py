"""kaiko eva's tile protocol on embeddings that are there already: one linear layer under AdamW, many of them at once.

As in the `offline/classification` configs of kaiko-eva 0.4 (https://github.com/kaiko-ai/eva): embeddings as the
encoder gives them, `nn.Linear` with its own start, cross entropy without class weights (one logit and binary cross
entropy for two classes), AdamW at a constant 3e-4 with torch's default weight decay of .01, batches of 256 reshuffled
each epoch, at most 12,500 steps, balanced accuracy on `val` after each epoch, early stop, the best checkpoint kept.

Seeds and widths differ only in weights and in the order of rows, so they are solved together: a seed's batch is
gathered once, and one batched product gives the logits of every seed and width. A width has weights of zero beyond its
end. Gradients are written out, since for one layer they are one more product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols.rows import Predictions, ProtocolError, check, predictions

LEARNING_RATE = 3e-4
WEIGHT_DECAY = 0.01
BETAS, EPSILON = (0.9, 0.999), 1e-8
BATCH = 256
MAX_STEPS = 12_500
NUM_SEEDS = 5
PATIENCE_SHARE = 0.2


@dataclass(frozen=True)
class Fitted:
    """S seeds and W widths of one fold.

    Attributes:
        weight_SWKD, bias_SWK: the best checkpoints; K is 1 for two classes, else their number.
        best_SW: the epoch (from 1) of each, the last one where there was no row to choose on.
        num_epochs_SW: epochs until it stopped.
        val_score_SW: balanced accuracy of the checkpoint on `val`; NaN without `val`.
    """

    weight_SWKD: torch.Tensor
    bias_SWK: torch.Tensor
    best_SW: torch.Tensor
    num_epochs_SW: torch.Tensor
    val_score_SW: torch.Tensor

    def probabilities(self, x_WND: torch.Tensor) -> torch.Tensor:
        """[S, W, N, C], rows that sum to 1."""
        logits_SWNK = torch.einsum("wnd,swkd->swnk", x_WND, self.weight_SWKD) + self.bias_SWK[:, :, None]
        if logits_SWNK.shape[-1] > 1:
            return logits_SWNK.softmax(-1)
        return torch.cat([(-logits_SWNK).sigmoid(), logits_SWNK.sigmoid()], -1)


def patience_of(num_train: int, batch: int = BATCH, max_steps: int = MAX_STEPS) -> int:
    """Epochs without a better score before eva stops: a fifth of those that `max_steps` holds, rounded up.

    eva writes numbers, not this formula, which gives all eight of its tile tasks: BACH (268 rows) 1250, BRACS (3,657)
    167, BreakHis (1,132) 500, CRC (100,000) 7, Gleason (15,303) 42, MHIST (2,175) 278, PatchCamelyon (262,144) 3,
    UniToPatho (6,270) 100.
    """
    return math.ceil(PATIENCE_SHARE * max_steps / math.ceil(num_train / batch))


def adam_probe(
    x_ND: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    folds: Sequence[Fold],
    *,
    widths: Sequence[int] | None = None,
    unit: bool = False,
    patience: int | None = None,
    seeds: Sequence[int] = tuple(range(NUM_SEEDS)),
    max_steps: int = MAX_STEPS,
    batch: int = BATCH,
) -> tuple[tuple[Predictions, ...], ...]:
    """Out-of-fold predictions, one a width and seed: `[w][s]`; `chosen` holds the epoch of the checkpoint of each fold.

    Args:
        x_ND: fp32 or fp64, worked in as given.
        labels: [N] strings. groups: [N] codes.
        widths: numbers kept of each row; all of them by default.
        unit: rows are brought to length 1 after cutting. eva does not; its step size then fits few encoders.
        patience: epochs; `patience_of` the fold by default.

    Raises:
        ProtocolError: see `rows.check`; a width beyond the rows.
    """
    check(x_ND, labels, groups, folds)
    widths = tuple(widths or (x_ND.shape[1],))
    if not 1 <= min(widths) <= max(widths) <= x_ND.shape[1]:
        raise ProtocolError(f"embeddings have {x_ND.shape[1]} numbers; got widths {', '.join(map(str, widths))}")
    classes, codes = np.unique(labels, return_inverse=True)
    x, y = torch.from_numpy(np.ascontiguousarray(x_ND)), torch.from_numpy(codes)
    probabilities = np.full((len(seeds), len(widths), len(labels), len(classes)), np.nan)
    chosen = []
    for fold in folds:
        stop = patience or patience_of(len(fold.train), batch, max_steps)
        train, val = (torch.from_numpy(rows) for rows in (fold.train, fold.val))
        fitted = fit(
            x[train], y[train], x[val], y[val], len(classes), widths, unit, stop, tuple(seeds), max_steps, batch
        )
        asked_WND = cut(x[torch.from_numpy(fold.test)], widths, unit)
        probabilities[:, :, fold.test] = fitted.probabilities(asked_WND).numpy()
        chosen.append(fitted.best_SW)
    return tuple(
        tuple(
            predictions(probabilities[s, w], labels, groups, [float(best[s, w]) for best in chosen])
            for s in range(len(seeds))
        )
        for w in range(len(widths))
    )


def fit(
    x_ND: torch.Tensor,
    y_N: torch.Tensor,
    val_VD: torch.Tensor,
    val_V: torch.Tensor,
    num_classes: int,
    widths: Sequence[int],
    unit: bool,
    patience: int,
    seeds: Sequence[int],
    max_steps: int = MAX_STEPS,
    batch: int = BATCH,
) -> Fitted:
    """One probe a seed and width. Rows of class numbers `y_N`, `val_V`; without `val` rows the last weights are kept.

    Steps after the last whole epoch are not taken: no checkpoint would hold them.
    """
    num_rows, dim = x_ND.shape
    num_outputs = num_classes if num_classes > 2 else 1
    num_models = (len(seeds), len(widths))
    targets_NK = one_hot(y_N, num_outputs, x_ND.dtype)
    scale_NW, val_WVD = row_scale(x_ND, widths, unit), cut(val_VD, widths, unit)
    mask_WD = (torch.arange(dim) < torch.tensor(widths)[:, None]).to(x_ND.dtype)
    # the bias is the weight of one more column of ones
    x_NE = torch.cat([x_ND, x_ND.new_ones(num_rows, 1)], 1)
    mask_EW = torch.cat([mask_WD, mask_WD.new_ones(len(widths), 1)], 1).T[:, :, None]
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    weights_SEWK = torch.stack([start(dim, widths, num_outputs, seed, x_ND.dtype) for seed in seeds])
    adam = Adam(torch.zeros_like(weights_SEWK), torch.zeros_like(weights_SEWK), 0)

    best_SEWK = weights_SEWK.clone()
    best, num_epochs = torch.zeros(num_models, dtype=torch.long), torch.zeros(num_models, dtype=torch.long)
    score = torch.full(num_models, -math.inf, dtype=torch.float64)
    waiting = torch.zeros(num_models, dtype=torch.long)
    alive = torch.arange(len(seeds))
    steps_each = math.ceil(num_rows / batch)
    for epoch in range(1, max(1, max_steps // steps_each) + 1):
        order_SN = torch.stack([torch.randperm(num_rows, generator=orders[s]) for s in alive])
        for rows_SB in order_SN.split(batch, 1)[:max_steps]:
            grad = gradient(weights_SEWK, x_NE[rows_SB], targets_NK[rows_SB], scale_NW[rows_SB]).mul_(mask_EW)
            adam.step(weights_SEWK, grad)
        running = waiting[alive] < patience
        if len(val_V):
            now = balanced_accuracy(weights_SEWK, val_WVD, val_V, num_classes)
            better = (now > score[alive]) & running
            score[alive] = torch.where(better, now, score[alive])
            waiting[alive] = torch.where(running, torch.where(better, 0, waiting[alive] + 1), waiting[alive])
        else:
            better = running
        best_SEWK[alive] = torch.where(better[:, None, :, None], weights_SEWK, best_SEWK[alive])
        best[alive] = torch.where(better, epoch, best[alive])
        num_epochs[alive] += running
        still = (waiting[alive] < patience).any(1)
        if not still.all():
            alive, weights_SEWK, adam = alive[still], weights_SEWK[still], adam.of(still)
            if not len(alive):
                break
    weight_SWKD, bias_SWK = best_SEWK[:, :-1].permute(0, 2, 3, 1), best_SEWK[:, -1]
    return Fitted(weight_SWKD, bias_SWK, best, num_epochs, score if len(val_V) else score.fill_(math.nan))


@dataclass
class Adam:
    """AdamW's state (Loshchilov and Hutter 2019, algorithm 2), as in `torch.optim.AdamW`."""

    first: torch.Tensor
    second: torch.Tensor
    num_steps: int

    def step(self, weights: torch.Tensor, grad: torch.Tensor) -> None:
        """One step in place."""
        self.num_steps += 1
        weights.mul_(1 - LEARNING_RATE * WEIGHT_DECAY)
        self.first.lerp_(grad, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        spread = self.second.sqrt().div_(math.sqrt(1 - BETAS[1] ** self.num_steps)).add_(EPSILON)
        weights.addcdiv_(self.first, spread, value=-LEARNING_RATE / (1 - BETAS[0] ** self.num_steps))

    def of(self, which: torch.Tensor) -> Adam:
        return Adam(self.first[which], self.second[which], self.num_steps)


def start(dim: int, widths: Sequence[int], num_outputs: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """[D + 1, W, K] as `nn.Linear` starts: uniform within 1 / sqrt(width), the bias (the last row) too; zero beyond.

    What a width starts from does not depend on which others it is solved with.
    """
    out = torch.zeros(dim + 1, len(widths), num_outputs, dtype=dtype)
    for i, width in enumerate(widths):
        bound, draw = 1 / math.sqrt(width), torch.Generator().manual_seed(seed)
        out[:width, i] = torch.empty(width, num_outputs, dtype=dtype).uniform_(-bound, bound, generator=draw)
        out[-1, i] = torch.empty(num_outputs, dtype=dtype).uniform_(-bound, bound, generator=draw)
    return out


def gradient(
    weights_SEWK: torch.Tensor, x_SBE: torch.Tensor, targets_SBK: torch.Tensor, scale_SBW: torch.Tensor
) -> torch.Tensor:
    """Of the mean cross entropy of a batch, [S, E, W, K]; not yet zero beyond each width."""
    logits_SBWK = logits(weights_SEWK, x_SBE, scale_SBW)
    found = logits_SBWK.softmax(-1) if logits_SBWK.shape[-1] > 1 else logits_SBWK.sigmoid()
    error_SBWK = (found - targets_SBK[:, :, None]).div_(x_SBE.shape[1])
    bias_SWK = error_SBWK.sum(1)
    grad = torch.bmm(x_SBE.transpose(1, 2), error_SBWK.mul_(scale_SBW[..., None]).flatten(2)).view_as(weights_SEWK)
    grad[:, -1] = bias_SWK
    return grad


def logits(weights_SEWK: torch.Tensor, x_SBE: torch.Tensor, scale_SBW: torch.Tensor) -> torch.Tensor:
    """[S, B, W, K]. The scale of a row is of its embedding, not of the column of ones."""
    num_models = weights_SEWK.shape[2:]
    product = torch.bmm(x_SBE[..., :-1], weights_SEWK[:, :-1].flatten(2)).unflatten(-1, num_models)
    return product.mul_(scale_SBW[..., None]).add_(weights_SEWK[:, None, -1])


def balanced_accuracy(
    weights_SEWK: torch.Tensor, x_WVD: torch.Tensor, y_V: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Mean recall over the classes of `y_V`, fp64 [S, W], rounded so that equal scores are equal numbers."""
    logits_SWVK = torch.einsum("wvd,sdwk->swvk", x_WVD, weights_SEWK[:, :-1]) + weights_SEWK[:, -1, :, None]
    predicted = logits_SWVK.argmax(-1) if num_classes > 2 else (logits_SWVK[..., 0] > 0).long()
    members_VC = torch.nn.functional.one_hot(y_V, num_classes).double()
    recall_SWC = (predicted == y_V).double() @ members_VC / members_VC.sum(0).clamp_min(1)
    return (recall_SWC.sum(-1) / (members_VC.sum(0) > 0).sum()).round(decimals=12)


def one_hot(y_N: torch.Tensor, num_outputs: int, dtype: torch.dtype) -> torch.Tensor:
    if num_outputs == 1:
        return y_N[:, None].to(dtype)
    return torch.nn.functional.one_hot(y_N, num_outputs).to(dtype)


def row_scale(x_ND: torch.Tensor, widths: Sequence[int], unit: bool) -> torch.Tensor:
    """[N, W]: what a row cut to each width is multiplied with."""
    if not unit:
        return x_ND.new_ones(len(x_ND), len(widths))
    return torch.stack([1 / x_ND[:, :width].norm(dim=1).clamp_min(1e-12) for width in widths], 1)


def cut(x_ND: torch.Tensor, widths: Sequence[int], unit: bool) -> torch.Tensor:
    """[W, N, D], zero beyond each width."""
    out = torch.zeros(len(widths), *x_ND.shape, dtype=x_ND.dtype)
    scale_NW = row_scale(x_ND, widths, unit)
    for i, width in enumerate(widths):
        out[i, :, :width] = x_ND[:, :width] * scale_NW[:, i, None]
    return out
