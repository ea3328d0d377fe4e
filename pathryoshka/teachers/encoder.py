"""A teacher as the rest of the program knows it: uint8 views in, raw summary and tokens on the student's grid out.

The encoder owns what differs between teachers (input size, mean and std, prefix tokens, precision, grid); it is frozen,
runs in eval and inference mode, and is no part of the student. Its fingerprint names everything its features depend on.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathryoshka import config
from pathryoshka.teachers import hub, own, weights
from pathryoshka.teachers.fuse import quicken
from pathryoshka.teachers.row import EncoderError, Row
from pathryoshka.teachers.trunk import Grid, MockTrunk, Trunk, feed, tokens_of
from pathryoshka.teachers.zoo import row_by_name

__all__ = ["Encoder", "EncoderError", "align_tokens", "load_encoder", "sample_tokens"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder:
    """A frozen callable: uint8 [B, H, W, 3] -> {"summary": fp32 [B, Ds], "tokens": fp32 [B, N, Dt]}, on its device.

    Attributes:
        name: what the run calls this teacher.
        grid: of the tokens it answers with, the student's: N = h * w, row-major.
        fingerprint: what its features depend on, as JSON; `digest` is its SHA-256.
        num_params: without the classifier.
    """

    def __init__(
        self,
        name: str,
        row: Row,
        trunk: Callable[[Tensor], tuple[Tensor, Tensor]],
        cfg: config.Teacher,
        own_grid: Grid,
        grid: Grid,
        device: torch.device,
        weights_sha256: str,
    ):
        self.name, self.row, self.own_grid, self.grid, self.device = name, row, own_grid, grid, device
        self.summary_dim, self.token_dim = row.summary_dim, row.token_dim
        self.licence, self.num_params = row.licence, row.num_params
        self.input_size = 0 if isinstance(trunk, MockTrunk) else cfg.input_size or row.input_size  # 0: as views come
        self.batch_size, self.dtype = cfg.batch_size, DTYPES[cfg.precision]
        self.trunk = trunk
        mean, std = (torch.tensor(x, dtype=torch.float32, device=device).view(1, 3, 1, 1) for x in (row.mean, row.std))
        self.shift, self.scale = 255 * mean, 1 / (255 * std)
        self.fingerprint = fingerprint(row, cfg, self.input_size, grid, weights_sha256)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()

    def __call__(self, views_u8: np.ndarray | Tensor) -> dict[str, Tensor]:
        """Raw features of views, in chunks of `batch_size`, as ordinary tensors that a loss may save for its backward.

        Raises:
            EncoderError: not uint8 [B, H, W, 3], or a chunk does not fit the device.
        """
        if isinstance(views_u8, np.ndarray):
            views_u8 = torch.from_numpy(views_u8 if views_u8.flags.writeable else views_u8.copy())
        if views_u8.dtype != torch.uint8 or views_u8.ndim != 4 or views_u8.shape[3] != 3:
            raise EncoderError(f"views must be uint8 [B, H, W, 3]; got {views_u8.dtype} {list(views_u8.shape)}")
        if not len(views_u8):
            shapes = {"summary": (0, self.summary_dim), "tokens": (0, self.grid[0] * self.grid[1], self.token_dim)}
            return {kind: torch.zeros(shape, device=self.device) for kind, shape in shapes.items()}
        try:
            with torch.inference_mode():
                chunks = [self.features(chunk) for chunk in views_u8.split(self.batch_size)]
            summary, tokens = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        except torch.OutOfMemoryError:
            raise self.out_of_memory(min(self.batch_size, len(views_u8))) from None
        return {"summary": summary, "tokens": tokens}

    def features(self, views_u8: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW = self.pixels(views_u8.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            summary_BD, tokens_BND = self.trunk(x_BCHW)
        return summary_BD.float(), align_tokens(tokens_BND.float(), self.own_grid, self.grid)

    def pixels(self, views_u8: Tensor) -> Tensor:
        """Resized and normalised fp32 [B, 3, S, S]. The CPU resizes in uint8, 14 times quicker than in fp32 and as PIL
        does it; CUDA can only in fp32 and rounds to whole levels, 0.16 of one away on average (tissue, 224 -> 128)."""
        x_BCHW = views_u8.permute(0, 3, 1, 2)
        size = (self.input_size or x_BCHW.shape[2], self.input_size or x_BCHW.shape[3])
        if x_BCHW.shape[2:] != size:
            x_BCHW = x_BCHW if x_BCHW.device.type == "cpu" else x_BCHW.float()
            x_BCHW = F.interpolate(x_BCHW, size=size, mode=self.row.interpolation, antialias=True, align_corners=False)
            x_BCHW = x_BCHW if x_BCHW.dtype == torch.uint8 else x_BCHW.round().clamp(0, 255)
        return x_BCHW.float().sub_(self.shift).mul_(self.scale)

    def out_of_memory(self, batch_size: int) -> EncoderError:
        if batch_size == 1:
            fix = "one view is too much; set its precision to bf16, its input_size lower, or give it another device"
        else:
            fix = f"set teachers.models.{self.name}.batch_size={batch_size // 2}"
        return EncoderError(
            f"teacher {self.name} ran out of memory on {self.device} with batch_size {batch_size}; {fix}"
        )


def fingerprint(row: Row, cfg: config.Teacher, input_size: int, grid: Grid, weights_sha256: str) -> dict[str, Any]:
    """What the features of a teacher depend on, as JSON values."""
    return {
        "row": row.name,
        "model_args": dict(row.model_args),
        "weights_sha256": weights_sha256,
        "input_size": input_size,
        "interpolation": row.interpolation,
        "mean": list(row.mean),
        "std": list(row.std),
        "summary": row.summary,
        "positions": row.positions,
        "precision": cfg.precision,
        "grid": list(grid),
        "timm": timm.__version__,
    }


def claimed_fingerprint(
    name: str, cfg: config.Teacher, grid: Grid, storage: config.Storage | None = None
) -> dict[str, Any]:
    """The fingerprint that `load_encoder` would give, from the files alone; a precision of "auto" stays "auto", for
    what it comes to depends on the device.

    Raises:
        EncoderError: the weights are not at hand.
    """
    if own.is_own(cfg.model):
        row, _, _, sha256 = own.load_own(cfg.model)
        return fingerprint(row, cfg, cfg.input_size or row.input_size, grid, sha256)
    row = row_by_name(cfg.model)
    if cfg.device == "mock" or row.architecture == "mock":
        return fingerprint(row, cfg, 0, grid, "mock")
    with tempfile.TemporaryDirectory(prefix="pathryoshka-") as scratch:
        weights.look(row, cfg.weights, storage or config.Storage())  # nothing is downloaded from a hub for this
        path = weights.locate(row, cfg.weights, storage or config.Storage(), Path(scratch))
        row = weights.described_by_folder(row, path)
        return fingerprint(row, cfg, cfg.input_size or row.input_size, grid, hub.checked_sha256(path))


def load_encoder(
    name: str, cfg: config.Teacher, grid: Grid, device: str, storage: config.Storage | None = None
) -> Encoder:
    """The teacher that a run calls `name`, ready to use.

    Args:
        grid: of the student's tokens, (rows, columns).
        device: a torch device; a teacher with `cfg.device == "mock"`, or the row "mock", sleeps on the CPU.
        storage: how to reach weights that are given by URI.

    Raises:
        EncoderError: no such model, no or wrong weights, an input size the model cannot take, tokens on no grid, too
            little memory.
    """
    mine = own.load_own(cfg.model) if own.is_own(cfg.model) else None  # once: a row of it would load it again
    row = mine[0] if mine else row_by_name(cfg.model)
    if min(grid) < 1:
        raise EncoderError(f"teacher {name} cannot answer on a grid of {grid[0]} x {grid[1]}; give the student's")
    if cfg.device == "mock" or row.architecture == "mock":
        where = torch.device("cpu")
        trunk = MockTrunk(row, grid, cfg.mock_seconds)
        return Encoder(name, row, trunk, with_precision(cfg, row, where), grid, grid, where, "mock")
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise EncoderError(
            f"teacher {name} is to run on {device}, but torch sees no CUDA device; set its device to cpu"
        )
    if mine:
        return own_encoder(name, cfg, mine, grid, where)
    refuse_size(row, cfg)  # before weights are fetched; `trunk_at` asks again for the row that a folder describes
    with tempfile.TemporaryDirectory(prefix="pathryoshka-") as scratch:
        path = weights.locate(row, cfg.weights, storage or config.Storage(), Path(scratch))
        row = weights.described_by_folder(row, path)
        sha256 = hub.checked_sha256(path)
        model = weights.load_model(row, path)
    return encoder_around(name, row, model, cfg, grid, where, sha256)


def encoder_around(
    name: str, row: Row, model: Any, cfg: config.Teacher, grid: Grid, where: torch.device, sha256: str
) -> Encoder:
    """The encoder of a row whose network is at hand; errors as `load_encoder`, of which it is the second half."""
    cfg = with_precision(cfg, row, where)
    try:
        with torch.no_grad():
            trunk, own_grid = trunk_at(model.to(where), row, cfg)
            trunk = trunk.to(where)
    except torch.OutOfMemoryError:
        raise EncoderError(f"teacher {name} does not fit on {where}; give it a device with more free memory") from None
    return Encoder(name, row, torch.compile(trunk) if cfg.compile else trunk, cfg, own_grid, grid, where, sha256)


def own_encoder(
    name: str, cfg: config.Teacher, mine: tuple[Row, nn.Module, Grid, str], grid: Grid, where: torch.device
) -> Encoder:
    row, module, own_grid, sha256 = mine
    if cfg.weights is not None or cfg.input_size not in (None, row.input_size):
        raise EncoderError(f"teacher {name} ({row.name}) sees to its weights and input_size itself; leave them out")
    trunk, cfg = module.to(where), with_precision(cfg, row, where)
    return Encoder(name, row, torch.compile(trunk) if cfg.compile else trunk, cfg, own_grid, grid, where, sha256)


def with_precision(cfg: config.Teacher, row: Row, where: torch.device) -> config.Teacher:
    """ "auto" settled: on a GPU what the row recommends, else fp32, which CPUs are quickest in. It is what was settled
    that stands in the fingerprint."""
    if cfg.precision != "auto":
        return cfg
    return cfg.model_copy(update={"precision": row.precision if where.type == "cuda" else "fp32"})


def trunk_at(model: Any, row: Row, cfg: config.Teacher) -> tuple[nn.Module, Grid]:
    """The model as a trunk for its input size, position embeddings resampled where it has any, made quick where it is
    convolutional; and the grid of its tokens.

    Raises:
        EncoderError: a size that is no whole number of tokens, or a model that takes one size only.
    """
    refuse_size(row, cfg)
    size = cfg.input_size or row.input_size
    try:
        feed(model, row, size)
        maps = model.forward_features(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        raise EncoderError(
            f"{row.name} cannot take views of {size} px ({weights.first_line(error)}); "
            f"set its input_size to {row.input_size}"
        ) from None
    _, own_grid = tokens_of(model, maps, row.num_prefix_tokens)
    trunk: nn.Module = Trunk(model, row)
    if maps.ndim == 4:
        on_cpu = next(model.parameters()).device.type == "cpu"
        trunk = quicken(trunk.cpu(), size, on_cpu, fp32=cfg.precision == "fp32" and not cfg.compile)
    return trunk, own_grid


def refuse_size(row: Row, cfg: config.Teacher) -> None:
    size = cfg.input_size or row.input_size
    if row.num_prefix_tokens and size % row.stride:
        near = max(1, round(size / row.stride)) * row.stride
        raise EncoderError(
            f"{row.name} cuts views into tokens of {row.stride} px; set its input_size to {near}, not {size}"
        )


def align_tokens(tokens_BND: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
    """Tokens of one grid, seen on another one over the same view: a side that shrinks is averaged over areas, a side
    that grows is interpolated linearly between the centres of tokens.

    Args:
        tokens_BND: row-major on `from_grid`.

    Returns:
        [B, h * w, D], row-major on `to_grid`.

    Raises:
        EncoderError: the number of tokens is not that of `from_grid`.
    """
    batch, num_tokens, dim = tokens_BND.shape
    height, width = from_grid
    if num_tokens != height * width or min(to_grid) < 1:
        raise EncoderError(
            f"{num_tokens} tokens on a grid of {height} x {width} cannot be aligned with {to_grid[0]} x {to_grid[1]}; "
            "take a teacher whose tokens are the patches of the view, and a student with a grid"
        )
    if from_grid == to_grid:
        return tokens_BND
    x_BDHW = tokens_BND.transpose(1, 2).reshape(batch, dim, height, width)
    shrunk = (min(height, to_grid[0]), min(width, to_grid[1]))
    if shrunk != from_grid:
        rows, columns = (area_weights(a, b).to(x_BDHW) for a, b in zip(from_grid, shrunk, strict=True))
        x_BDHW = rows @ x_BDHW @ columns.T
    if shrunk != to_grid:
        x_BDHW = F.interpolate(x_BDHW, size=to_grid, mode="bilinear", align_corners=False)
    return x_BDHW.flatten(2).transpose(1, 2)


def area_weights(num_from: int, num_to: int) -> Tensor:
    """[num_to, num_from]: the share of each new cell that each old cell covers, for any pair of numbers. (torch's
    adaptive pooling takes whole cells only: at 28 -> 16 its means lie up to a quarter of a token beside the place.)"""
    old, new = (torch.arange(n + 1, dtype=torch.float64) / n for n in (num_from, num_to))
    overlap = torch.minimum(old[1:], new[1:, None]) - torch.maximum(old[:-1], new[:-1, None])
    return overlap.clamp(min=0) * num_to


def sample_tokens(tokens_BND: Tensor, positions_BK: Tensor) -> Tensor:
    """The tokens at `positions_BK` (any integer type, 0 <= position < N) of each view: [B, K, D]."""
    index_BKD = positions_BK.to(tokens_BND.device, torch.int64).unsqueeze(-1).expand(-1, -1, tokens_BND.shape[-1])
    return tokens_BND.gather(1, index_BKD)
