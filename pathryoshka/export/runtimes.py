"""A written format, opened and run as a user would, and how far its vectors are from those of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pathryoshka.export.record import EMBEDDING, TILES

Encode = Callable[[np.ndarray], np.ndarray]
"""uint8 [B, size, size, 3] -> fp32 [B, D], not cut."""
BATCH = 64


class MissingPackage(ImportError):
    """A package that only other formats need; the sentence says how to install it."""


def needs(*packages: str) -> None:
    """Refuses, in one sentence, where one of these packages of the extra `onnx` is not installed.

    Raises:
        MissingPackage: names the first that is not there.
    """
    import importlib.util

    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise MissingPackage(f"{name} is not installed; pip install 'pathryoshka[onnx]'")


def open_format(path: Path, num_threads: int = 0) -> Encode:
    """The network in a `.onnx` or `.pt2` file.

    Args:
        num_threads: of ONNX Runtime; 0 = as many as it likes. PyTorch has one number for the whole process.
    """
    return open_onnx(path, num_threads) if path.suffix == ".onnx" else open_program(path)


def open_onnx(file: Path, num_threads: int = 0) -> Encode:
    session = open_session(file, num_threads)
    return lambda tiles: session.run([EMBEDDING], {TILES: tiles})[0]


def open_session(file: Path | bytes, num_threads: int = 0) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU."""
    needs("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # its warnings are about its own graph rewriting
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def open_program(path: Path) -> Encode:
    import torch

    module = torch.export.load(path).module()

    @torch.inference_mode()
    def encode(tiles: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(np.ascontiguousarray(tiles))).numpy()

    return encode


def encode_all(encode: Encode, tiles: np.ndarray) -> np.ndarray:
    """uint8 [N, size, size, 3] -> fp32 [N, D], a batch at a time."""
    return np.concatenate([encode(tiles[start : start + BATCH]) for start in range(0, len(tiles), BATCH)])


def least_cosines(got_ND: np.ndarray, want_ND: np.ndarray, widths: Sequence[int]) -> dict[int, float]:
    """Width -> the smallest cosine of a row and the row it should be, both cut to that width; -1 where it is none."""
    if got_ND.shape != want_ND.shape or not np.isfinite(got_ND).all():
        return dict.fromkeys(widths, -1.0)
    out = {}
    for width in widths:
        got, want = got_ND[:, :width].astype(np.float64), want_ND[:, :width].astype(np.float64)
        lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
        out[width] = float(((got * want).sum(axis=1) / np.maximum(lengths, 1e-300)).min())
    return out
