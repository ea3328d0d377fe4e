"""Tokens made small: as they are, in eight bits a channel, or as coordinates along their principal directions.

Summaries are always kept whole: they are a few kB a view. Tokens are 16 to 256 times as many, so a store may keep them
coarser. What that costs is measured when a codec is fitted, on others than it was fitted on, and stands in the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from safetensors.numpy import load, save

Format = Literal["none", "exact", "int8", "projected"]


class CodecError(ValueError):
    """A codec that cannot be fitted or read; the sentence says why."""


@dataclass(frozen=True)
class Codec:
    """How tokens of one teacher are kept.

    Attributes:
        scale: float32 [D], int8: what one step of a channel is.
        mean, basis: float32 [D] and [k, D], projected: orthonormal rows, the directions of most variance first.
    """

    format: Format
    scale: np.ndarray | None = None
    mean: np.ndarray | None = None
    basis: np.ndarray | None = None

    @property
    def lossy(self) -> bool:
        return self.format in ("int8", "projected")

    @property
    def item(self) -> pa.DataType:
        return pa.int8() if self.format == "int8" else pa.float16()

    def length(self, token_dim: int) -> int:
        """Numbers kept a token."""
        return len(self.basis) if self.basis is not None else token_dim

    def encode(self, tokens_BKD: np.ndarray) -> np.ndarray:
        """float16 [B, K, D] -> float16 or int8 [B, K * length]."""
        b, k, _ = tokens_BKD.shape
        x: np.ndarray
        if self.scale is not None:
            x = np.clip(np.rint(tokens_BKD.astype(np.float32) / self.scale), -127, 127).astype(np.int8)
        elif self.basis is not None and self.mean is not None:
            x = ((tokens_BKD.astype(np.float32) - self.mean) @ self.basis.T).astype(np.float16)
        else:
            x = tokens_BKD
        return x.reshape(b, k * x.shape[-1])

    def decode(self, kept: np.ndarray, num_tokens: int) -> np.ndarray:
        """What `encode` gave, as float16 [B, K, D] again."""
        x = kept.reshape(len(kept), num_tokens, -1)
        if self.scale is not None:
            return (x.astype(np.float32) * self.scale).astype(np.float16)
        if self.basis is not None:
            return (x.astype(np.float32) @ self.basis + self.mean).astype(np.float16)
        return x

    def again(self, tokens_BKD: np.ndarray) -> np.ndarray:
        """float16 [B, K, D] as they would come back out of the store."""
        return self.decode(self.encode(tokens_BKD), tokens_BKD.shape[1])

    def to_bytes(self) -> bytes:
        arrays = {"scale": self.scale, "mean": self.mean, "basis": self.basis}
        return save({name: x for name, x in arrays.items() if x is not None}, {"format": self.format})

    @classmethod
    def from_bytes(cls, data: bytes, format: Format) -> Codec:
        return cls(format, **load(data))


EXACT = Codec("exact")


def fit(format: Format, tokens_ND: np.ndarray, directions: int) -> tuple[Codec, float]:
    """A codec for tokens like these, and the share of their variance that it loses.

    Fitted on the first half of the tokens (float16 [N, D]), measured on the second: sum |x - x'|^2 over
    sum |x - mean|^2.

    Raises:
        CodecError: too few tokens for so many directions.
    """
    half = len(tokens_ND) // 2
    seen, held_out = tokens_ND[:half].astype(np.float32), tokens_ND[half:]
    if format == "int8":
        scale = np.maximum(np.abs(seen).max(0) * 1.1, 1e-6) / 127  # a tenth of room for what the sample does not show
        codec = Codec(format, scale=scale.astype(np.float32))
    elif format == "projected":
        if half <= directions:
            raise CodecError(f"{half} tokens do not show {directions} directions; lower store.directions")
        mean = seen.mean(0)
        _, vectors = np.linalg.eigh(np.cov((seen - mean).T))  # ascending
        codec = Codec(format, mean=mean, basis=np.ascontiguousarray(vectors[:, ::-1].T[:directions], np.float32))
    else:
        return Codec(format), 0.0
    exact = held_out.astype(np.float64)
    again = codec.again(held_out[None])[0].astype(np.float64)
    lost = float(((exact - again) ** 2).sum() / ((exact - exact.mean(0)) ** 2).sum())
    return codec, lost
