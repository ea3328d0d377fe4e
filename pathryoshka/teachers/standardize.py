"""Teacher features made comparable: moments of a fixed sample, and an invertible linear map fitted to them.

Without it a loss weighs each teacher, and each channel, by its variance. PHI-S (arXiv 2410.01680) centres, rotates onto
the eigenvectors and mixes them with a Hadamard matrix, so that every channel has variance 1 after division by one
scalar, phi = sqrt(tr Sigma / D): nothing is divided by a small eigenvalue, and relative errors stay what they were. Its
mean squared error is that of centred features / phi, since the rotation keeps lengths; it matters to losses by channel
and to the optimizer. The map is linear, so it is folded into the last layer of a head without a trace.

A predictor of the mean has a mean squared error of 1 for `per_channel`, `phi_s` and (at full rank) `pca_whiten`.
Statistics of summaries and of tokens differ and are kept apart; moments are fp64 and fitted once: eigenvectors that are
fitted again while a student trains swap places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from pathryoshka import config
from pathryoshka.teachers.hadamard import hadamard

VERSION = 2
ARRAYS = ("mean", "forward", "scale", "eigenvalues")
DEAD = 1e-8
"""Share of the largest variance below which a direction counts as constant: fp16 features have noise of that size."""


class StandardiseError(ValueError):
    """A standardiser that cannot be fitted or read: one sentence that says what to do."""


class Moments:
    """Count, mean [D] and sum of outer products of deviations m2 [D, D] in fp64, one pass, mergeable in any order."""

    def __init__(self, dim: int):
        self.n = 0
        self.mean = np.zeros(dim)
        self.m2 = np.zeros((dim, dim))

    def update(self, x_ND: np.ndarray) -> None:
        """Adds N samples.

        Raises:
            StandardiseError: another width, or NaN or infinity among them.
        """
        x_ND = np.asarray(x_ND, np.float64)
        if x_ND.ndim != 2 or x_ND.shape[1] != len(self.mean):
            raise StandardiseError(f"features are {list(x_ND.shape)}; these moments are of [N, {len(self.mean)}]")
        if not len(x_ND):
            return
        mean = x_ND.mean(0)
        if not np.isfinite(mean).all():
            raise StandardiseError("features hold NaN or infinity; set the teacher's precision to bf16 or fp32")
        centred_ND = x_ND - mean
        self.add(len(x_ND), mean, centred_ND.T @ centred_ND)

    def merge(self, other: Moments) -> None:
        """Adds what another worker saw."""
        self.add(other.n, other.mean, other.m2)

    def add(self, n: int, mean: np.ndarray, m2: np.ndarray) -> None:
        """Chan's rule for two parts: the difference of their means is variance, too."""
        if n == 0:
            return
        total = self.n + n
        delta = mean - self.mean
        self.m2 += m2 + np.outer(delta, delta) * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total

    def covariance(self) -> np.ndarray:
        """[D, D], unbiased.

        Raises:
            StandardiseError: fewer than two samples.
        """
        if self.n < 2:
            raise StandardiseError(f"{self.n} samples have no covariance; raise standardise.num_views")
        return self.m2 / (self.n - 1)


@dataclass(frozen=True, eq=False)
class Standardiser:
    """y' = forward (y - mean), or (y - mean) / scale where there is no matrix; fp64 numpy, applied in fp32.

    Attributes:
        mean: [D].
        forward: [D, D] with all scaling inside, its rows orthogonal, or None.
        scale: [D] or [1]; PHI-S: phi.
        eigenvalues: [D], descending, of the covariance of *standardised* features.
        n: samples it was fitted on.
        dispersion: mean squared angle between standardised features and their mean direction, NaN if not measured.
        fingerprint: digest of the teacher that made the features, "" if nobody said.
    """

    kind: config.Standardiser
    mean: np.ndarray
    forward: np.ndarray | None
    scale: np.ndarray
    eigenvalues: np.ndarray
    n: int
    dispersion: float
    fingerprint: str = ""
    buffers: dict[torch.device, tuple[Tensor, ...]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def inverse(self) -> np.ndarray | None:
        """[D, D], or None. Of orthogonal rows it is the transpose, each divided by its squared length; a direction
        without variance, whose row is 0, comes back as the mean."""
        if self.forward is None:
            return None
        squares = np.square(self.forward).sum(1, keepdims=True)
        return np.divide(self.forward, squares, out=np.zeros_like(self.forward), where=squares > 0).T

    def apply(self, y: Tensor) -> Tensor:
        """Raw [..., D] of any float type -> standardised fp32, on the same device, also inside autocast."""
        mean, scale, forward, _ = self.on(y.device)
        with torch.autocast(y.device.type, enabled=False):
            centred = y.float() - mean
            return centred / scale if self.forward is None else centred @ forward.T

    def invert(self, y: Tensor) -> Tensor:
        """Standardised [..., D] -> raw fp32."""
        mean, scale, _, inverse = self.on(y.device)
        with torch.autocast(y.device.type, enabled=False):
            return (y.float() * scale if self.inverse is None else y.float() @ inverse.T) + mean

    def floor(self, width: int) -> float:
        """Fraction of the variance of standardised features that the best linear map from `width` numbers leaves
        unexplained (PCA); what a linear head on a prefix of that width cannot beat."""
        total = self.eigenvalues.sum()
        return float(self.eigenvalues[width:].sum() / total) if total > 0 else 0.0

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self.buffers:
            arrays = (self.mean, self.scale, self.forward, self.inverse)
            self.buffers[device] = tuple(
                torch.from_numpy(np.zeros(0) if x is None else x).to(device, torch.float32) for x in arrays
            )
        return self.buffers[device]

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "buffers": {}}  # tensors on a device do not travel
        state.pop("inverse", None)
        return state


def fit(
    moments: Moments, kind: config.Standardiser, sample_ND: np.ndarray | None = None, fingerprint: str = ""
) -> Standardiser:
    """The standardiser of features with these moments.

    none: as they are. global: (y - m) / s with two scalars over all channels. per_channel: each channel by its own mean
    and deviation, constant ones only centred. phi_s: phi^-1 H U^T (y - mean). pca_whiten: Lambda^-1/2 U^T (y - mean),
    for comparison; directions without variance become 0.

    Args:
        sample_ND: raw features to measure the dispersion on; none = not measured.

    Raises:
        StandardiseError: fewer than two samples, features that do not vary, or a width without a Hadamard matrix.
    """
    covariance = moments.covariance()
    dim, variance = len(moments.mean), np.diag(covariance)
    total = float(variance.sum())
    if kind != "none" and total <= 0:
        raise StandardiseError("all features of the sample are alike; look at the teacher and at the views")
    mean, scale = moments.mean, np.ones(1)
    forward = None
    if kind == "none":
        mean = np.zeros(dim)
    elif kind == "global":
        mean = np.full(dim, moments.mean.mean())
        scale = np.sqrt([total / dim + moments.mean.var()])
    elif kind == "per_channel":
        scale = np.sqrt(np.where(variance > DEAD * variance.max(), variance, 1.0))
    if kind in ("none", "global", "per_channel"):
        eigenvalues = np.maximum(np.linalg.eigvalsh(covariance / scale[:, None] / scale)[::-1], 0)
    else:
        eigenvalues, vectors = eigenbasis(covariance)
        scale = np.sqrt([total / dim])
        if kind == "phi_s":
            forward = hadamard_for(dim) @ vectors.T / scale
            eigenvalues = eigenvalues / scale**2
        else:
            alive = eigenvalues > DEAD * eigenvalues[0]
            deviation = np.sqrt(np.where(alive, eigenvalues, 0))
            forward = vectors.T * np.divide(1, deviation, out=np.zeros(dim), where=alive)[:, None]
            eigenvalues = alive.astype(np.float64)
    fitted = Standardiser(kind, mean, forward, scale, eigenvalues, moments.n, float("nan"), fingerprint)
    return fitted if sample_ND is None else replace(fitted, dispersion=dispersion_of(fitted, sample_ND))


def eigenbasis(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [D], descending and none negative, and eigenvectors as columns [D, D], the largest entry of each
    positive: their sign is arbitrary otherwise, and a second fit would turn the targets round."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    largest = np.abs(vectors).argmax(0)
    return values, vectors * np.where(vectors[largest, np.arange(len(values))] < 0, -1.0, 1.0)


def hadamard_for(dim: int) -> np.ndarray:
    try:
        return hadamard(dim)
    except ValueError as error:
        raise StandardiseError(str(error)) from None


def dispersion_of(fitted: Standardiser, sample_ND: np.ndarray) -> float:
    """E[angle(y', m)**2] in square radians over a sample, by which the balanced angle loss is divided (C-RADIOv4, arXiv
    2601.17237). m is the direction of the mean of the unit vectors y' / |y'|, the constant prediction that a loss of 1
    stands for; the paper takes that of the mean of y', which centred features do not have. The angle is
    2 atan2(|a - b|, |a + b|), exact also where arccos is not."""
    centred_ND = np.asarray(sample_ND, np.float64) - fitted.mean
    y_ND = centred_ND / fitted.scale if fitted.forward is None else centred_ND @ fitted.forward.T
    unit_ND = y_ND / np.maximum(np.linalg.norm(y_ND, axis=1, keepdims=True), 1e-30)
    mean = unit_ND.mean(0)
    length = np.linalg.norm(mean)
    direction = mean / length if length > 0 else np.eye(len(mean))[0]
    apart, along = (np.linalg.norm(x, axis=1) for x in (unit_ND - direction, unit_ND + direction))
    return float(np.mean((2 * np.arctan2(apart, along)) ** 2))


def fold(weight: Tensor, bias: Tensor, s: Standardiser) -> tuple[Tensor, Tensor]:
    """Weight [D, h] and bias [D] of a linear layer that predicts standardised features, changed so that it predicts raw
    ones: exact (computed in fp64, returned in the layer's type)."""
    w, b = (x.detach().double().cpu() for x in (weight, bias))
    mean, scale = torch.from_numpy(s.mean), torch.from_numpy(s.scale)
    if s.inverse is None:
        w, b = w * scale[:, None], b * scale
    else:
        inverse = torch.from_numpy(s.inverse)
        w, b = inverse @ w, inverse @ b
    return w.to(weight), (b + mean).to(bias)


def save(standardisers: Mapping[tuple[str, str], Standardiser], path: str | Path) -> None:
    """One safetensors file for all (teacher, kind of feature); the same standardisers give the same bytes."""
    tensors, entries = {}, []
    for i, ((teacher, feature), s) in enumerate(sorted(standardisers.items())):
        entries.append(
            {
                "teacher": teacher,
                "feature": feature,
                "kind": s.kind,
                "n": s.n,
                "dispersion": s.dispersion,
                "fingerprint": s.fingerprint,
            }
        )
        for name in ARRAYS:
            if (array := getattr(s, name)) is not None:
                tensors[f"{i}.{name}"] = np.ascontiguousarray(array)
    save_file(tensors, path, {"pathryoshka": json.dumps({"version": VERSION, "standardisers": entries})})


def load(path: str | Path) -> dict[tuple[str, str], Standardiser]:
    """What `save` wrote.

    Raises:
        StandardiseError: no such file, a damaged one, or one of another version.
    """
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get("pathryoshka", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise StandardiseError(f"cannot read standardisers from {path} ({error}); fit them again") from None
    if about.get("version") != VERSION:
        raise StandardiseError(f"{path} holds no standardisers of version {VERSION}; fit them again")
    out = {}
    for i, entry in enumerate(about["standardisers"]):
        fields: dict[str, Any] = {name: tensors.get(f"{i}.{name}") for name in ARRAYS}
        fields |= {name: entry[name] for name in ("kind", "n", "dispersion", "fingerprint")}
        out[entry["teacher"], entry["feature"]] = Standardiser(**fields)
    return out
