"""Embeddings with a known structure for tests of protocols: classes, and groups whose tiles share an offset."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pathryoshka.evaluate.folds import Fold, make_folds

CLASSES = ("adipose", "stroma", "tumour")


@dataclass(frozen=True)
class Blobs:
    """Rows of length 1 [N, D], labels [N], codes of groups [N], folds by group."""

    x: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: tuple[Fold, ...]

    @property
    def codes(self) -> np.ndarray:
        return np.unique(self.labels, return_inverse=True)[1]

    def args(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[Fold, ...]]:
        return self.x, self.labels, self.groups, self.folds

    def with_official_split(self) -> Blobs:
        """The same as one fold whose test rows are a third of the groups; nobody tests the other rows."""
        split = np.array(["train", "train", "val", "train", "test", "test"])[self.groups % 6]
        return replace(self, folds=make_folds(self.labels, self.groups.astype(str), splits=split))


def blobs(n: int = 240, dim: int = 30, noise: float = 1.2, num_groups: int = 12, seed: int = 0) -> Blobs:
    """Unequal classes; columns of very different scale."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(len(CLASSES), n, p=[0.5, 0.3, 0.2])
    groups = rng.integers(0, num_groups, n)
    centres, offsets = rng.standard_normal((len(CLASSES), dim)), 0.3 * rng.standard_normal((num_groups, dim))
    x = (centres[codes] + offsets[groups] + noise * rng.standard_normal((n, dim))) * np.geomspace(1, 5, dim)
    labels = np.array(CLASSES)[codes]
    return Blobs(unit(x), labels, groups, make_folds(labels, groups.astype(str), 4))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
