"""`tools/` of an export: complete, valid, and what its Python gives is what the golden vectors say.

The tools themselves judge them in tests/external; here THUNDER is only its abstract class.
"""

from __future__ import annotations

import abc
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import pathryoshka
from tests.exports import MODELS, SIZE, export

FILES = {
    "README.md", "eva.yaml", "eva_binary.yaml", "eva_parts.py", "export_onnx.py", "export_program.py", "hest_bench.py",
    "slide2vec_plugin/pathryoshka_slide2vec.py", "slide2vec_plugin/pyproject.toml", "student.py", "thunder_model.py",
}  # fmt: skip


class Thunders(torch.nn.Module, abc.ABC):
    """The abstract methods of thunder.models.PretrainedModel, as in thunder-bench 0.2.2."""

    @abc.abstractmethod
    def get_transform(self) -> Any: ...

    @abc.abstractmethod
    def get_linear_probing_embeddings(self, x: torch.Tensor) -> torch.Tensor: ...

    @abc.abstractmethod
    def get_segmentation_embeddings(self, x: torch.Tensor) -> torch.Tensor: ...


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    export(tmp_path / "export", request.param)
    return tmp_path / "export"


def run(file: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module in `file`, with its folder on the path, as Python and THUNDER run it."""
    monkeypatch.syspath_prepend(str(file.parent))
    monkeypatch.delitem(sys.modules, "student", raising=False)
    spec = importlib.util.spec_from_file_location(f"tool_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden_of(folder: Path) -> tuple[list[Image.Image], torch.Tensor]:
    tiles = [Image.open(folder / "golden" / f"{i}.png") for i in range(8)]
    return tiles, load_file(folder / "golden.safetensors")["vectors"]


def test_all_files_are_written_filled_and_valid(folder: Path) -> None:
    tools = folder / "tools"
    assert {str(path.relative_to(tools)) for path in tools.rglob("*") if path.is_file()} == FILES
    facts = json.loads((folder / "pathryoshka.json").read_text())
    for path in sorted(tools.rglob("*.*")):
        text = path.read_text()
        assert not re.search(r"@\{", text), path
        if path.suffix == ".py":
            compile(text, str(path), "exec")
    for name in ("eva.yaml", "eva_binary.yaml"):
        eva = yaml.safe_load((tools / name).read_text())
        head = eva["model"]["init_args"]["head"]["init_args"]
        assert head["in_features"] == f"${{oc.env:WIDTH, {facts['width']}}}"
        assert head["out_features"] == (1 if "binary" in name else "${oc.env:NUM_CLASSES}")
        views = eva["data"]["init_args"]["datasets"]["predict"][0]["init_args"]["transforms"]["init_args"]
        assert views == {key: facts[key] for key in ("size", "mean", "std")}
    plugin = tomllib.loads((tools / "slide2vec_plugin" / "pyproject.toml").read_text())
    assert plugin["project"]["entry-points"] == {
        "slide2vec.encoders": {"pathryoshka": "pathryoshka_slide2vec:register"}
    }


def test_the_plain_timm_student_gives_the_golden_vectors_cut_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = run(folder / "tools" / "student.py", monkeypatch)
    tiles, golden = golden_of(folder)
    whole = pathryoshka.load(folder)
    pixels = np.stack([np.asarray(tile) for tile in tiles])
    for width in (0, *whole.widths):
        model, transform = module.student(width)
        views = torch.stack([transform(tile) for tile in tiles])
        with torch.inference_mode():
            torch.testing.assert_close(model(views), golden[:, : width or None], rtol=1e-4, atol=1e-4)
            want = pathryoshka.load(folder, width or None).tokens(pixels)
            torch.testing.assert_close(model.tokens(views), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="trained for widths .*; got width=7"):
        module.student(7)


def test_thunders_file_fulfils_its_abstract_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = types.ModuleType("thunder.models")
    models.PretrainedModel = Thunders  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "thunder", types.ModuleType("thunder"))
    monkeypatch.setitem(sys.modules, "thunder.models", models)
    width = json.loads((folder / "pathryoshka.json").read_text())["widths"][0]
    monkeypatch.setenv("PATHRYOSHKA_WIDTH", str(width))
    model = run(folder / "tools" / "thunder_model.py", monkeypatch).PathryoshkaStudent().eval()
    tiles, golden = golden_of(folder)
    views = torch.stack([model.get_transform()(tile) for tile in tiles])
    with torch.inference_mode():
        torch.testing.assert_close(model.get_linear_probing_embeddings(views), golden[:, :width], rtol=1e-4, atol=1e-4)
        tokens, own = model.get_segmentation_embeddings(views), model.student.tokens(views)
        assert tokens.shape[2] == model.emb_dim and torch.equal(tokens[..., : own.shape[2]], own)
        assert not tokens[..., own.shape[2] :].any()
    assert model.emb_dim == width and model.name.endswith(f"_{width}")


def test_the_exported_program_gives_the_golden_vectors_at_another_batch_size(folder: Path, tmp_path: Path) -> None:
    tools = folder / "tools"
    program = tmp_path / "student.pt2"
    subprocess.run([sys.executable, str(tools / "export_program.py"), str(program)], check=True, timeout=300)
    tiles, golden = golden_of(folder)
    facts = json.loads((folder / "pathryoshka.json").read_text())
    mean, std = (torch.tensor(facts[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2).float().div(255)
    assert pixels.shape == (8, 3, SIZE, SIZE)
    with torch.inference_mode():
        got = torch.export.load(program).module()((pixels - mean) / std)
    torch.testing.assert_close(got, golden, rtol=1e-4, atol=1e-4)


def test_equal_exports_have_equal_bytes(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["folder"]
    export(tmp_path / "again", name)
    for path in (folder / "tools").rglob("*.*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()
