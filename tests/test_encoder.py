"""Teachers from row and weights to features: real EfficientNet-Lite weights, small random ViTs, tokens on grids."""

from __future__ import annotations

import functools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pathryoshka import config
from pathryoshka.teachers import weights
from pathryoshka.teachers.encoder import Encoder, EncoderError, align_tokens, load_encoder, sample_tokens, trunk_at
from pathryoshka.teachers.fuse import quicken
from pathryoshka.teachers.trunk import Trunk, tokens_of
from pathryoshka.teachers.zoo import row_by_name

VIT = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "reg_tokens": 2}
VIT_NAME = "timm:vit_tiny_patch16_224"


@functools.cache
def lite(n: int = 0, grid: tuple[int, int] = (4, 4), **settings: Any) -> Encoder:
    settings = {"input_size": 128, "device": "cpu", **settings}
    return load_encoder(f"lite{n}", config.Teacher(model=f"efficientnet_lite{n}", **settings), grid, "cpu")


def views_of(num: int, size: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise: like tissue, it keeps its look when it is resized."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num, 9, 9, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC)) for x in coarse])


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as timm writes them, of a small ViT with registers and random weights."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **VIT)
    described = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 7,
        "model_args": VIT,
        "pretrained_cfg": {
            "architecture": "vit_tiny_patch16_224",
            "input_size": [3, 64, 64],
            "mean": [0.6, 0.5, 0.4],
            "std": [0.3, 0.2, 0.1],
            "classifier": "head",
            "num_classes": 7,
        },
    }
    (folder / "config.json").write_text(json.dumps(described))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def vit(folder: Path, **settings: Any) -> Encoder:
    teacher = config.Teacher(model=VIT_NAME, weights=str(folder), device="cpu", **settings)
    return load_encoder("vit", teacher, (4, 4), "cpu")


def test_lite_has_the_published_shape_and_its_mean_token_is_the_summary() -> None:
    encoder = lite()
    out = encoder(views_of(3, 128))
    assert (encoder.summary_dim, encoder.token_dim, encoder.own_grid) == (1280, 1280, (4, 4))
    assert out["summary"].shape == (3, 1280) and out["tokens"].shape == (3, 16, 1280)
    assert out["summary"].dtype == out["tokens"].dtype == torch.float32
    torch.testing.assert_close(out["tokens"].mean(1), out["summary"], rtol=1e-4, atol=1e-5)
    assert out["summary"].std(0).mean() > 0.01  # views differ
    # the packages name their files after the digest
    assert encoder.fingerprint["weights_sha256"].startswith("57934424")
    assert round((encoder.num_params + 1280 * 1000 + 1000) / 1e6, 2) == 4.65
    assert encoder.licence == "apache-2.0"
    assert not any(p.requires_grad for p in encoder.trunk.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("n", "size"), [(0, 128), (1, 100), (2, 130)])
def test_quickened_lite_is_the_plain_timm_model(n: int, size: int) -> None:
    """Sizes whose maps are odd somewhere: there TensorFlow pads both sides, elsewhere one."""
    encoder = lite(n, input_size=size)
    row = row_by_name(f"efficientnet_lite{n}")
    plain = weights.load_model(row, weights.locate(row, None, config.Storage(), Path()))
    views = views_of(2, size)
    x_BCHW = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    with torch.no_grad():
        maps = plain.forward_features(x_BCHW)
    summary, tokens = encoder.features(torch.from_numpy(views))
    assert any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.trunk.modules())  # type: ignore[attr-defined]
    map_BND = align_tokens(maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:]), (4, 4))
    assert ((tokens - map_BND).norm() / map_BND.norm()) < 1e-4
    assert ((summary - maps.mean((2, 3))).norm() / summary.norm()) < 1e-4


def test_modules_that_do_not_run_as_they_stand_are_left_alone() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)
            self.norm.running_mean = torch.tensor([5.0, -3, 2])

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.norm(self.second(self.first(x))),)

    crossed = Crossed().eval().requires_grad_(False)
    assert quicken(crossed, 16, on_cpu=True, fp32=True) is crossed and isinstance(crossed.norm, nn.BatchNorm2d)


def test_chunks_do_not_change_features() -> None:
    views = views_of(7, 128)
    whole, parts = lite(batch_size=64)(views), lite(batch_size=3)(views)
    for kind in whole:
        assert (whole[kind] - parts[kind]).norm() / whole[kind].norm() < 1e-5
    empty = lite()(views[:0])
    assert empty["summary"].shape == (0, 1280) and empty["tokens"].shape == (0, 16, 1280)


def test_targets_may_be_saved_for_backward_and_views_may_be_read_only() -> None:
    views = views_of(2, 128)
    views.flags.writeable = False  # as Ray hands them out
    target = lite()(views)["summary"]
    guess = torch.zeros_like(target, requires_grad=True)
    ((guess * target) ** 2).mean().backward()
    assert guess.grad is not None and not target.requires_grad


@pytest.mark.parametrize("size", [96, 224, 260])
def test_resizing_is_that_of_pil(size: int) -> None:
    encoder = lite()
    views = views_of(2, size) if size != 96 else views_of(2, 96, seed=3)
    got = (encoder.pixels(torch.from_numpy(views)) / encoder.scale + encoder.shift).permute(0, 2, 3, 1).numpy()
    wanted = np.stack([np.asarray(Image.fromarray(v).resize((128, 128), Image.Resampling.BICUBIC)) for v in views])
    assert got.shape == (2, 128, 128, 3)
    assert np.abs(got - wanted).max() < 2.01 and np.abs(got - wanted).mean() < 0.1


def test_pixels_are_normalised_by_the_rows_mean_and_std(vit_folder: Path) -> None:
    encoder = vit(vit_folder)
    views = views_of(1, 64)
    wanted = (views[0] / 255 - np.array([0.6, 0.5, 0.4])) / np.array([0.3, 0.2, 0.1])
    np.testing.assert_allclose(encoder.pixels(torch.from_numpy(views))[0].permute(1, 2, 0), wanted, atol=1e-5)


def test_vit_from_a_folder_says_what_timm_says(vit_folder: Path) -> None:
    encoder = vit(vit_folder)
    views = views_of(3, 64)
    theirs = timm.create_model(f"local-dir:{vit_folder}", pretrained=True).eval()
    with torch.no_grad():
        maps = theirs.forward_features(encoder.pixels(torch.from_numpy(views)))
    out = encoder(views)
    assert maps.shape[1] == 3 + 16
    torch.testing.assert_close(out["summary"], maps[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["tokens"], maps[:, 3:], rtol=1e-5, atol=1e-5)  # CLS and two registers left out
    row = replace(encoder.row, summary="cls+mean", summary_dim=96)
    joined, _ = Trunk(theirs, row)(encoder.pixels(torch.from_numpy(views)))
    torch.testing.assert_close(joined, torch.cat([maps[:, 0], maps[:, 3:].mean(1)], 1), rtol=1e-4, atol=1e-5)


def test_vit_takes_other_input_sizes_in_whole_tokens(vit_folder: Path) -> None:
    encoder = vit(vit_folder, input_size=96)
    assert encoder.own_grid == (6, 6)
    assert encoder(views_of(1, 64))["tokens"].shape == (1, 16, 48)
    with pytest.raises(EncoderError, match="set its input_size to 96, not 100"):
        vit(vit_folder, input_size=100)


def test_a_model_of_one_size_says_so(tmp_path: Path) -> None:
    row = replace(row_by_name("timm:vit_tiny_patch16_224"), name="fixed", num_prefix_tokens=0, stride=16)
    model = timm.create_model("mixer_s32_224", pretrained=False, num_classes=0).eval()
    with pytest.raises(EncoderError, match="cannot take views of 128 px .* input_size to 224"):
        trunk_at(model, row, config.Teacher(model="fixed", input_size=128))


def test_tokens_lie_row_by_row_on_the_grid() -> None:
    """A map whose tokens carry their own position, moved to other grids: numpy says where they must be."""
    rows, columns = np.meshgrid(np.arange(4.0), np.arange(6.0), indexing="ij")
    tokens_BND = torch.from_numpy(np.stack([rows.ravel(), columns.ravel(), rows.ravel() * 6 + columns.ravel()], -1))[
        None
    ]
    same = align_tokens(tokens_BND, (4, 6), (4, 6))
    assert torch.equal(same[0, :, 2], torch.arange(24.0, dtype=torch.float64))
    down = align_tokens(tokens_BND, (4, 6), (2, 3))[0].numpy().reshape(2, 3, 3)
    blocks = tokens_BND[0].numpy().reshape(2, 2, 3, 2, 3).mean((1, 3))
    np.testing.assert_allclose(down, blocks)
    assert down[0, 2, 1] == 4.5 and down[1, 0, 0] == 2.5
    up = align_tokens(tokens_BND, (4, 6), (8, 12))[0].numpy().reshape(8, 12, 3)
    centres = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    np.testing.assert_allclose(up[:, 0, 0], centres)
    np.testing.assert_allclose(up[0, :, 1], np.clip((np.arange(12) + 0.5) / 2 - 0.5, 0, 5))
    mixed = align_tokens(tokens_BND, (4, 6), (2, 12))[0].numpy().reshape(2, 12, 3)
    np.testing.assert_allclose(mixed[:, 0, 0], [0.5, 2.5])
    np.testing.assert_allclose(mixed[0, :, 1], np.clip((np.arange(12) + 0.5) / 2 - 0.5, 0, 5))
    seven_to_sixteen = align_tokens(torch.ones(2, 49, 5), (7, 7), (16, 16))
    assert torch.equal(seven_to_sixteen, torch.ones(2, 256, 5))


def test_what_changes_in_a_quarter_changes_the_tokens_there(vit_folder: Path) -> None:
    views = views_of(1, 128)
    for encoder in (lite(), vit(vit_folder), load_encoder("m", config.Teacher(model="mock"), (4, 4), "cpu")):
        tokens_BND = encoder(views)["tokens"]
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            changed = views.copy()
            quarter = changed[:, 64 * row : 64 * (row + 1), 64 * column : 64 * (column + 1)]
            quarter[:] = 255 - quarter
            moved = (encoder(changed)["tokens"] - tokens_BND).square().sum(-1, keepdim=True)
            assert int(align_tokens(moved, (4, 4), (2, 2)).argmax()) == 2 * row + column


def test_tokens_off_any_grid_are_refused() -> None:
    with pytest.raises(EncoderError, match="15 tokens on a grid of 4 x 4 cannot be aligned with 8 x 8"):
        align_tokens(torch.zeros(1, 15, 3), (4, 4), (8, 8))
    with pytest.raises(EncoderError, match="14 tokens behind 3 of prefix lie on no square grid"):
        tokens_of(None, torch.zeros(1, 17, 3), 3)
    with pytest.raises(EncoderError, match="grid of 0 x 4"):
        load_encoder("a", config.Teacher(model="mock"), (0, 4), "cpu")


def test_sampled_tokens_are_those_at_the_positions() -> None:
    tokens_BND = torch.arange(2 * 6 * 3).view(2, 6, 3).float()
    positions_BK = torch.tensor([[5, 0, 2, 2], [1, 1, 4, 3]], dtype=torch.int32)
    got = sample_tokens(tokens_BND, positions_BK).numpy()
    wanted = np.stack([tokens_BND[b].numpy()[positions_BK[b].numpy()] for b in range(2)])
    np.testing.assert_array_equal(got, wanted)


def test_half_precision_answers_in_fp32_and_nearly_the_same() -> None:
    views = views_of(2, 128)
    full, half = lite()(views)["summary"], lite(precision="bf16")(views)["summary"]
    assert half.dtype == torch.float32
    assert 1e-4 < (full - half).norm() / full.norm() < 0.15


def test_fingerprint_names_what_features_depend_on(vit_folder: Path) -> None:
    base = lite()
    assert json.loads(json.dumps(base.fingerprint)) == base.fingerprint
    assert base.fingerprint["timm"] == timm.__version__ and base.fingerprint["summary"] == "pooled"
    plain = vit(vit_folder)
    others = [lite(1), vit(vit_folder, input_size=96), vit(vit_folder, precision="bf16")]
    assert len({e.digest for e in [base, plain, *others]}) == 5
    assert vit(vit_folder, batch_size=1).digest == plain.digest  # nothing that features do not depend on


def test_out_of_memory_names_the_batch_size_to_try() -> None:
    def full(x: torch.Tensor) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    encoder = load_encoder("lite0", config.Teacher(model="mock", batch_size=16), (4, 4), "cpu")
    encoder.trunk = full
    with pytest.raises(EncoderError, match="teachers.models.lite0.batch_size=8"):
        encoder(views_of(20, 64))
    with pytest.raises(EncoderError, match="batch_size=2"):
        encoder(views_of(5, 64))
    with pytest.raises(EncoderError, match="precision to bf16"):
        encoder(views_of(1, 64))


def test_views_of_another_kind_are_refused() -> None:
    encoder = lite()
    for wrong in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 3, 8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(EncoderError, match="uint8 .B, H, W, 3."):
            encoder(wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_said() -> None:
    with pytest.raises(EncoderError, match="torch sees no CUDA device"):
        load_encoder("a", config.Teacher(model="efficientnet_lite0"), (4, 4), "cuda")


def test_mock_is_deterministic_depends_on_pixels_and_has_its_rows_widths() -> None:
    teacher = config.Teacher(model="virchow2", device="mock", batch_size=2)
    encoder = load_encoder("a", teacher, (4, 4), "cpu")
    views = views_of(5, 32)
    out = encoder(views)
    assert out["summary"].shape == (5, 2560) and out["tokens"].shape == (5, 16, 1280)
    again = load_encoder("b", teacher, (4, 4), "cpu")(views)
    assert all(torch.equal(out[kind], again[kind]) for kind in out)
    other = load_encoder("a", config.Teacher(model="mock:2560x1280"), (4, 4), "cpu")(views)
    assert not torch.allclose(other["summary"], out["summary"], atol=0.1)
    changed = views.copy()
    changed[:, -4:, :4] ^= 255
    moved = (encoder(changed)["tokens"] - out["tokens"]).norm(dim=-1)
    assert (moved.argmax(1) == 12).all()  # last row, first column
    spread = np.linalg.svd(out["tokens"].numpy().reshape(-1, 1280) - out["tokens"].numpy().mean((0, 1)))[1]
    assert (spread > 1e-2 * spread[0]).sum() > 40


def test_mock_sleeps_as_long_as_it_is_told() -> None:
    encoder = load_encoder("a", config.Teacher(model="mock", mock_seconds=0.01), (2, 2), "cpu")
    started = time.perf_counter()
    encoder(views_of(12, 32))
    assert time.perf_counter() - started >= 0.12
