"""From a row to a module: pixels in, summary and tokens out, on the model's own grid, with nothing left to choose."""

from __future__ import annotations

import difflib
import hashlib
import math
import time
from collections.abc import Mapping
from typing import Any

import timm
import timm.layers
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pathryoshka.teachers.row import EncoderError, Row

OPEN_LICENCES = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0")
Grid = tuple[int, int]


def build(architecture: str, model_args: Mapping[str, Any], device: str) -> Any:
    """The timm model of a row without its classifier, in eval mode; its weights are random, or none on "meta"."""
    args = dict(model_args)
    if isinstance(args.get("mlp_layer"), str):
        args["mlp_layer"] = getattr(timm.layers, args["mlp_layer"])
    with torch.device(device):
        model = timm.create_model(architecture, pretrained=False, num_classes=0, **args)
    return model.eval().requires_grad_(False)


def network(row: Row, device: str) -> Any:
    """The model of a row, with the part that makes its summary where timm has none; as `build` gives it."""
    model = build(row.architecture, row.model_args, device)
    with torch.device(device):
        if row.summary == "attention":
            model.summary_head = AttentionPooler(row.token_dim, row.summary_dim)
        elif row.summary == "projected":
            norm = nn.LayerNorm(row.summary_dim, eps=1e-6)
            model.summary_head = nn.Sequential(nn.Linear(row.token_dim, row.summary_dim), nn.GELU(), norm)
    return model.eval().requires_grad_(False)


class AttentionPooler(nn.Module):
    """One learned query that attends to all tokens, CLS among them: the pooling of CoCa, as CONCH v1.5 has it."""

    def __init__(self, token_dim: int, dim: int, num_heads: int = 8):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.ln_q, self.ln_k, self.norm = nn.LayerNorm(dim), nn.LayerNorm(token_dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(token_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        batch = tokens_BND.shape[0]
        query = self.to_q(self.ln_q(self.query)).expand(batch, 1, -1)
        key, value = self.to_kv(self.ln_k(tokens_BND)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.norm(self.to_out(pooled))[:, 0]


def feed(model: Any, row: Row, size: int) -> None:
    """Makes a model ready for views of `size` px: rows of its position embedding are brought to the new grid once, in
    the way of the authors' code, so that features are theirs to the last digits."""
    native = getattr(getattr(model, "patch_embed", None), "img_size", None) or (row.input_size, row.input_size)
    if not hasattr(model, "set_input_size") or tuple(native) == (size, size):
        return
    before = getattr(model, "pos_embed", None)
    grid = model.patch_embed.grid_size if before is not None else None
    model.set_input_size(img_size=(size, size))
    if row.positions == "timm" or before is None or grid is None:
        return
    num_prefix = before.shape[1] - grid[0] * grid[1]
    x_1DHW = before[:, num_prefix:].transpose(1, 2).unflatten(2, grid)
    to: dict[str, Any] = {"size": model.patch_embed.grid_size}
    if row.positions == "dino":
        to = {"scale_factor": tuple((a + 0.1) / b for a, b in zip(model.patch_embed.grid_size, grid, strict=True))}
    x_1ND = F.interpolate(x_1DHW, mode="bicubic", align_corners=False, **to).flatten(2).transpose(1, 2)
    model.pos_embed = nn.Parameter(torch.cat([before[:, :num_prefix], x_1ND], 1), requires_grad=False)


def tokens_of(model: Any, maps: Tensor, num_prefix_tokens: int) -> tuple[Tensor, Grid]:
    """Tokens [B, N, D], row-major and without prefix, and their grid, of what `forward_features` returned.

    Raises:
        EncoderError: tokens that lie on no square grid, so that nobody can say where in the view they are.
    """
    if maps.ndim == 3:
        tokens_BND = maps[:, num_prefix_tokens:]
        side = math.isqrt(tokens_BND.shape[1])
        if side * side != tokens_BND.shape[1]:
            raise EncoderError(
                f"{tokens_BND.shape[1]} tokens behind {num_prefix_tokens} of prefix lie on no square grid and cannot "
                "be aligned with a student's; take a model whose tokens are the patches of the view"
            )
        return tokens_BND, (side, side)
    if str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC"):
        maps = maps.permute(0, 3, 1, 2)
    return maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3])


class Trunk(nn.Module):
    """A timm model read by the convention of its row: normalised pixels [B, 3, S, S] -> (summary [B, Ds],
    tokens [B, N, Dt]), tokens after the model's last norm."""

    def __init__(self, model: Any, row: Row):
        super().__init__()
        self.model, self.row = model, row

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.model.forward_features(x_BCHW)
        tokens_BND, _ = tokens_of(self.model, maps, self.row.num_prefix_tokens)
        if self.row.summary == "pooled":
            return self.model.forward_head(maps, pre_logits=True), tokens_BND
        if self.row.summary == "attention":
            return self.model.summary_head(maps), tokens_BND
        if self.row.summary == "projected":
            return self.model.summary_head(maps[:, 0]), tokens_BND
        if self.row.summary == "cls":
            return maps[:, 0], tokens_BND
        return torch.cat([maps[:, 0], tokens_BND.mean(1)], -1), tokens_BND


class MockTrunk(nn.Module):
    """A teacher that sleeps: features are sines of fixed random mixtures of the mean colours in and around each token,
    so they depend on the pixels, span many directions and cost next to nothing; two rows of other names differ."""

    def __init__(self, row: Row, grid: Grid, seconds_per_view: float):
        super().__init__()
        self.grid, self.seconds = grid, seconds_per_view
        seed = int.from_bytes(hashlib.sha256(row.name.encode()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        self.to_tokens = nn.Parameter(torch.randn(15, row.token_dim, generator=generator), requires_grad=False)
        self.to_summary = nn.Parameter(torch.randn(15, row.summary_dim, generator=generator), requires_grad=False)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        until = time.perf_counter() + self.seconds * x_BCHW.shape[0]
        height, width = self.grid
        cells = F.adaptive_avg_pool2d(x_BCHW, (2 * height, 2 * width))
        inside = F.pixel_unshuffle(cells, 2)
        whole = x_BCHW.mean((2, 3), keepdim=True).expand(-1, -1, height, width)
        colours_BNC = torch.cat([inside, whole], 1).flatten(2).transpose(1, 2)
        out = torch.sin(colours_BNC.mean(1) @ self.to_summary), torch.sin(colours_BNC @ self.to_tokens)
        time.sleep(max(0.0, until - time.perf_counter()))
        return out


def timm_row(name: str, model_args: Mapping[str, Any] | None = None, facts: Mapping[str, Any] | None = None) -> Row:
    """The row of a timm model from timm's own config of it, its shapes found by running it on the meta device.

    Args:
        model_args: beyond the architecture's own, as in the `config.json` of a timm folder.
        facts: what a folder's `pretrained_cfg` says otherwise (mean, std, input_size, interpolation, license ...).

    Raises:
        EncoderError: timm has no such model, or one that gives no features or none on a square grid.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        hint = f"did you mean timm:{near[0]}?" if near else "timm.list_models() lists them"
        raise EncoderError(f"unknown teacher 'timm:{name}'; {hint}")
    args = dict(model_args or {})
    model = build(name, args, "meta")
    known = {**model.pretrained_cfg, **(facts or {})}
    size = int(known["input_size"][-1])
    try:
        with FlopCounterMode(display=False) as counter:
            maps = model.forward_features(torch.zeros(1, 3, size, size, device="meta"))
        pooled = model.forward_head(maps, pre_logits=True)
    except (RuntimeError, AssertionError, TypeError, AttributeError, NotImplementedError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise EncoderError(f"timm:{name} gives no features at {size} px ({message}); take another model") from None
    num_prefix_tokens = int(getattr(model, "num_prefix_tokens", 0)) if maps.ndim == 3 else 0
    tokens_BND, grid = tokens_of(model, maps, num_prefix_tokens)
    is_vit = isinstance(model, timm.models.VisionTransformer)
    is_cls = num_prefix_tokens > 0 and getattr(model, "global_pool", None) in ("token", "")
    licence = str(known.get("license") or "unknown").lower()
    repository = known.get("hf_hub_id")
    return Row(
        name=f"timm:{name}",
        source=f"hf:{repository}" if repository else "none",
        file="model.safetensors" if repository else "",
        role="teacher",
        architecture=name,
        model_args=args,
        summary_dim=tokens_BND.shape[2] if is_cls else pooled.shape[-1],
        token_dim=tokens_BND.shape[2],
        input_size=size,
        stride=round(size / grid[0]),
        num_prefix_tokens=num_prefix_tokens,
        depth=len(model.blocks) if is_vit else 0,
        num_heads=model.blocks[0].attn.num_heads if is_vit else 0,
        num_pos=model.pos_embed.shape[1] if is_vit and model.pos_embed is not None else 0,
        positions="timm",
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
        interpolation="bilinear" if known.get("interpolation") == "bilinear" else "bicubic",
        mpp=(),
        licence=licence,
        licence_source=f"https://huggingface.co/{repository}" if repository else "timm's config",
        gated=False,
        derivatives=True if licence in OPEN_LICENCES else None,
        summary="cls" if is_cls else "pooled",
        num_params=sum(p.numel() for p in model.parameters()),
        gflop=counter.get_total_flops() / 1e9,
        precision="fp32",
        rename=None,
        facts_from=f"timm {timm.__version__}",
    )
