"""Every pathology encoder of the zoo: its shape at full depth without memory, and a cut copy saved in its authors'
layout, loaded by the path of a user's download, and run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pathryoshka import config
from pathryoshka.teachers import weights
from pathryoshka.teachers.encoder import Encoder, EncoderError, load_encoder
from pathryoshka.teachers.layouts import RENAMES
from pathryoshka.teachers.rows import STUDENTS, TEACHERS
from pathryoshka.teachers.trunk import AttentionPooler, Trunk, feed, network, tokens_of
from pathryoshka.teachers.zoo import ROWS, Row
from tests import layouts

PATHOLOGY = [row.name for row in (*TEACHERS, *STUDENTS)]
# what others print: parameters in millions (model cards, lazyslide, LitePath), GFLOP (lazyslide-models; those marked
# True saw the products of attention)
PARAMETERS = {
    "virchow": 631.23, "virchow2": 631.24, "uni": 303.35, "uni2_h": 681.39, "h_optimus_0": 1134.77, "h0_mini": 85.7,
    "gigapath": 1134.95, "gigapath_flash": 21.7, "phikon": 85.8, "phikon_v2": 303.4, "hibou_b": 85.7, "hibou_l": 303.7,
    "midnight_12k": 1140, "openmidnight": 1130, "gpfm": 303.23, "kaiko_l14": 304.37, "kaiko_b16": 85.8,
    "lunit_s16": 21.7, "pathryoshka_b": 85.73, "distillpath_ks16": 21.7, "litefm": 22.06, "litefm_s": 5.72,
    "litefm_l": 86.59,
}  # fmt: skip
GFLOP = {
    "gigapath_flash": (8.5, False), "phikon": (33.7, False), "h0_mini": (44.6, False), "hibou_b": (47.08, True),
    "phikon_v2": (119.29, False), "gpfm": (155.53, False), "hibou_l": (164.85, True), "virchow": (324, False),
    "virchow2": (329, False), "midnight_12k": (582.55, False), "h_optimus_0": (592, False),
}  # fmt: skip


@pytest.mark.parametrize("name", PATHOLOGY)
def test_a_row_is_what_timm_builds_from_it_at_full_depth(name: str) -> None:
    row = ROWS[name]
    model = network(row, "meta")
    own = dict(model.named_parameters())
    assert sum(p.numel() for p in own.values()) == row.num_params
    cls_has_a_row = row.num_pos == own["pos_embed"].shape[1] + 1  # in the authors' file, where timm folds it into CLS
    assert row.num_pos == own["pos_embed"].shape[1] or (cls_has_a_row and row.num_prefix_tokens == 5)
    assert len(model.blocks) == row.depth and model.blocks[0].attn.num_heads == row.num_heads
    assert own["patch_embed.proj.weight"].shape == (row.token_dim, 3, row.stride, row.stride)
    assert own["norm.weight"].shape == (row.token_dim,)
    assert model.num_prefix_tokens == row.num_prefix_tokens
    assert ("reg_token" in own and own["reg_token"].shape[1] == row.num_prefix_tokens - 1) or row.num_prefix_tokens == 1
    feed(model, row, row.input_size)
    side = row.input_size // row.stride
    with FlopCounterMode(display=False) as counter:
        summary, tokens = Trunk(model, row)(torch.zeros(1, 3, row.input_size, row.input_size, device="meta"))
    assert summary.shape == (1, row.summary_dim) and tokens.shape == (1, side * side, row.token_dim)
    assert counter.get_total_flops() / 1e9 == pytest.approx(row.gflop, rel=0.01)


def attention_gflop(row: Row) -> float:
    num_tokens = (row.input_size // row.stride) ** 2 + row.num_prefix_tokens
    return 4 * num_tokens**2 * row.token_dim * row.depth / 1e9


@pytest.mark.parametrize("name", PATHOLOGY)
def test_gflop_follow_from_parameters_and_tokens(name: str) -> None:
    """Every weight of a transformer is used once a token, in one multiplication and one addition."""
    row = ROWS[name]
    num_tokens = (row.input_size // row.stride) ** 2 + row.num_prefix_tokens
    by_hand = 2 * (row.num_params - row.num_pos * row.token_dim) * num_tokens / 1e9 + attention_gflop(row)
    assert row.gflop == pytest.approx(by_hand, rel=0.05)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_that_others_print(name: str) -> None:
    assert ROWS[name].num_params / 1e6 == pytest.approx(PARAMETERS[name], rel=0.005)


@pytest.mark.parametrize("name", GFLOP)
def test_gflop_are_those_that_others_print(name: str) -> None:
    published, with_attention = GFLOP[name]
    ours = ROWS[name].gflop - (0 if with_attention else attention_gflop(ROWS[name]))
    assert ours == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("name", [name for name in PATHOLOGY if ROWS[name].rename is not None])
def test_names_of_the_authors_file_become_exactly_those_of_the_network_at_full_depth(name: str) -> None:
    row = ROWS[name]
    model = network(row, "meta")
    published = layouts.theirs(row, model.state_dict())
    got = RENAMES[row.rename or ""](published, list(model.state_dict()))
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def views() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)


def loaded(row: Row, at: Path, **settings: Any) -> Encoder:
    side = row.input_size // row.stride
    teacher = config.Teacher(model=row.name, weights=str(at), device="cpu", **settings)
    return load_encoder(row.name, teacher, (side, side), "cpu")


@pytest.mark.parametrize("name", PATHOLOGY)
def test_a_cut_copy_in_the_authors_layout_says_what_its_network_says(
    name: str, tmp_path: Path, views: np.ndarray
) -> None:
    row = ROWS[name]
    depth = 2 if row.token_dim < 1024 else 1  # seconds less each
    folder, model = layouts.save(row, tmp_path, depth)
    encoder = loaded(row, folder)
    feed(model, row, row.input_size)
    with torch.no_grad():
        maps = model.forward_features(encoder.pixels(torch.from_numpy(views)))
    out = encoder(views)
    side = row.input_size // row.stride
    tokens = maps[:, row.num_prefix_tokens :]
    assert encoder.own_grid == (side, side) and out["tokens"].shape == (1, side * side, row.token_dim)
    torch.testing.assert_close(out["tokens"], tokens, rtol=1e-4, atol=1e-4)
    wanted = {
        "cls": lambda: maps[:, 0],
        "cls+mean": lambda: torch.cat([maps[:, 0], tokens.mean(1)], 1),
        "attention": lambda: model.summary_head(maps),
        "projected": lambda: model.summary_head(maps[:, 0]),
    }[row.summary]()
    torch.testing.assert_close(out["summary"], wanted, rtol=1e-4, atol=1e-4)
    assert encoder.summary_dim == row.summary_dim == out["summary"].shape[1]
    assert encoder.fingerprint["row"] == f"{name} with {depth} of {row.depth} blocks"
    assert encoder.fingerprint["model_args"]["depth"] == depth
    assert encoder.num_params == sum(p.numel() for p in network(weights.with_depth(row, depth), "meta").parameters())


@pytest.mark.parametrize("name", [row.name for row in TEACHERS if row.num_prefix_tokens > 1])
def test_registers_stand_between_cls_and_the_tokens(name: str) -> None:
    """With attention and MLPs put out of action a token is what was put into its place, after the last norm."""
    row = weights.with_depth(ROWS[name], 1)
    model = layouts.random_network(ROWS[name], 1)
    feed(model, row, row.input_size)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_(), block.attn.proj.bias.zero_()
            block.mlp.fc2.weight.zero_(), block.mlp.fc2.bias.zero_()
        pixels = torch.randn(1, 3, row.input_size, row.input_size)
        before, _ = tokens_of(model, model.forward_features(pixels), row.num_prefix_tokens)
        summary = Trunk(model, row)(pixels)[0][:, : row.token_dim]
        model.reg_token += torch.randn(model.reg_token.shape)
        maps = model.forward_features(pixels)
        after, _ = tokens_of(model, maps, row.num_prefix_tokens)
        patches = model.patch_embed(pixels).reshape(after.shape) + model.pos_embed[:, -after.shape[1] :]
        assert torch.equal(before, after) and torch.equal(summary, maps[:, 0])
        torch.testing.assert_close(after, model.norm(patches), rtol=1e-4, atol=1e-4)
        cls = model.cls_token + (0 if model.no_embed_class else model.pos_embed[:, :1])
        torch.testing.assert_close(maps[:, :1], model.norm(cls), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["litefm_s", "phikon", "lunit_s16"])
def test_a_file_of_the_wrong_tensors_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    folder, model = layouts.save(row, tmp_path, depth=1)
    file = folder / Path(row.file).name
    whole_file = layouts.theirs(row, model.state_dict())
    missing = next(k for k in whole_file if k.endswith("bias") and ".att" in k)
    broken = {
        "is missing": {k: v for k, v in whole_file.items() if k != missing},
        "is left over": {**whole_file, "decoder.weight": torch.zeros(2)},
        "and should be": layouts.theirs(row, layouts.random_network(layouts.narrower(row), 1).state_dict()),
    }
    for words, state in broken.items():
        layouts.write_tensors(state, file)
        with pytest.raises(EncoderError, match=words) as caught:
            loaded(row, folder)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    file.write_text("<!DOCTYPE html><html><title>401</title></html>")
    with pytest.raises(EncoderError, match="is a web page .* not weights; log in"):
        loaded(row, folder)


def test_weights_of_one_row_are_refused_by_another(tmp_path: Path) -> None:
    """Widths, registers and layouts tell them apart; of one shape only the digest does."""
    folder, _ = layouts.save(ROWS["lunit_s16"], tmp_path, depth=1)
    for name in ("phikon", "litefm", "gigapath_flash", "uni", "kaiko_s8"):
        row = ROWS[name]
        with pytest.raises(EncoderError, match="does not (hold|fit)"):
            weights.load_model(weights.with_depth(row, 1), folder / "model.safetensors")


def test_training_checkpoints_of_gpfm_are_taken_as_well(tmp_path: Path) -> None:
    """What its GitHub release holds: the teacher of DINOv2's training, blocks in chunks, beside the heads."""
    row = weights.with_depth(ROWS["gpfm"], 2)
    model = layouts.random_network(ROWS["gpfm"], 2)
    state = {f"backbone.{k.replace('blocks.', 'blocks.0.')}": v for k, v in model.state_dict().items()}
    state |= {"dino_head.mlp.0.weight": torch.zeros(3), "backbone.mask_token": torch.zeros(1, 1024)}
    torch.save({"teacher": state}, tmp_path / "GPFM.pth")
    got = weights.load_model(row, tmp_path / "GPFM.pth").state_dict()
    assert got.keys() == model.state_dict().keys()
    assert all(torch.equal(got[k], v) for k, v in model.state_dict().items())


def test_the_attention_pooler_is_one_query_over_all_tokens() -> None:
    """In numpy: layer norms, eight heads, softmax of scaled products, no biases but those of the norms."""
    torch.manual_seed(0)
    pooler = AttentionPooler(24, 16)
    for tensor in pooler.parameters():
        torch.nn.init.normal_(tensor)
    x_BND = torch.randn(2, 5, 24)
    p = {k: v.numpy().astype(np.float64) for k, v in pooler.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    query = norm(p["query"], "ln_q") @ p["to_q.weight"].T
    keys, values = np.split(norm(x_BND.numpy().astype(np.float64), "ln_k") @ p["to_kv.weight"].T, 2, -1)
    heads = []
    for part in (slice(2 * h, 2 * h + 2) for h in range(8)):
        score = keys[..., part] @ query[0, part] / np.sqrt(2)
        weight = np.exp(score) / np.exp(score).sum(1, keepdims=True)
        heads.append((weight[..., None] * values[..., part]).sum(1))
    wanted = norm(np.concatenate(heads, -1) @ p["to_out.weight"].T, "norm")
    np.testing.assert_allclose(pooler(x_BND).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "scale"), [("conch_v1_5", 28.1 / 14), ("midnight_12k", 16 / 37)])
def test_positions_are_resampled_as_the_authors_do(name: str, scale: float) -> None:
    """Cubic convolution (Keys, a = -0.75) by hand along either axis; DINO's code takes the new side 0.1 too long."""
    row = weights.with_depth(ROWS[name], 1)
    model = network(row, "cpu")
    old, new = model.patch_embed.grid_size[0], row.input_size // row.stride
    line = np.random.default_rng(0).normal(size=old)
    with torch.no_grad():
        model.pos_embed[0, 1:, 0] = torch.from_numpy(np.repeat(line, old))
        model.pos_embed[0, 1:, 1] = torch.from_numpy(np.tile(line, old))
        model.pos_embed[0, 0] = 7
    feed(model, row, row.input_size)

    def kernel(d: float) -> float:
        d = abs(d)
        near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        return near if d <= 1 else far if d < 2 else 0

    places = (np.arange(new) + 0.5) / scale - 0.5
    taps = [range(int(np.floor(x)) - 1, int(np.floor(x)) + 3) for x in places]
    wanted = [
        sum(kernel(x - t) * line[min(max(t, 0), old - 1)] for t in ts) for x, ts in zip(places, taps, strict=True)
    ]
    got = model.pos_embed[0].numpy()
    assert got.shape[0] == 1 + new * new and (got[0] == 7).all()
    np.testing.assert_allclose(got[1:, 0].reshape(new, new), np.repeat(wanted, new).reshape(new, new), atol=1e-5)
    np.testing.assert_allclose(got[1:, 1].reshape(new, new), np.tile(wanted, (new, 1)), atol=1e-5)


def test_a_github_release_says_what_to_unpack() -> None:
    with pytest.raises(EncoderError, match="unpack https://github.com/caiyu6666/.*ckpts.zip and name its ckpts/LiteFM"):
        weights.look(ROWS["litefm"], None, config.Storage())


def test_positions_for_another_size_are_taken_from_the_file(tmp_path: Path) -> None:
    """Midnight's file has 1370 rows or 257: both give 16 x 16 tokens at 224 px, the second without resampling."""
    row = ROWS["midnight_12k"]
    small = replace(row, model_args={**row.model_args, "img_size": 224})
    folder, model = layouts.save(small, tmp_path, depth=1)
    encoder = loaded(row, folder)
    assert encoder.own_grid == (16, 16)
    assert torch.equal(encoder.trunk.model.pos_embed, model.pos_embed)  # type: ignore[attr-defined]
