"""Heads: from the first d numbers of the student to a whole teacher feature, for each width d, teacher and kind.

Targets are never cut: a teacher's channels have no order, so each width predicts all of them. `separate` has one head a
(width, teacher, kind) as MRL does; `tied` (MRL-E) has one a (teacher, kind) whose first layer is sliced to the width.
Linear heads (`hidden=0`) keep the quality in the embedding, where probes and searches look for it; with a hidden layer
(Linear-LayerNorm-GELU-Linear, as AM-RADIO) the last linear is where a standardiser is folded in at export.

Letters: B views, N tokens, D width of the student, Dt width of a teacher's feature.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn

from pathryoshka import config

Preds = dict[int, dict[str, dict[str, torch.Tensor]]]
"""width -> teacher -> "summary" | "tokens" -> [B, Dt] or [B, N, Dt]."""


class SlicedLinear(nn.Linear):
    """A linear layer that takes any prefix of its input: W[:, :d] x + b."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight[:, : x.shape[-1]], self.bias)


class Heads(nn.Module):
    """The heads of a student.

    Args:
        widths: ascending, the last one the full width.
        dims: teacher -> kind -> Dt; a kind that is not named gets no head.
        token_width: length of a student token where it differs from the full width.
    """

    def __init__(
        self,
        widths: Collection[int],
        dims: Mapping[str, Mapping[str, int]],
        cfg: config.Heads,
        token_width: int | None = None,
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.dims = {teacher: dict(kinds) for teacher, kinds in dims.items()}
        self.tied = cfg.kind == "tied"
        self.lengths = {"summary": self.widths[-1], "tokens": token_width or self.widths[-1]}
        self.layers = nn.ModuleDict()
        for teacher, kind, width in self.places():
            target = self.dims[teacher][kind]
            self.layers[self.key(teacher, kind, width)] = make_head(self.cut(kind, width), target, cfg.hidden)

    def forward(
        self,
        z_BD: torch.Tensor,
        tokens_BND: torch.Tensor,
        summary_widths: Collection[int],
        token_widths: Collection[int],
    ) -> Preds:
        """Predictions of standardised features at the widths asked for, and no others."""
        inputs = {"summary": z_BD, "tokens": tokens_BND}
        asked = {"summary": summary_widths, "tokens": token_widths}
        used = "summary" if summary_widths else "tokens"
        if torch.is_grad_enabled():
            inputs[used] = inputs[used] + self.idle(inputs, asked)
        preds: Preds = {}
        for kind, x in inputs.items():
            for width in self.widths_of(kind, asked[kind]):
                prefix = x[..., : self.cut(kind, width)]
                for teacher, kinds in self.dims.items():
                    if kind in kinds:
                        head = self.layers[self.key(teacher, kind, width)]
                        preds.setdefault(width, {}).setdefault(teacher, {})[kind] = head(prefix)
        return preds

    def idle(self, inputs: dict[str, torch.Tensor], asked: dict[str, Collection[int]]) -> torch.Tensor:
        """A zero that depends on every head that is not asked, by way of no rows at all.

        It gives them a gradient of exactly 0 where they would have none. Without it ZeRO-3 applies their last gradient
        once more, and the other stages and plain PyTorch do not agree on what Adam does with none.
        """
        zero = inputs["summary"].new_zeros(())
        for teacher, kind, width in self.places():
            if not asked[kind] if self.tied else width not in asked[kind]:
                nothing = inputs[kind][:0, ..., : self.cut(kind, width)]
                zero = zero + self.layers[self.key(teacher, kind, width)](nothing).sum()
        return zero

    def places(self) -> Iterator[tuple[str, str, int]]:
        """(teacher, kind, width) of each head; a tied one stands at the full width."""
        for teacher, kinds in self.dims.items():
            for kind in kinds:
                for width in self.widths[-1:] if self.tied else self.widths_of(kind, self.widths):
                    yield teacher, kind, width

    def widths_of(self, kind: str, asked: Collection[int]) -> tuple[int, ...]:
        """Of the widths asked for, those that are different inputs: all that hold every number of a token are one."""
        return tuple(w for w in asked if w < self.lengths[kind] or w == self.widths[-1])

    def cut(self, kind: str, width: int) -> int:
        """How many numbers of a summary or token a width takes: at the full width all, whatever a token's length."""
        return self.lengths[kind] if width == self.widths[-1] else min(width, self.lengths[kind])

    def key(self, teacher: str, kind: str, width: int) -> str:
        """A name that a ModuleDict takes and that belongs to one teacher only: dots and slashes are escaped."""
        escaped = teacher.replace("%", "%25").replace(".", "%2E").replace("/", "%2F")
        return f"{kind}_{'tied' if self.tied else width}_{escaped}"

    def final_linears(self) -> Iterator[tuple[str, str, int, nn.Linear]]:
        """(teacher, kind, width, last linear layer) of each head; a tied one comes with the full width.

        Whoever un-standardises the predictions folds the inverse into these weights and biases. A slice of a folded
        tied layer is the folded slice: folding acts on rows, slicing on columns.
        """
        for teacher, kind, width in self.places():
            head = self.layers[self.key(teacher, kind, width)]
            last = list(head.children())[-1] if isinstance(head, nn.Sequential) else head
            assert isinstance(last, nn.Linear)
            yield teacher, kind, width, last


def make_head(length: int, target: int, hidden: int) -> nn.Module:
    if not hidden:
        return SlicedLinear(length, target)
    return nn.Sequential(SlicedLinear(length, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, target))
