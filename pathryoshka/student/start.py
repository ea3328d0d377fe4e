"""The weights a student starts from: random, timm's own, a file, or a folder exported earlier.

A start must fill every tensor of the model. A partial one looks like a start and is none, so what is missing, left over
or of another shape is refused by name; only a classifier may be left over.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model_pretrained, load_state_dict
from torch import nn

from pathryoshka import config


class StudentError(ValueError):
    """A student that cannot be built: the sentence says what to set instead."""


def timm_start(name: str, args: dict[str, Any]) -> nn.Module:
    """The model with timm's published weights, as timm itself adapts them to `args`."""
    if not is_model_pretrained(name):
        raise StudentError(f"timm publishes no weights of {name}; set student.start=random or a file of weights")
    try:
        return timm.create_model(name, pretrained=True, **args)
    except Exception as error:  # no network, no such file on the hub, tensors of another shape
        raise StudentError(
            f"student.start=timm cannot get the weights of {name} ({first_line(error)}); on a machine without a "
            "network set student.start to a file of weights, an exported folder, or random"
        ) from error


def load_start(model: nn.Module, cfg: config.Student, storage: config.Storage | None) -> None:
    """Fills `model` from the file, exported folder or URI that `cfg.start` names; refuses what is not this model's."""
    state = read_start(cfg, storage)
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        # timm's own adapter: older names of the same tensors, position embeddings of another grid.
        state = adapt(state, model) if adapt else state
    except Exception as error:
        raise StudentError(f"student.start={cfg.start} does not fit {cfg.model}: {first_line(error)}") from error
    facts: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    named = facts.get("classifier") or ()
    classifiers = (named,) if isinstance(named, str) else tuple(named)
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [
        f"{key} is {tuple(state[key].shape)} there and {tuple(value.shape)} here"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    surplus = [key for key in state if key not in own and key.rpartition(".")[0] not in classifiers]
    wrong += [f"{key} is not in the model" for key in surplus]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise StudentError(
            f"student.start={cfg.start} does not hold the weights of {cfg.model}: {wrong[0]}{more}; set student.model, "
            "model_args and pool to what the weights were made with"
        )
    model.load_state_dict(state, strict=False)  # only a classifier can be left over


def read_start(cfg: config.Student, storage: config.Storage | None) -> dict[str, torch.Tensor]:
    """Name -> tensor. An exported folder holds `config.json`, which must name the same architecture."""
    start = Path(cfg.start)
    if start.is_dir():
        described, weights = start / "config.json", start / "model.safetensors"
        if not described.is_file() or not weights.is_file():
            raise StudentError(
                f"student.start={cfg.start} is no exported folder: no config.json with model.safetensors"
            )
        architecture = json.loads(described.read_text()).get("architecture", "")
        if architecture.partition(".")[0] != cfg.model.partition(".")[0]:
            raise StudentError(f"student.start={cfg.start} holds a {architecture}; set student.model={architecture}")
        start = weights
    if start.is_file():
        try:
            return load_state_dict(str(start))  # safetensors, or a pickle of nothing but tensors
        except Exception as error:
            raise StudentError(f"student.start={cfg.start} cannot be read: {first_line(error)}") from error
    if storage is None:
        raise StudentError(
            f"student.start={cfg.start} does not exist; set random, timm, or a file or folder of weights"
        )
    return fetch_start(cfg, storage)


def fetch_start(cfg: config.Student, storage: config.Storage) -> dict[str, torch.Tensor]:
    """A file or exported folder in object storage, by way of a temporary folder."""
    from pathryoshka.storage import exists, join, read_bytes

    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        names = ("config.json", "model.safetensors")
        if all(exists(join(cfg.start, name), storage) for name in names):
            for name in names:
                (local / name).write_bytes(read_bytes(join(cfg.start, name), storage))
        elif exists(cfg.start, storage):
            local = local / cfg.start.rpartition("/")[2]
            local.write_bytes(read_bytes(cfg.start, storage))
        else:
            raise StudentError(f"student.start={cfg.start} is not in object storage; set another file or folder")
        try:
            return read_start(cfg.model_copy(update={"start": str(local)}), None)
        except StudentError as error:
            raise StudentError(str(error).replace(str(local), cfg.start)) from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
