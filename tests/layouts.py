"""Random weights of every pathology encoder in the layout that its authors publish, written here from their
sources: the inverse of what the zoo reads, made without it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pathryoshka.teachers.trunk import network
from pathryoshka.teachers.weights import with_depth
from pathryoshka.teachers.zoo import Row

State = dict[str, Tensor]


def random_network(row: Row, depth: int, seed: int = 0) -> Any:
    """The row's network cut to `depth` blocks, every tensor random: nothing is left at an initial zero or one, where a
    mix-up would not show."""
    model = network(with_depth(row, depth), "meta").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = (torch.rand(tensor.shape, generator=generator) - 0.5) * 12**0.5  # twice as quick as normal
            if tensor.ndim > 1 and "token" not in name and name != "pos_embed":
                tensor.copy_(noise * (0.7 / tensor[0].numel() ** 0.5))
            elif name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")):
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.copy_(0.2 * noise)
    return model


def apart(state: State, names: tuple[str, str, str]) -> State:
    out = {}
    for key, value in state.items():
        if ".attn.qkv." in key:
            out |= {key.replace(".qkv.", f".{n}."): part.clone() for n, part in zip(names, value.chunk(3), strict=True)}
        else:
            out[key] = value
    return out


def swapped(state: State, pairs: list[tuple[str, str]]) -> State:
    out = {}
    for key, value in state.items():
        for old, new in pairs:
            key = key.replace(old, new)
        out[key] = value
    return out


def with_a_position_for_cls(state: State) -> State:
    """DINOv2 adds a position to CLS, timm's network with registers does not: one is taken off CLS."""
    first = torch.linspace(-1, 1, state["cls_token"].shape[-1], device=state["cls_token"].device).view(1, 1, -1)
    return {**state, "cls_token": state["cls_token"] - first, "pos_embed": torch.cat([first, state["pos_embed"]], 1)}


def as_transformers(state: State, vit: bool) -> State:
    if "reg_token" in state:
        state = with_a_position_for_cls(state)
    swiglu = state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]
    mlp = [(".mlp.fc1.", ".mlp.weights_in."), (".mlp.fc2.", ".mlp.weights_out.")] if swiglu else []
    if vit:
        mlp = [(".mlp.fc1.", ".intermediate.dense."), (".mlp.fc2.", ".output.dense.")]
        mlp += [(".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after.")]
    pairs = [
        (".attn.proj.", ".attention.output.dense."), (".attn.", ".attention.attention."), ("blocks.", "encoder.layer."),
        (".ls1.gamma", ".layer_scale1.lambda1"), (".ls2.gamma", ".layer_scale2.lambda1"), *mlp,
        ("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"),
        ("reg_token", "embeddings.register_tokens"),
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ]  # fmt: skip
    out = swapped(apart(state, ("query", "key", "value")), pairs)
    out = {f"layernorm.{k.removeprefix('norm.')}" if k.startswith("norm.") else k: v for k, v in out.items()}
    width = out["layernorm.weight"].shape[0]
    if vit:
        return {**out, "pooler.dense.weight": torch.zeros(width, width), "pooler.dense.bias": torch.zeros(width)}
    return {**out, "embeddings.mask_token": torch.zeros(1, width)}


def as_torch_hub(state: State) -> State:
    """dinov2_vitg14_reg of torch.hub."""
    pairs = [("reg_token", "register_tokens"), (".mlp.fc1.", ".mlp.w12."), (".mlp.fc2.", ".mlp.w3.")]
    width = state["norm.weight"].shape[0]
    return {**swapped(with_a_position_for_cls(state), pairs), "mask_token": torch.zeros(1, width)}


def as_conch(state: State) -> State:
    out = {}
    for key, value in state.items():
        if key.startswith("summary_head.norm."):
            key = key.replace("summary_head.norm.", "ln_contrast.")
        elif key.startswith("summary_head."):
            key = key.replace("summary_head.", "attn_pool_contrast.")
        else:
            key = f"trunk.{key}"
        out[key] = value
    return out


def as_litefm(state: State) -> State:
    return swapped(apart(state, ("proj_q", "proj_k", "proj_v")), [("summary_head.", "head.")])


def theirs(row: Row, state: State) -> State:
    """The tensors under the names of the row's file."""
    if row.rename == "transformers":
        return as_transformers(state, vit=row.name == "phikon")
    if row.rename == "conch":
        return as_conch(state)
    if row.rename == "litefm":
        return as_litefm(state)
    if row.name == "openmidnight":
        return as_torch_hub(state)
    return state


def save(row: Row, folder: Path, depth: int, seed: int = 0) -> tuple[Path, Any]:
    """A cut copy with random weights; returns the folder to name in a teacher's `weights`, and the network saved."""
    model = random_network(row, depth, seed)
    return write(row, folder, model.state_dict()), model


def write(row: Row, folder: Path, state: State) -> Path:
    """Tensors in the authors' layout: in the file as they name it, beside a config.json that says how many blocks."""
    file = folder / row.file
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(theirs(row, state), file)
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    timms = {"architecture": row.architecture, "model_args": {"depth": depth}}
    known = {"num_hidden_layers": depth} if row.rename == "transformers" else timms
    (file.parent / "config.json").write_text(json.dumps(known))
    return file.parent


def write_tensors(state: State, file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, file)
    else:
        torch.save(state, file)


def narrower(row: Row) -> Row:
    """The row with another MLP, as an error would have it."""
    return replace(row, model_args={**row.model_args, "mlp_ratio": 2.0})
