"""The facts of teachers, against the models that timm builds from them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pathryoshka.teachers import table
from pathryoshka.teachers.trunk import Trunk, build, timm_row, tokens_of
from pathryoshka.teachers.zoo import ROWS, EncoderError, Row, row_by_name

LITE = [f"efficientnet_lite{n}" for n in range(3)]  # the pathology encoders are in test_rows.py


@pytest.mark.parametrize("name", LITE)
def test_row_agrees_with_the_model_it_builds(name: str) -> None:
    row = ROWS[name]
    model = build(row.architecture, row.model_args, "meta")
    assert sum(p.numel() for p in model.parameters()) == row.num_params
    x_BCHW = torch.zeros(2, 3, row.input_size, row.input_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        summary_BD, tokens_BND = Trunk(model, row)(x_BCHW)
    assert counter.get_total_flops() / 2e9 == pytest.approx(row.gflop, rel=0.01)
    _, grid = tokens_of(model, model.forward_features(x_BCHW), row.num_prefix_tokens)
    assert summary_BD.shape == (2, row.summary_dim)
    assert tokens_BND.shape == (2, grid[0] * grid[1], row.token_dim)
    assert grid[0] == grid[1] == -(-row.input_size // row.stride)
    assert getattr(model, "num_prefix_tokens", 0) == row.num_prefix_tokens


@pytest.mark.parametrize(
    ("name", "millions", "depth", "position_rows", "mlp"),
    [("virchow2", 631.24, 32, 261, 6832), ("uni2_h", 681.39, 24, 256, 8192), ("h_optimus_1", 1134.77, 40, 256, 8192)],
)
def test_published_trio_has_the_tensors_of_the_model_cards(
    name: str, millions: float, depth: int, position_rows: int, mlp: int
) -> None:
    row = row_by_name(name)
    tensors = build(row.architecture, row.model_args, "meta").state_dict()
    assert round(row.num_params / 1e6, 2) == millions
    assert tensors["pos_embed"].shape == (1, position_rows, row.token_dim)  # prefix rows only where the model has them
    assert tensors[f"blocks.{depth - 1}.mlp.fc1.weight"].shape == (mlp, row.token_dim)  # SwiGLU, packed
    assert f"blocks.{depth}.mlp.fc1.weight" not in tensors
    assert tensors["reg_token"].shape[1] == row.num_prefix_tokens - 1
    assert row.gated and row.derivatives is False and "nd" in row.licence


@pytest.mark.parametrize(("n", "millions"), [(0, 4.65), (1, 5.42), (2, 6.09)])
def test_lite_rows_count_their_parameters_without_the_classifier(n: int, millions: float) -> None:
    classifier = 1280 * 1000 + 1000
    assert round((row_by_name(f"efficientnet_lite{n}").num_params + classifier) / 1e6, 2) == millions


def test_every_row_is_complete_and_named_after_its_key() -> None:
    for name, row in ROWS.items():
        assert row.name == name
        assert len(row.mean) == len(row.std) == 3 and all(0 < x < 1 for x in (*row.mean, *row.std))
        assert row.licence and row.licence_source and row.facts_from
        if row.summary in ("cls", "cls+mean"):
            assert row.summary_dim == row.token_dim * (2 if row.summary == "cls+mean" else 1)
        if row.source.startswith(("hf:", "github:")):
            assert row.file.endswith((".bin", ".safetensors", ".pt", ".pth"))


def test_the_zoo_holds_the_encoders_that_it_promises() -> None:
    teachers = {name for name, row in ROWS.items() if row.role == "teacher" and row.source.startswith("hf:")}
    students = {name for name, row in ROWS.items() if row.role == "student"}
    assert teachers == {
        "virchow", "virchow2", "uni", "uni2_h", "h_optimus_0", "h_optimus_1", "h0_mini", "gigapath", "gigapath_flash",
        "phikon", "phikon_v2", "hibou_b", "hibou_l", "midnight_12k", "openmidnight", "gpfm", "conch_v1_5", "kaiko_s16",
        "kaiko_s8", "kaiko_b16", "kaiko_b8", "kaiko_l14", "lunit_s16", "lunit_s8",
    }  # fmt: skip
    assert students == {
        "pathryoshka_b", "distillpath_ks16", "distillpath_is16", "litefm", "litefm_s", "litefm_l", "pathagg_b",
        "pathagg_s",
    }  # fmt: skip


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Row)])
def test_a_row_without_a_field_does_not_import(field: str) -> None:
    facts = {f.name: getattr(ROWS["virchow2"], f.name) for f in dataclasses.fields(Row)}
    assert Row(**facts) == ROWS["virchow2"]
    del facts[field]
    with pytest.raises(TypeError, match=field):
        Row(**facts)


@pytest.mark.parametrize(
    ("name", "summary", "summary_dim", "token_dim", "prefix", "stride"),
    [
        ("vit_tiny_patch16_224", "cls", 192, 192, 1, 16),
        ("vit_small_patch14_reg4_dinov2", "cls", 384, 384, 5, 14),
        ("vit_base_patch16_siglip_224", "pooled", 768, 768, 0, 16),
        ("mobilenetv3_small_050", "pooled", 1024, 288, 0, 32),
        ("mobilenetv4_conv_small", "pooled", 1280, 960, 0, 32),
        ("swin_tiny_patch4_window7_224", "pooled", 768, 768, 0, 32),  # maps with channels last
        ("convnext_atto", "pooled", 320, 320, 0, 32),
    ],
)
def test_timm_rows_are_derived(
    name: str, summary: str, summary_dim: int, token_dim: int, prefix: int, stride: int
) -> None:
    row = row_by_name(f"timm:{name}")
    assert (row.summary, row.summary_dim, row.token_dim) == (summary, summary_dim, token_dim)
    assert (row.num_prefix_tokens, row.stride) == (prefix, stride)
    assert row.source == f"hf:timm/{row.source.removeprefix('hf:timm/')}" and row.licence in ("apache-2.0", "mit")
    assert row.derivatives is True


def test_timm_row_takes_arguments_and_facts_of_a_folder() -> None:
    facts = {"mean": [0.1, 0.2, 0.3], "input_size": [3, 64, 64], "license": "cc-by-nc-4.0", "interpolation": "bilinear"}
    row = timm_row("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 96}, facts)
    assert (row.token_dim, row.input_size, row.mean, row.interpolation) == (96, 64, (0.1, 0.2, 0.3), "bilinear")
    assert row.derivatives is None and row.licence == "cc-by-nc-4.0"


def test_mock_rows_have_the_widths_they_are_asked_for() -> None:
    row = row_by_name("mock:2560x1280")
    assert (row.summary_dim, row.token_dim, row.architecture) == (2560, 1280, "mock")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("virchow_2", "did you mean virchow2"),
        ("zzzz", "efficientnet_lite0, .* and timm:<name>"),
        ("timm:vit_tinny_patch16_224", "did you mean timm:vit_tiny_patch16_224"),
        ("mock:64", "did you mean mock"),
    ],
)
def test_an_unknown_teacher_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(EncoderError, match=hint):
        row_by_name(name)


def test_facts_need_neither_torch_nor_timm() -> None:
    code = "import sys, pathryoshka.teachers.zoo as z; z.row_by_name('mock'); print({'torch', 'timm'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_the_page_of_teachers_is_what_the_rows_say() -> None:
    said = (Path(__file__).parent.parent / "docs" / "teachers.md").read_text()
    assert said == table.page(), "stale: python -m pathryoshka.teachers.table > docs/teachers.md"
    for name, row in ROWS.items():
        if row.architecture != "mock":
            assert said.count(f"| `{name}` |") == 2 and f"* `{name}`: {row.facts_from}." in said
