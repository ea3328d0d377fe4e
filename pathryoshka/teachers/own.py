"""A user's own encoder as a teacher, without a line of this package changed.

`model: "my_module:make_encoder"` names a function that takes nothing and returns a module and a mapping of facts:

    def make_encoder():
        module = MyNet()  # fp32 normalised pixels [B, 3, S, S] -> (summary [B, Ds], tokens [B, N, Dt])
        module.load_state_dict(torch.load("my.pth", weights_only=True))
        return module, {"input_size": 224, "mean": [.7, .6, .7], "std": [.2, .2, .2], "licence": "mit"}

Tokens are row-major on a square grid, without prefix. A package may give the function a short name instead: an entry
point in the group `pathryoshka.teachers`. The function runs in the driver and again in each Ray actor; on one machine
the working folder is searched for the module, on a cluster it is installed like any package.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pathryoshka.config import Section
from pathryoshka.teachers.row import EncoderError, Row
from pathryoshka.teachers.trunk import Grid

GROUP = "pathryoshka.teachers"
Colour = tuple[float, float, float]


class OwnFacts(Section):
    """What only its author can say of an encoder; the rest is measured."""

    input_size: int = Field(gt=0)
    mean: Colour
    std: Colour
    licence: str = Field(min_length=1)
    licence_source: str = "its author"
    derivatives: bool | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mpp: tuple[float, ...] = ()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    version: str = Field("1", description="to be raised when the code, not the weights, gives other features")


def entry_points() -> dict[str, str]:
    """Names that installed packages give their encoders, and the functions behind them."""
    return {point.name: point.value for point in metadata.entry_points(group=GROUP)}


def is_own(model: str) -> bool:
    return (":" in model and not model.startswith(("timm:", "mock:"))) or model in entry_points()


def function_of(model: str) -> Callable[[], Any]:
    """The function that `model` names; the working folder is searched last.

    Raises:
        EncoderError: no such module or function, or a module that does not import.
    """
    module, _, name = entry_points().get(model, model).partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script does not search it; Ray's workers do
    try:
        found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise EncoderError(
            f"teacher {model}: there is no module {error.name}; start in the folder it lies in, or install it"
        ) from None
    except AttributeError:
        raise EncoderError(f"teacher {model}: module {module} has no function {name}") from None
    except Exception as error:
        raise EncoderError(f"teacher {model}: {module} does not import: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise EncoderError(f"teacher {model}: {name} is a {type(found).__name__}; name a function")
    return found  # type: ignore[no-any-return]


def load_own(model: str) -> tuple[Row, nn.Module, Grid, str]:
    """(row, frozen module on the CPU, grid of its tokens, SHA-256 of its tensors) of a user's encoder, tried on two
    blank views.

    Raises:
        EncoderError: what the function returns is not what it should be; says what is wrong.
    """
    make = function_of(model)
    try:
        made = make()
    except Exception as error:
        raise EncoderError(f"teacher {model} could not be made: {type(error).__name__}: {error}") from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise EncoderError(f"teacher {model} must return (torch module, mapping of facts), not {kind_of(made)}")
    module, facts = made[0].eval().requires_grad_(False), facts_of(model, made[1])
    summary_dim, token_dim, side, gflop = tried(model, module, facts.input_size)
    row = Row(
        name=model,
        source=f"own:{entry_points().get(model, model)}",
        file="",
        role="teacher",
        architecture=type(module).__name__,
        model_args={"version": facts.version},
        summary_dim=summary_dim,
        token_dim=token_dim,
        input_size=facts.input_size,
        stride=round(facts.input_size / side),
        num_prefix_tokens=0,
        depth=0,
        num_heads=0,
        num_pos=0,
        positions="timm",
        mean=facts.mean,
        std=facts.std,
        interpolation=facts.interpolation,
        mpp=facts.mpp,
        licence=facts.licence.lower(),
        licence_source=facts.licence_source,
        gated=False,
        derivatives=facts.derivatives,
        summary="pooled",
        num_params=sum(p.numel() for p in module.parameters()),
        gflop=gflop,
        precision=facts.precision,
        rename=None,
        facts_from="its author; shapes and cost were measured",
    )
    return row, module, (side, side), sha256_of(module)


def facts_of(model: str, given: Any) -> OwnFacts:
    if not isinstance(given, Mapping):
        raise EncoderError(f"teacher {model} must return (torch module, mapping of facts), not {kind_of(given)} second")
    try:
        return OwnFacts.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        fields = ", ".join(OwnFacts.model_fields)
        raise EncoderError(f"teacher {model}: fact {key}: {first['msg']}; facts are {fields}") from None


def tried(model: str, module: nn.Module, size: int) -> tuple[int, int, int, float]:
    """(width of the summary, width of a token, side of the grid, GFLOP a view), measured on two blank views."""
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            out = module(torch.zeros(2, 3, size, size))
    except Exception as error:
        raise EncoderError(f"teacher {model} fails on fp32 [2, 3, {size}, {size}]: {error}") from error
    shapes = [tuple(x.shape) for x in out] if isinstance(out, tuple | list) else kind_of(out)
    if (
        isinstance(shapes, str)
        or len(shapes) != 2
        or (len(shapes[0]), len(shapes[1])) != (2, 3)
        or shapes[0][0] != 2
        or shapes[1][0] != 2
    ):
        raise EncoderError(f"teacher {model} must answer with (summary [B, Ds], tokens [B, N, Dt]), not {shapes}")
    side = math.isqrt(shapes[1][1])
    if side < 1 or side * side != shapes[1][1]:
        raise EncoderError(
            f"teacher {model} gives {shapes[1][1]} tokens, which lie on no square grid; leave out CLS and registers"
        )
    return shapes[0][1], shapes[1][2], side, counter.get_total_flops() / 2e9


def sha256_of(module: nn.Module) -> str:
    """Of names, types, shapes and bytes of all tensors: what a fingerprint knows weights by that lie in no one file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def kind_of(value: Any) -> str:
    return f"a {type(value).__name__}"
