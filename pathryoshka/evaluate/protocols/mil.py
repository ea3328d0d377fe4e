"""Slides from their tiles: multiple-instance learning with gated attention (Ilse et al. 2018, eq. 8 and 9).

A slide is a bag of tile embeddings z_k. It is represented by sum_k a_k z_k, where a is the softmax over its tiles of
w (tanh(V z_k) * sigmoid(U z_k)), and a linear layer predicts its label. AdamW; the weights with the lowest loss on the
slides of `val` are kept, and training ends when that has not fallen for some epochs. Where `val` is empty a fixed
number of epochs is trained. Classes are weighted by the inverse of their frequency.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols.rows import Predictions, ProtocolError, check, check_finite, predictions

HIDDEN = 128
RATE, DECAY = 1e-3, 1e-2
BATCH = 8
"""Slides a step: few, as slides are few, and each epoch has to have some steps."""
EPOCHS, PATIENCE, FIXED = 100, 15, 30
"""At most, without a better loss on `val`, and where there is no `val`."""
MAX_TILES = 1000
"""Tiles a slide that are drawn anew each epoch; all of them are looked at when slides are predicted."""


@dataclass(frozen=True)
class Slides:
    """`slides`: of each slide, `chosen` being the epochs trained; `attention`: [N] weight of each tile in its slide."""

    slides: Predictions
    attention: np.ndarray


class GatedAttention(nn.Module):
    """Bags [S, K, D] with a mask [S, K] (true: a tile) -> logits [S, C] and attention [S, K]."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.value = nn.Linear(dim, HIDDEN)
        self.gate = nn.Linear(dim, HIDDEN)
        self.score = nn.Linear(HIDDEN, 1)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, z_SKD: torch.Tensor, mask_SK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores_SK = self.score(torch.tanh(self.value(z_SKD)) * torch.sigmoid(self.gate(z_SKD))).squeeze(-1)
        attention_SK = scores_SK.masked_fill(~mask_SK, -torch.inf).softmax(1)
        return self.head(torch.einsum("sk,skd->sd", attention_SK, z_SKD)), attention_SK


def slide_labels(
    x_ND: np.ndarray, slides: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: Sequence[Fold], seed: int = 0
) -> Slides:
    """Out-of-fold predictions of slides.

    Args:
        x_ND: tile embeddings of length 1.
        slides: [N] number of each tile's slide, 0 to S - 1, each with a tile at least.
        labels: [S] strings.
        groups: [S] codes of patients.
        folds: row numbers are those of slides.

    Raises:
        ProtocolError: see `rows.check`; a slide without a tile.
    """
    bags = [np.flatnonzero(slides == s) for s in range(len(labels))]
    empty = [s for s, rows in enumerate(bags) if not len(rows)]
    if empty or len(slides) != len(x_ND) or slides.max() >= len(labels):
        what = f"slide {empty[0]} has no tile" if empty else "tiles and slides do not belong together"
        raise ProtocolError(f"{what}; give each tile the number of its slide, and each slide a tile")
    check_finite(x_ND)
    check(np.zeros((len(labels), 1)), labels, groups, folds)
    classes, codes = np.unique(labels, return_inverse=True)
    # rows of length 1 have numbers of about 1 / sqrt(D), too small for the usual initial weights
    x = torch.from_numpy(np.asarray(x_ND, np.float32) * np.sqrt(x_ND.shape[1]).astype(np.float32))
    probabilities = np.full((len(labels), len(classes)), np.nan)
    attention = np.full(len(x_ND), np.nan)
    chosen = []
    for number, fold in enumerate(folds):
        model, epochs = train(x, bags, codes, fold, len(classes), seed + number)
        chosen.append(float(epochs))
        with torch.no_grad():
            for s in fold.test:
                logits, weights = model(x[bags[s]][None], torch.ones(1, len(bags[s]), dtype=torch.bool))
                probabilities[s] = logits[0].double().softmax(0).numpy()
                attention[bags[s]] = weights[0].numpy()
    return Slides(predictions(probabilities, labels, groups, chosen), attention)


def train(
    x: torch.Tensor, bags: Sequence[np.ndarray], codes: np.ndarray, fold: Fold, num_classes: int, seed: int
) -> tuple[GatedAttention, int]:
    """The model and the number of epochs it was trained for; a function of its arguments."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GatedAttention(x.shape[1], num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    number = np.bincount(codes[fold.train], minlength=num_classes)
    weight = torch.from_numpy(np.where(number > 0, len(fold.train) / np.maximum(number, 1) / (number > 0).sum(), 0))
    target = torch.from_numpy(codes)
    best, kept, best_epoch = np.inf, copy.deepcopy(model.state_dict()), 0
    for epoch in range(1, (EPOCHS if len(fold.val) else FIXED) + 1):
        order = rng.permutation(fold.train)
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            logits, _ = model(*padded(x, [rng.permutation(bags[s])[:MAX_TILES] for s in part]))
            loss = functional.cross_entropy(logits, target[part], weight.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not len(fold.val):
            continue
        with torch.no_grad():
            value = sum(val_loss(model, x, bags[s], target[s], weight) for s in fold.val)
        if value < best:
            best, kept, best_epoch = value, copy.deepcopy(model.state_dict()), epoch
        elif epoch - best_epoch >= PATIENCE:
            break
    if len(fold.val):
        model.load_state_dict(kept)
        return model, best_epoch
    return model, FIXED


def val_loss(
    model: GatedAttention, x: torch.Tensor, rows: np.ndarray, target: torch.Tensor, weight: torch.Tensor
) -> float:
    logits, _ = model(x[rows][None], torch.ones(1, len(rows), dtype=torch.bool))
    return float(weight[target] * functional.cross_entropy(logits[0], target))


def padded(x: torch.Tensor, bags: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bags [S, K, D], filled up with zeros, and the mask [S, K] of what is a tile."""
    mask = torch.arange(max(map(len, bags)))[None] < torch.tensor([len(rows) for rows in bags])[:, None]
    out = x.new_zeros(*mask.shape, x.shape[1])
    out[mask] = x[np.concatenate(bags)]
    return out, mask
