"""Tokens of any grid, seen on the student's: a network that reads the mean colour of each patch is shown an image whose
colours say where they are, by the path that every teacher takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pathryoshka import config
from pathryoshka.teachers.encoder import Encoder, align_tokens, area_weights, load_encoder
from pathryoshka.teachers.zoo import ROWS
from tests import layouts

LOUD = 1000.0  # a constant so much louder than colours and positions that the last norm scales all tokens alike


def reader(name: str, folder: Path, grid: tuple[int, int], input_size: int | None = None) -> Encoder:
    """A teacher whose tokens hold, with both signs so that their mean is 0: normalised R, G, B, the row and column that
    their position says, and the constant."""
    row = ROWS[name]
    model = layouts.random_network(row, depth=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.norm.weight.fill_(1)
        for i in range(3):
            model.patch_embed.proj.weight[2 * i, i] = 1 / row.stride**2
            model.patch_embed.proj.weight[2 * i + 1, i] = -1 / row.stride**2
        model.patch_embed.proj.bias[10], model.patch_embed.proj.bias[11] = LOUD, -LOUD
        side = model.patch_embed.grid_size[0]
        centres = (torch.arange(side) + 0.5) / side
        positions = model.pos_embed[0, -side * side :]
        positions[:, 6], positions[:, 8] = centres.repeat_interleave(side), centres.repeat(side)
        positions[:, 7], positions[:, 9] = -positions[:, 6], -positions[:, 8]
    at = layouts.write(row, folder, model.state_dict())
    teacher = config.Teacher(model=name, weights=str(at), device="cpu", input_size=input_size)
    return load_encoder(name, teacher, grid, "cpu")


def read(encoder: Encoder, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the tokens say: colours 0..255 [h, w, 3], and positions 0..1 [h, w, 2]."""
    tokens = encoder(view[None])["tokens"][0]
    said = (tokens / tokens[:, 10:11] * LOUD).numpy().reshape(*encoder.grid, -1)
    colours = said[..., [0, 2, 4]] * np.array(encoder.row.std) + np.array(encoder.row.mean)
    return colours * 255, said[..., [6, 8]]


def ramp(size: int) -> np.ndarray:
    """Red says the row, green the column, blue nothing."""
    line = np.round((np.arange(size) + 0.5) / size * 255).astype(np.uint8)
    view = np.full((size, size, 3), 77, np.uint8)
    view[..., 0], view[..., 1] = line[:, None], line[None]
    return view


CASES = [  # the teacher's tokens come on 14 x 14, 16 x 16 (of 256 px), 28 x 28, 16 x 16, 32 x 32 (of 448 px), with
    ("lunit_s16", None, 14),  # and without registers
    ("lunit_s16", 256, 16),
    ("kaiko_s8", None, 28),
    ("pathagg_s", None, 16),
    ("pathagg_s", 448, 32),
    ("pathryoshka_b", None, 16),
    ("pathryoshka_b", 448, 32),
]


@pytest.mark.parametrize(("name", "input_size", "side"), CASES)
def test_tokens_carry_the_colour_and_the_position_of_their_place(
    name: str, input_size: int | None, side: int, tmp_path: Path
) -> None:
    for grid in (16, 7):
        encoder = reader(name, tmp_path, (grid, grid), input_size)
        assert encoder.own_grid == (side, side)
        colours, positions = read(encoder, ramp(224))
        centres = (np.arange(grid) + 0.5) / grid
        inside = slice(1, -1) if side < grid else slice(None)  # beyond the outermost centres nothing is extrapolated
        wanted = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1)[inside, inside]
        np.testing.assert_allclose(colours[inside, inside, :2] / 255, wanted, atol=0.005)
        np.testing.assert_allclose(colours[..., 2], 77, atol=0.5)
        np.testing.assert_allclose(positions[inside, inside], wanted, atol=0.01)


def test_a_patch_of_16_fed_256_px_sees_the_students_cells(tmp_path: Path) -> None:
    """224 px in 16 x 16 cells of any colour: resized to 256 px the cells of 14 px become the patches."""
    cells = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    view = cells.repeat(14, 0).repeat(14, 1)
    same, _ = read(reader("lunit_s16", tmp_path, (16, 16), 256), view)
    other, _ = read(reader("lunit_s16", tmp_path, (16, 16)), view)  # 14 x 14 patches that cut through cells
    assert np.abs(same - cells).max() < 12 and np.abs(same - cells).mean() < 4  # the resampling's blur at their borders
    assert np.abs(other - cells).mean() > 20


@pytest.mark.parametrize("side", [4, 7, 8, 9, 20])
@pytest.mark.parametrize("grid", [4, 7, 16])
def test_maps_of_convolutions_lie_where_their_cells_are(side: int, grid: int) -> None:
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    tokens_BND = torch.stack([centres.repeat_interleave(side), centres.repeat(side)], -1)[None]
    got = align_tokens(tokens_BND, (side, side), (grid, grid))[0].numpy().reshape(grid, grid, 2)
    wanted = np.clip((np.arange(grid) + 0.5) / grid, 0.5 / side, 1 - 0.5 / side)
    np.testing.assert_allclose(got[:, 0, 0], wanted, atol=(0.13 if side % grid else 1e-9) / side)  # of an old cell
    np.testing.assert_allclose(got[0, :, 1], wanted, atol=(0.13 if side % grid else 1e-9) / side)


def test_areas_are_shared_out_whole() -> None:
    weights = area_weights(28, 16)
    torch.testing.assert_close(weights.sum(1), torch.ones(16, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(0), torch.full((28,), 16 / 28, dtype=torch.float64))
    torch.testing.assert_close(weights[1, :5], torch.tensor([0, 1, 4, 2, 0], dtype=torch.float64) / 7)
