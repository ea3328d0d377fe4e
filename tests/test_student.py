"""The student against plain timm: the same embedding, tokens in their places, starts that fill every tensor."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from pathryoshka import config
from pathryoshka.student.encoder import StudentEncoder, StudentError, build_student

SWIN = {"model": "swin_tiny_patch4_window7_224", "model_args": {"depths": (1, 1, 1, 1), "embed_dim": 24}}
SIGLIP = {"model": "vit_base_patch16_siglip_224", "model_args": {"depth": 1}}
NO_WEIGHTS = {"model": "vit_small_patch16_18x2_224", "model_args": {"depth": 1}, "start": "timm"}
REG4 = {"model": "vit_small_patch14_reg4_dinov2", "model_args": {"embed_dim": 48, "depth": 2, "num_heads": 3}}
TINY = {"model": "vit_tiny_patch16_224", "model_args": {"embed_dim": 48, "depth": 2}}


def student(size: int, width: int, **fields: Any) -> StudentEncoder:
    torch.manual_seed(0)
    return build_student(config.Student(widths=(8, width), **fields), size).eval()


def noise(size: int, num: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (num, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("fields", "size", "width", "token_width", "grid"),
    [
        (REG4, 28, 48, 48, (2, 2)),
        (REG4 | {"pool": "avg"}, 42, 48, 48, (3, 3)),
        (TINY, 32, 48, 48, (2, 2)),
        ({"model": "mobilenetv3_small_050"}, 64, 1024, 288, (2, 2)),
        ({"model": "efficientnet_lite0"}, 64, 1280, 1280, (2, 2)),
        (SWIN, 64, 192, 192, (2, 2)),
    ],
)
def test_the_embedding_is_what_plain_timm_gives(
    fields: dict[str, Any], size: int, width: int, token_width: int, grid: tuple[int, int]
) -> None:
    ours = student(size, width, **fields)
    plain = timm.create_model(fields["model"], **ours.timm_args).eval()
    plain.load_state_dict(ours.timm_model.state_dict())
    x = ours.normalise(noise(size))
    with torch.no_grad():
        z, tokens = ours(x)
        features = plain.forward_features(x)
        assert torch.equal(z, plain(x))
        assert torch.equal(z, plain.forward_head(features, pre_logits=True))
    assert z.shape == (3, width) and ours.width == width
    assert tokens.shape == (3, grid[0] * grid[1], token_width)
    assert (ours.grid, ours.token_width) == (grid, token_width)
    if features.ndim == 3:
        expected = features[:, plain.num_prefix_tokens :]
    else:  # the channel axis is wherever its length stands; the rest is row by row
        rows = features.movedim(1, -1) if features.shape[1] == token_width else features
        expected = torch.stack([rows[:, i, j] for i in range(grid[0]) for j in range(grid[1])], 1)
    assert torch.equal(tokens, expected)


def test_a_token_stands_for_its_place_in_the_view() -> None:
    """Without attention a token sees only its own pixels; class token and registers must not shift the count."""
    ours = student(56, 48, **REG4)
    with torch.no_grad():
        for block in ours.timm_model.blocks:  # type: ignore[union-attr]
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
        view = noise(56, 1)
        other = view.clone()
        other[:, -14:, :14] = 255 - other[:, -14:, :14]  # bottom left: row 3, column 0 of 4 x 4
        changed = (ours(ours.normalise(view))[1] != ours(ours.normalise(other))[1]).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [12]


def test_averages_are_of_tokens_as_they_are_given() -> None:
    """With pool=avg the last norm stays before the pooling, where published weights have it."""
    ours = student(42, 48, **REG4, pool="avg")
    with torch.no_grad():
        z, tokens = ours(ours.normalise(noise(42)))
    np.testing.assert_allclose(z.numpy(), tokens.numpy().mean(1), atol=1e-6)


def test_normalise_is_the_published_arithmetic() -> None:
    ours = student(32, 48, **TINY)
    views = noise(32)
    want = (views.numpy().astype(np.float64) / 255 - np.array(ours.mean)) / np.array(ours.std)
    got = ours.normalise(views)
    assert got.shape == (3, 3, 32, 32) and got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy().transpose(0, 2, 3, 1), want, atol=2e-6)
    assert ours.mean == (0.5, 0.5, 0.5)  # AugReg's, not ImageNet's: the facts are the model's own
    assert ours.bfloat16().normalise(views).dtype == torch.bfloat16


def test_parameters_and_operations_are_counted() -> None:
    ours = student(32, 48, **TINY)
    d, n, hidden, depth, patch = 48, 5, 192, 2, 16
    weights = 3 * patch**2 * d + d + d + n * d + 2 * d  # patches, class token, positions, last norm
    weights += depth * (4 * d + d * 3 * d + 3 * d + d * d + d + d * hidden + hidden + hidden * d + d)
    assert ours.num_params == weights
    ops = 2 * (n - 1) * 3 * patch**2 * d
    ops += depth * 2 * (n * d * 3 * d + 2 * n * n * d + n * d * d + 2 * n * d * hidden)
    assert ours.gflops() == pytest.approx(ops / 1e9, rel=1e-9)


def test_building_leaves_batch_statistics_alone() -> None:
    ours = build_student(config.Student(model="mobilenetv3_small_050", widths=(1024,)), 64)
    assert ours.training and all(m.training for m in ours.modules())
    assert float(ours.timm_model.bn1.num_batches_tracked) == 0  # type: ignore[union-attr, arg-type]


def test_starts_from_a_file_and_from_an_exported_folder(tmp_path: Path) -> None:
    first = student(32, 48, **TINY)
    state = first.timm_model.state_dict()
    with_classifier = state | {"head.weight": torch.zeros(7, 48), "head.bias": torch.zeros(7)}
    save_file(with_classifier, tmp_path / "weights.safetensors")
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    folder = tmp_path / "export"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 0}))
    views = noise(32)
    for start in (tmp_path / "weights.safetensors", tmp_path / "weights.pth", folder):
        torch.manual_seed(99)
        again = build_student(config.Student(widths=(8, 48), start=str(start), **TINY), 32).eval()
        assert torch.equal(again(again.normalise(views))[0], first(first.normalise(views))[0])


def test_a_start_at_another_size_resamples_positions(tmp_path: Path) -> None:
    state = student(32, 48, **TINY).timm_model.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    larger = student(64, 48, start=str(tmp_path / "weights.safetensors"), **TINY)
    assert larger.grid == (4, 4)
    assert torch.equal(larger.timm_model.state_dict()["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])


def test_a_start_from_object_storage(tmp_path: Path) -> None:
    """Through the storage functions, for which a local folder is a URI like any other."""
    from pathryoshka.student.start import fetch_start

    state = student(32, 48, **TINY).timm_model.state_dict()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    for uri in (tmp_path, tmp_path / "model.safetensors"):
        got = fetch_start(config.Student(start=str(uri), **TINY), config.Storage())
        assert all(torch.equal(got[name], value) for name, value in state.items())
    with pytest.raises(StudentError, match="nowhere is not in object storage"):
        fetch_start(config.Student(start=str(tmp_path / "nowhere"), **TINY), config.Storage())


@pytest.mark.parametrize(
    ("fields", "size", "sentence"),
    [
        ({"model": "vit_tiny_patch_16_224"}, 32, "no timm model; did you mean vit_tiny_patch16_224"),
        (TINY, 32, "must end at the 48 numbers that vit_tiny_patch16_224 gives; set student.widths=[16, 48]"),
        (TINY | {"widths": (16, 48)}, 40, "views.size=40 is no multiple of vit_tiny_patch16_224's patches of 16 px"),
        (TINY | {"model_args": {"depht": 2}}, 32, "timm cannot build student.model=vit_tiny_patch16_224 with depht=2"),
        (TINY | {"model_args": {"img_size": 64}}, 32, "img_size=64 is not views.size=32"),
        (SIGLIP, 32, "no class token; set student.pool=avg"),
        (TINY | {"widths": (48,), "start": "nowhere.safetensors"}, 32, "nowhere.safetensors does not exist"),
        (NO_WEIGHTS, 32, "timm publishes no weights"),
    ],
)
def test_what_cannot_be_is_one_sentence(fields: dict[str, Any], size: int, sentence: str) -> None:
    with pytest.raises(StudentError, match=re.escape(sentence)) as raised:
        build_student(config.Student(**({"widths": (16, 50)} | fields)), size)
    assert "\n" not in str(raised.value)


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    state = student(32, 48, **TINY).timm_model.state_dict()
    file, folder = tmp_path / "weights.safetensors", tmp_path / "export"
    folder.mkdir()

    def refused(sentence: str, start: Path, **fields: Any) -> None:
        with pytest.raises(StudentError, match=re.escape(sentence)):
            build_student(config.Student(**({"widths": (8, 48), "start": str(start)} | TINY | fields)), 32)

    save_file({k: v for k, v in state.items() if k != "norm.bias"}, file)
    refused("norm.bias is missing; set student.model", file)
    save_file(state, file)
    refused("norm1.weight is missing (and 11 more)", file, model_args={"embed_dim": 48, "depth": 3})
    refused("is not in the model (and 11 more)", file, model_args={"embed_dim": 48, "depth": 1})
    refused("cls_token is (1, 1, 48) there and (1, 1, 24) here", file, model_args={"embed_dim": 24, "depth": 2})
    file.write_bytes(b"no weights at all")
    refused("cannot be read", file)
    refused("is no exported folder", folder)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_small_patch16_224"}))
    refused("holds a vit_small_patch16_224; set student.model=vit_small_patch16_224", folder)


def test_timm_weights_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def offline(name: str, pretrained: bool = False, **args: Any) -> Any:
        if pretrained:
            raise OSError("We couldn't connect to 'https://huggingface.co'\nand more lines")
        return real(name, **args)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(StudentError, match="cannot get the weights of mobilenetv3_small_050.*without a network set"):
        build_student(config.Student(model="mobilenetv3_small_050", start="timm", widths=(1024,)), 64)
