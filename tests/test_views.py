"""Views against arithmetic of their own: purity, geometry, the stain map in fp64, mixing, and what is refused."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathryoshka import config
from pathryoshka.tiles import views
from pathryoshka.tiles.views import TileError, ViewKey, decode, identity_view, shared_view, student_view

PLAIN = config.Views(size=64, scale=(1.0, 1.0), flip=False, quarter_turns=False, stain=0.0, mix_share=0.0)


def texture(seed: int, side: int = 224) -> np.ndarray:
    """Smooth random colours, so that JPEG and resampling have something to do."""
    small = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def coordinates(side: int = 240) -> np.ndarray:
    """Red is the column, green the row: a linear ramp, which linear resampling keeps except near its border."""
    ramp = np.arange(side, dtype=np.uint8)
    return np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], np.uint8(7)), axis=2)


def test_same_key_same_bytes_other_key_other_bytes() -> None:
    cfg = config.Views(size=96)
    tile, partner = texture(0), texture(1)
    base = ViewKey(3, "slide/0_0_224_500", None, 0)
    first = shared_view(tile, base, cfg, None)
    assert first.dtype == np.uint8 and first.shape == (96, 96, 3) and first.flags.c_contiguous and first.flags.writeable
    assert np.array_equal(first, shared_view(tile.copy(), ViewKey(3, "slide/0_0_224_500", None, 0), cfg, None))
    others = [
        ViewKey(3, "slide/0_0_224_500", None, 1),
        ViewKey(4, "slide/0_0_224_500", None, 0),
        ViewKey(3, "slide/0_224_224_500", None, 0),
    ]
    seen = {first.tobytes()} | {shared_view(tile, key, cfg, None).tobytes() for key in others}
    mixed = [shared_view(tile, ViewKey(3, "slide/0_0_224_500", name, 0), cfg, partner) for name in ("a", "b")]
    assert len(seen | {view.tobytes() for view in mixed}) == 6


def test_bytes_are_those_of_another_process(tmp_path: Path) -> None:
    """Neither process, hash seed nor global generators reach a view."""
    np.save(tmp_path / "tile.npy", texture(5))
    code = (
        "import sys, numpy as np, zlib; from pathryoshka import config; from pathryoshka.tiles.views import *\n"
        "np.random.seed(1); tile = np.load(sys.argv[1])\n"
        "print(zlib.crc32(shared_view(tile, ViewKey(1, 't', 'p', 9), config.Views(size=80), tile[::-1].copy())))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tile.npy")]
    there = subprocess.run(command, capture_output=True, text=True, check=True)
    np.random.seed(2)
    tile = texture(5)
    here = shared_view(tile, ViewKey(1, "t", "p", 9), config.Views(size=80), tile[::-1].copy())
    assert int(there.stdout) == zlib.crc32(here.tobytes())


def test_a_key_cannot_be_read_in_two_ways() -> None:
    draws = {
        ViewKey(1, tile, partner, 1).generator().random() for tile, partner in [("a", "b,1"), ("a,b", "1"), ("a", None)]
    }
    draws |= {ViewKey(1, "a", "None", 1).generator().random(), ViewKey(1, "a", "null", 1).generator().random()}
    assert len(draws) == 5


def test_whole_tile_at_its_own_size_is_the_tile() -> None:
    tile = texture(2, 64)
    assert np.array_equal(shared_view(tile, ViewKey(0, "t", None, 0), PLAIN, None), tile)


def test_crops_are_antialiased() -> None:
    """A grid of single pixels becomes grey when four of them make one; picking pixels would keep it black and white."""
    grid = (np.indices((128, 128)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    view = shared_view(grid, ViewKey(0, "t", None, 0), PLAIN, None)
    assert np.abs(view[1:-1, 1:-1].astype(int) - 127).max() <= 2


def test_crop_and_turns_put_every_pixel_where_the_draws_say() -> None:
    """Reads position, size and orientation of 300 views from their colours; compares with the tile's geometry."""
    cfg = PLAIN.model_copy(update={"scale": (0.3, 1.0), "flip": True, "quarter_turns": True})
    tile, areas, aspects, orientations, lefts = coordinates(), [], [], Counter[tuple[int, ...]](), []
    for view_id in range(300):
        key = ViewKey(0, "t", None, view_id)
        view = shared_view(tile, key, cfg, None).astype(float)
        inner = view[8:-8, 8:-8]
        step_row, step_col = np.diff(inner, axis=0).mean((0, 1)), np.diff(inner, axis=1).mean((0, 1))
        # d(row, column) of the tile by d(row, column) of the view
        jacobian = np.array([[step_row[1], step_col[1]], [step_row[0], step_col[0]]])
        along = np.abs(jacobian) > 0.05
        assert along.sum() == 2 and along[0].sum() == 1 and along[:, 0].sum() == 1, "axes stay axes"
        orientations[tuple(np.sign(np.where(along, jacobian, 0)).astype(int).ravel())] += 1
        height, width = np.abs(jacobian[0]).max() * cfg.size, np.abs(jacobian[1]).max() * cfg.size
        areas.append(height * width / 240**2)
        aspects.append(width / height)
        # the same draws, placed by hand: crop, centres of output pixels mapped back linearly, then flips and turns
        share, aspect, down, right, mirror, upside, turns = key.generator().random(7)
        top, left, h, w = views.crop_box(240, 240, (0.3, 1.0), share, aspect, down, right)
        assert min(top, left) >= 0 and top + h <= 240 and left + w <= 240
        lefts.append((left, 240 - w))
        rows, cols = ((np.arange(64) + 0.5) * n / 64 - 0.5 for n in (h, w))
        want = np.stack(np.broadcast_arrays(left + cols[None, :], top + rows[:, None]), axis=2)
        want = want[:, ::-1] if mirror < 0.5 else want
        want = want[::-1] if upside < 0.5 else want
        for _ in range(int(turns * 4)):
            want = want.transpose(1, 0, 2)[::-1]
        assert np.abs(view[2:-2, 2:-2, :2] - want[2:-2, 2:-2]).max() <= 1.0
        assert np.abs(view[:, :, :2] - want).max() <= 3.0, "borders repeat the crop's own pixels, nothing outside"
    assert 0.29 < min(areas) < 0.34 and 0.93 < max(areas) <= 1.01
    assert abs(np.mean(areas) - 0.65) < 0.04, "uniform in area"
    assert 0.73 < min(aspects) < 0.8 and 1.26 < max(aspects) < 1.36
    assert abs(np.mean([left / room for left, room in lefts if room > 20]) - 0.5) < 0.07
    assert len(orientations) == 8, "all of the square's symmetries"
    chi2 = sum((n - 300 / 8) ** 2 / (300 / 8) for n in orientations.values())
    assert chi2 < 24.3, f"uniform over them (0.1 % of chi-square with 7 degrees of freedom): {orientations}"


def test_turns_and_flips_can_be_switched_off_one_by_one() -> None:
    tile = coordinates()

    def corners(**change: bool) -> int:
        cfg = PLAIN.model_copy(update=change)
        found = {shared_view(tile, ViewKey(0, "t", None, n), cfg, None)[4, 8].tobytes() for n in range(60)}
        return len(found)

    assert corners() == 1
    assert corners(flip=True) == 4
    assert corners(quarter_turns=True) == 4
    assert corners(flip=True, quarter_turns=True) == 8


@pytest.mark.parametrize("shape", [(50, 400), (400, 50), (3, 5), (1, 1)])
def test_crops_of_odd_tiles_stay_inside(shape: tuple[int, int]) -> None:
    for draws in np.random.default_rng(0).random((200, 4)):
        top, left, h, w = views.crop_box(*shape, (0.2, 1.0), *draws)
        assert min(h, w) >= 1 and min(top, left) >= 0 and top + h <= shape[0] and left + w <= shape[1]
    tile = np.zeros((*shape, 3), np.uint8)
    assert shared_view(tile, ViewKey(0, "t", None, 0), config.Views(size=32), None).shape == (32, 32, 3)


def restained_fp64(pixels: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    density = -np.log10((pixels.astype(np.float64) + 1) / 256)
    return np.clip(256 * 10 ** -(density @ matrix + offset) - 1, 0, 255)


def test_stain_map_is_jitter_in_hed_space() -> None:
    """scikit-image's way in fp64: separate with inv(rgb_from_hed), scale and shift each stain, put together again."""
    rgb_from_hed = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    normals = np.array([0.7, -1.2, 0.4, 0.9, -0.5, 1.5])
    density = -np.log10((pixels.astype(np.float64) + 1) / 256)
    stains = density @ np.linalg.inv(rgb_from_hed)
    stains = stains * np.exp(0.06 * normals[:3]) + 0.06 * normals[3:]
    want = np.clip(256 * 10 ** -(stains @ rgb_from_hed) - 1, 0, 255)
    got = views.restain(pixels, *views.stain_map(0.06, normals))
    assert np.abs(got - want).max() <= 0.56, "rounding, and a table's half step"
    assert (got == np.round(want)).mean() > 0.97
    assert np.abs(got.astype(int) - pixels).mean() > 3, "and it is not the identity"


def test_stain_jitter_of_sigma_zero_is_the_identity() -> None:
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3), -1).reshape(-1, 52, 3).astype(np.uint8)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert views.stain_map(0.0, np.ones(6)) == (None, None)
    assert np.array_equal(views.restain(every, None, None), every)
    for pixels in (every, greys):  # the tables undo each other exactly, too
        assert np.array_equal(views.restain(pixels, np.eye(3), np.zeros(3)), pixels)


def test_stain_jitter_has_the_sigma_asked_for() -> None:
    """The stains of a flat tile, measured in fp64 from 400 views, scatter with sigma."""
    rgb_from_hed = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    stain = np.array([0.5, 0.4, 0.3])
    colour = np.round(256 * 10 ** -(stain @ rgb_from_hed) - 1).astype(np.uint8)
    tile = np.tile(colour, (40, 40, 1))
    cfg = PLAIN.model_copy(update={"stain": 0.05, "size": 32})
    seen = np.array([shared_view(tile, ViewKey(0, "t", None, n), cfg, None)[0, 0] for n in range(400)])
    stains = -np.log10((seen + 1.0) / 256) @ np.linalg.inv(rgb_from_hed)
    want = 0.05 * np.sqrt(1 + stain**2)
    assert np.allclose(stains.std(axis=0), want, rtol=0.15)
    assert np.all(np.abs(stains.mean(axis=0) - stain) < 0.015)


def mixed(mix: str, num_views: int = 300) -> np.ndarray:
    """Views of a black tile mixed with a white partner, [n, 32, 32] in 0..1."""
    cfg = PLAIN.model_copy(update={"mix": mix, "size": 32})
    black, white = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    found = [shared_view(black, ViewKey(0, "t", "p", n), cfg, white) for n in range(num_views)]
    return np.stack(found)[..., 0] / 255


def test_cut_pastes_a_square_of_a_uniform_share_anywhere() -> None:
    found = mixed("cut")
    assert set(np.unique(found)) == {0, 1}
    down = []
    for view in found:
        rows, cols = np.flatnonzero(view.any(axis=1)), np.flatnonzero(view.any(axis=0))
        assert view[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].all() and len(rows) == len(cols)
        if len(rows) < 24:
            down += [rows[0] / (32 - len(rows)), cols[0] / (32 - len(cols))]
    share = found.mean((1, 2))
    assert 0.17 < share.min() < 0.24 and 0.75 < share.max() < 0.83
    assert abs(share.mean() - 0.5) < 0.04 and abs(share.std() - 0.6 / 12**0.5) < 0.02
    assert min(down) == 0 and max(down) == 1 and abs(np.mean(down) - 0.5) < 0.05, "anywhere"


def test_blend_is_mixup() -> None:
    found = mixed("blend")
    assert np.ptp(found, axis=(1, 2)).max() == 0
    share = found.mean((1, 2))
    assert 0.295 <= share.min() < 0.31 and 0.69 < share.max() <= 0.705 and abs(share.mean() - 0.5) < 0.03
    a, b = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    want = a.astype(float) + (b.astype(float) - a) * 77 / 256
    assert np.abs(views.blend(a, b, 77 / 256) - want).max() <= 0.5


def test_halves_are_the_four_halves() -> None:
    found = mixed("halves")
    counts = Counter(view.tobytes() for view in found)
    assert len(counts) == 4 and min(counts.values()) > 40
    assert np.all(found.mean((1, 2)) == 0.5)


def test_the_partner_gets_a_crop_turns_and_stain_of_its_own() -> None:
    """Mixed from a tile with itself, the two parts differ; each has the pixels that its own draws give."""
    cfg = config.Views(size=64, mix="halves", stain=0.1)
    tile = texture(3)
    own = 0
    for n in range(40):
        key = ViewKey(0, "t", "t2", n)
        view, rng = shared_view(tile, key, cfg, tile), key.generator()
        first, stains = views.place(tile, rng, cfg)
        second, other_stains = views.place(tile, rng, cfg)
        first, second = views.restain(first, *stains), views.restain(second, *other_stains)
        from_first, from_second = (view == first).all(axis=2), (view == second).all(axis=2)
        assert (from_first | from_second).all()
        own += 0.45 < from_first.mean() < 0.6 and 0.45 < from_second.mean() < 0.6
    assert own == 40


def test_partner_and_key_must_agree() -> None:
    tile = texture(0, 40)
    for name, partner in (("p", None), (None, tile)):
        with pytest.raises(ValueError, match="partner"):
            shared_view(tile, ViewKey(0, "t", name, 0), PLAIN, partner)


def test_decode_gives_rgb() -> None:
    pixels = texture(4, 48)
    assert np.array_equal(decode(encoded(pixels, "PNG")), pixels)
    assert np.array_equal(decode(encoded(pixels, "WEBP", lossless=True)), pixels)
    large = texture(4)
    jpeg = encoded(large, quality=92)
    assert np.array_equal(decode(jpeg), np.asarray(Image.open(io.BytesIO(jpeg))))
    assert np.abs(decode(jpeg).astype(int) - large).mean() < 4
    grey = decode(encoded(pixels[:, :, 0], "PNG"))
    assert np.array_equal(grey, np.repeat(pixels[:, :, :1], 3, axis=2))
    deep = decode(encoded(pixels[:, :, 0].astype(np.uint16) * 257, "PNG"))
    assert np.array_equal(deep, grey)
    alpha = np.dstack([pixels, np.tile(np.array([0, 255] * 24, np.uint8), (48, 1))])
    laid = decode(encoded(alpha, "PNG"))
    assert (laid[:, ::2] == 255).all() and np.array_equal(laid[:, 1::2], pixels[:, 1::2]), "transparent is white"
    palette = Image.fromarray(pixels).quantize(16)
    out = io.BytesIO()
    palette.save(out, "PNG")
    assert np.array_equal(decode(out.getvalue()), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_images_are_refused(kind: str) -> None:
    whole = encoded(texture(6), kind)
    decode(whole)
    for share in (0.0, 0.02, 0.3, 0.6, 0.9, 0.97):
        with pytest.raises(TileError):
            decode(whole[: int(len(whole) * share)])


def test_what_is_no_image_is_refused() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for junk in (b"", b"<svg/>", postscript, bytes(500), b"\xff\xd8\xff" + bytes(99)):
        with pytest.raises(TileError, match="bytes"):
            decode(junk)
    with pytest.raises(TileError, match="mode F"):
        out = io.BytesIO()
        Image.fromarray(np.zeros((4, 4), np.float32)).save(out, "TIFF")
        decode(out.getvalue())


@pytest.mark.parametrize(("width", "height"), [(9000, 8000), (60_000, 60_000), (70_000_000, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_they_are_decoded(width: int, height: int) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    started = time.perf_counter()
    with pytest.raises(TileError, match=r"pixels|readable"):
        decode(png)
    assert time.perf_counter() - started < 1


def test_identity_view_is_the_centre_of_the_resized_tile() -> None:
    wide = coordinates(200)[:100]
    view = identity_view(wide, 50).astype(float)
    assert view.shape == (50, 50, 3)
    want = (np.arange(50) + 0.5) * 2 - 0.5
    assert np.abs(view[1:-1, 1:-1, 0] - (50 + want)[None, 1:-1]).max() <= 0.5 + 1e-9
    assert np.abs(view[1:-1, 1:-1, 1] - want[1:-1, None]).max() <= 0.5 + 1e-9
    checks = np.indices((200, 200)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 255
    greys = identity_view(checks, 50)[2:-2, 2:-2].astype(int)
    assert np.abs(greys - 127).max() <= 2, "antialiased: a fine grid is grey"
    tile = texture(7, 64)
    assert np.array_equal(identity_view(tile, 64), tile)


def test_student_view_is_the_affine_map_of_its_draws() -> None:
    batch = np.stack([texture(n, 32) for n in range(5)])
    got = student_view(batch, np.random.default_rng(3), 0.5)
    draws = np.random.default_rng(3).uniform(0.8, 1.2, (3, 5))
    for view, found, (bright, contrast, colour) in zip(batch.astype(np.float64), got, draws.T, strict=True):
        luma = (view @ [0.299, 0.587, 0.114])[..., None]
        want = bright * (contrast * (colour * view + (1 - colour) * luma - luma.mean()) + luma.mean())
        assert np.abs(found - np.clip(want, 0, 255)).max() < 0.51
    assert got.dtype == np.uint8 and np.array_equal(batch[0], texture(0, 32)), "the input is not written to"
    assert student_view(batch, np.random.default_rng(3), 0.0) is batch


def test_fingerprint_holds_what_decides_pixels_and_nothing_else() -> None:
    base = views.shared_transform(config.Views())
    assert base["version"] == views.VIEW_CODE_VERSION
    for change in ({"photometric": 1.0}, {"per_tile": 7}):
        assert views.shared_transform(config.Views(**change)) == base
    changes = {"seed": 1, "size": 96, "scale": (0.5, 1.0), "flip": False, "quarter_turns": False, "stain": 0.1}
    changes |= {"mix": "blend", "mix_share": 0.1}
    for name, value in changes.items():
        changed = views.shared_transform(config.Views(**{name: value}))
        assert {key for key in base if base[key] != changed[key]} == {name}
    assert set(base) == {"version", *changes}


def test_speed_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    jpegs, cfg, num_views = [encoded(texture(n), quality=92) for n in range(2)], config.Views(size=128), 200
    started = time.process_time()
    for n in range(num_views):
        partner = decode(jpegs[1]) if n % 2 else None
        shared_view(decode(jpegs[0]), ViewKey(0, "t", "p" if n % 2 else None, n), cfg, partner)
    rate = num_views / (time.process_time() - started)
    with capsys.disabled():
        print(f"\nviews: {rate:.0f} a CPU second (224 px JPEG -> 128 px, half of them mixed)")
    assert rate > 50, "an order of magnitude below what any machine should do"
