"""The student: a timm model whose embedding is exactly what plain timm gives, plus the tokens it came from.

The embedding is `timm_model(x)` with `num_classes=0` and nothing of ours behind it, because what is trained must be
what is shipped: an exported folder needs no package of ours, and a width d is its first d numbers. A vision transformer
gives its class token (`pool="token"`) or the mean of its tokens (`"avg"`), a convolutional trunk its pooled map. Tokens
are the patch tokens without prefix, or the last map, row by row. They may be narrower or wider than the embedding
(MobileNetV3 pools 288 channels and then widens them to 1024), hence `token_width` beside `width`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pathryoshka import config
from pathryoshka.student.start import StudentError, first_line, load_start, timm_start


class StudentEncoder(nn.Module):
    """`forward`: views_BCHW, normalised -> (z [B, width], tokens [B, h*w, token_width]).

    Attributes:
        timm_model: the network; `timm_args` are the arguments that make `timm.create_model(name, **timm_args)` build it
            again, `num_classes=0` among them.
        width, token_width: length of the embedding and of a token.
        grid: (h, w) of the tokens.
        size: side of the views in pixels.
        mean, std: per channel, of pixels in 0..1, as timm publishes them for this model.
    """

    def __init__(self, timm_model: nn.Module, name: str, timm_args: dict[str, Any], size: int) -> None:
        super().__init__()
        self.timm_model = timm_model
        self.name, self.timm_args, self.size = name, timm_args, size
        facts: dict[str, Any] = timm_model.pretrained_cfg  # type: ignore[assignment]
        self.mean: tuple[float, ...] = tuple(facts["mean"])
        self.std: tuple[float, ...] = tuple(facts["std"])
        self.num_prefix = int(getattr(timm_model, "num_prefix_tokens", 0))
        self.channels_last = False
        self.width, self.token_width, self.grid = self.look()

    def forward(self, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.timm_model.forward_features(x_BCHW)  # type: ignore[operator]
        z_BD = self.timm_model.forward_head(features)  # type: ignore[operator]
        if features.ndim == 3:
            return z_BD, features[:, self.num_prefix :]
        tokens = features if self.channels_last else features.permute(0, 2, 3, 1)
        return z_BD, tokens.flatten(1, 2)

    def normalise(self, views_u8_BHWC: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, 3] -> float [B, 3, H, W], in the type of the weights.

        Scalars instead of tensors of mean and std: nothing to copy to the device, nothing that bf16 could round. Each
        view stays channels-last in memory, which convolutions prefer.
        """
        x_BCHW = views_u8_BHWC.permute(0, 3, 1, 2).float()
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            x_BCHW[:, channel].sub_(255 * mean).mul_(1 / (255 * std))
        return x_BCHW.to(next(self.parameters()).dtype)

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.timm_model.parameters())

    def gflops(self, size: int | None = None) -> float:
        """Floating-point operations of one view in 1e9, a multiplication and an addition counted as two.

        Counted by running the matrix products and convolutions of one view of `size` pixels (default: the student's).
        """
        side = size or self.size
        weight = next(self.parameters())
        counter = FlopCounterMode(display=False)
        x = torch.zeros(1, len(self.mean), side, side, device=weight.device, dtype=weight.dtype)
        # Fused attention has no entry in the counter on every device; the plain form is two matrix products.
        with counter, evaluating(self), sdpa_kernel(SDPBackend.MATH):
            self(x)
        return counter.get_total_flops() / 1e9

    def look(self) -> tuple[int, int, tuple[int, int]]:
        """Width, token width and grid, from one view of zeros; refuses what is no map and no row of tokens."""
        x = torch.zeros(1, len(self.mean), self.size, self.size)
        with evaluating(self):
            features = self.timm_model.forward_features(x)  # type: ignore[operator]
            z = self.timm_model(x)
        if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4) or z.ndim != 2:
            raise StudentError(
                f"student.model={self.name} gives neither a feature map nor a row of tokens with one vector behind it; "
                "choose a ViT or a convolutional trunk, e.g. vit_small_patch14_reg4_dinov2 or mobilenetv3_small_050"
            )
        if features.ndim == 4:
            # Swin and its kin answer channels-last; their channels are what timm calls num_features.
            self.channels_last = features.shape[1] != self.timm_model.num_features
            h, w, token_width = features.shape[1:] if self.channels_last else (*features.shape[2:], features.shape[1])
            return z.shape[1], token_width, (h, w)
        num_tokens = features.shape[1] - self.num_prefix
        side = math.isqrt(num_tokens)
        if side * side != num_tokens:
            raise StudentError(
                f"student.model={self.name} gives {num_tokens} tokens for a square view, which are no square grid; "
                "choose a model whose tokens keep their place"
            )
        return z.shape[1], features.shape[2], (side, side)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and afterwards the mode that every sub-module was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def build_student(cfg: config.Student, size: int, storage: config.Storage | None = None) -> StudentEncoder:
    """The student of a run for views of `size` pixels, with the weights that `cfg.start` names, on the CPU in fp32.

    `storage` is needed only where `cfg.start` is a URI. Random weights follow torch's global seed.

    Raises:
        StudentError: unknown model, arguments, size or pool that do not fit it, widths that do not end at its full
            width, weights that are absent or belong to another model.
    """
    model, args = create(cfg, size)
    if cfg.start == "timm":
        model = timm_start(cfg.model, args)
    elif cfg.start != "random":
        load_start(model, cfg, storage)
    student = StudentEncoder(model, cfg.model, args, size)
    if cfg.widths[-1] != student.width:
        kept = [width for width in cfg.widths if width < student.width]
        raise StudentError(
            f"student.widths={list(cfg.widths)} must end at the {student.width} numbers that {cfg.model} gives; "
            f"set student.widths={[*kept, student.width]}"
        )
    return student


def create(cfg: config.Student, size: int) -> tuple[nn.Module, dict[str, Any]]:
    """The timm model without weights from elsewhere, and the arguments it was made with."""
    name, args = cfg.model, {**cfg.model_args, "num_classes": 0}
    base = name.partition(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them all"
        raise StudentError(f"student.model={name} is no timm model; {hint}")
    facts = timm.get_pretrained_cfg(name)
    if facts is not None and facts.fixed_input_size and args.setdefault("img_size", size) != size:
        raise StudentError(f"student.model_args.img_size={args['img_size']} is not views.size={size}; leave it out")
    model = call_timm(name, args)
    # Only models with prefix tokens offer a choice; a trunk pools its map whatever student.pool says.
    if hasattr(model, "num_prefix_tokens") and "global_pool" not in args and model.global_pool != cfg.pool:
        if cfg.pool == "token" and getattr(model, "cls_token", None) is None:
            raise StudentError(f"student.model={name} has no class token; set student.pool=avg")
        args["global_pool"] = cfg.pool
        if isinstance(model, VisionTransformer):
            # timm would move the last norm behind the pooling, where published weights do not have it and where
            # tokens would go without.
            args.setdefault("fc_norm", False)
        model = call_timm(name, args)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is not None and size % (side := patch[0] if isinstance(patch, tuple) else patch):
        fits = max(side, round(size / side) * side)
        raise StudentError(f"views.size={size} is no multiple of {name}'s patches of {side} px; set views.size={fits}")
    return model, args


def call_timm(name: str, args: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **args)
    except Exception as error:  # timm raises whatever the model's constructor does
        shown = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise StudentError(f"timm cannot build student.model={name} with {shown}: {first_line(error)}") from error
