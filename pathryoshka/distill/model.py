"""The one module that is trained, wrapped and saved: student and heads; and the moving average of its weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pathryoshka import config
from pathryoshka.student.encoder import StudentEncoder, build_student
from pathryoshka.student.heads import Heads, Preds

KINDS = ("summary", "tokens")


class Distiller(nn.Module):
    """uint8 views -> predictions of standardised teacher features, wrapped in a tuple of one.

    The tuple, and heads called without their hooks, are for ZeRO-3: its hooks take a dict that a module returns to be
    one of names, and ours has widths for keys.
    """

    def __init__(self, student: StudentEncoder, heads: Heads) -> None:
        super().__init__()
        self.student, self.heads = student, heads
        self.keep: torch.Tensor | None = None
        for parameter in self.parameters():
            parameter.register_hook(self.gate)

    def forward(
        self,
        views_u8_BHWC: torch.Tensor,
        token_pos_BK: torch.Tensor,
        summary_widths: Collection[int],
        token_widths: Collection[int],
    ) -> tuple[Preds]:
        """`token_pos_BK`: which tokens of the grid the teachers' are, row by row; with K = N they are all, in order."""
        z_BD, tokens_BND = self.student(self.student.normalise(views_u8_BHWC))
        if token_pos_BK.shape[1] < tokens_BND.shape[1]:
            index = token_pos_BK.long()[:, :, None].expand(-1, -1, tokens_BND.shape[-1])
            tokens_BND = tokens_BND.gather(1, index)
        return (self.heads.forward(z_BD, tokens_BND, summary_widths, token_widths),)

    def gate(self, gradient: torch.Tensor) -> torch.Tensor:
        """No gradient at all from a micro-batch whose loss is not finite; decided on the device, from `keep`."""
        return gradient if self.keep is None else torch.where(self.keep, gradient, 0.0)


def build_module(run: config.Run, dims: dict[str, tuple[int, int]]) -> Distiller:
    """Student and heads of a run; dims: teacher -> (summary width, token width)."""
    student = build_student(run.student, run.views.size, run.storage)
    widths = {name: {k: d for k, d in zip(KINDS, both, strict=True) if k in run.kinds} for name, both in dims.items()}
    return Distiller(student, Heads(run.student.widths, widths, run.student.heads, student.token_width))


class Ema:
    """Moving average of every floating-point weight and statistic of a module, in fp32; others are copied.

    Args:
        decay: share of the average that stays at an update, e.g. 0.999.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {
            name: (value.detach().float() if value.is_floating_point() else value.detach()).clone()
            for name, value in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """One step of the average; nothing is read from the device.

        Raises:
            ValueError: the weights are cut into shards (ZeRO-3), where no rank has them whole.
        """
        averages, values = [], []
        for name, value in module.state_dict().items():
            mine = self.state[name]
            if mine.shape != value.shape:
                raise ValueError("student.ema needs whole weights: set train.zero_stage to 0, 1 or 2, or student.ema=0")
            if value.is_floating_point():
                averages.append(mine)
                values.append(value.float())
            else:
                mine.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - self.decay)

    def save(self, path: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.state.items()}, path)

    def load(self, path: Path) -> None:
        saved = load_file(path)
        for name, value in self.state.items():
            value.copy_(saved[name])
