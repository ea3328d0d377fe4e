"""The architecture of phantom tissue: what lies where, as densities of haematoxylin and eosin, without any colour.

Each kind of tissue is a function that fills two maps. Kinds differ in how cells and fibres are arranged, and overlap
as real ones do: a reactive gland comes near a well-differentiated tumour, straight collagen near smooth muscle. Nuclei
are drawn all at once; only glands, few a tile, are drawn one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

Rng = np.random.Generator


@dataclass(frozen=True)
class Habit:
    """How the tissue of a patient, or of one tile of theirs, is built."""

    scale: float
    """Pixels for what is one pixel at 0.5 micrometres a pixel in the average patient."""
    atypia: float
    """0 ... 1: from orderly to bizarre. Shifts both normal glands and tumour."""
    cellularity: float
    """Factor on the number of cells, about 1."""
    wave: float
    """Factor on the waviness of fibres, about 1."""


@dataclass(frozen=True)
class Tissue:
    """Density of the two stains, float32 [H, W]; about 1 is the darkest nucleus or the reddest fibre."""

    haem: np.ndarray
    eosin: np.ndarray


@dataclass(frozen=True)
class Cells:
    """Nuclei as ellipses, each field [N]: centre, semi-axes and angle (pixels, radians), density, bulging."""

    x: np.ndarray
    y: np.ndarray
    a: np.ndarray
    b: np.ndarray
    angle: np.ndarray
    density: np.ndarray
    bulge: np.ndarray


def noise(rng: Rng, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise of about unit variance whose bumps are `cell` pixels apart, float32 [H, W]."""
    coarse = tuple(max(2, math.ceil(n / cell) + 1) for n in shape)
    field = Image.fromarray(rng.standard_normal(coarse, dtype=np.float32) * np.float32(1.35))
    return np.asarray(field.resize(shape[::-1], Image.Resampling.BICUBIC))


def smooth_step(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def fibres(
    rng: Rng, shape: tuple[int, int], angle: float, bend: np.ndarray, periods: list[tuple[float, float]]
) -> list[np.ndarray]:
    """Streaky noise along `angle`, shifted sideways by `bend` pixels; one float32 [H, W] for each (across, along)."""
    rows, cols = np.indices(shape, dtype=np.float32)
    side = math.ceil(math.hypot(*shape)) + 8
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    rows, cols = rows - shape[0] / 2, cols - shape[1] / 2
    along = np.clip(cols * cos + rows * sin + side / 2, 0, side - 1).astype(np.intp)
    across = np.clip(rows * cos - cols * sin + side / 2 + bend, 0, side - 1).astype(np.intp)
    flat = across * side + along
    found = []
    for thin, long in periods:
        coarse = (math.ceil(side / thin), math.ceil(side / long))
        field = Image.fromarray(rng.standard_normal(coarse, dtype=np.float32) * np.float32(1.35))
        found.append(np.asarray(field.resize((side, side), Image.Resampling.BICUBIC)).ravel()[flat])
    return found


def lattice(rng: Rng, shape: tuple[int, int], spacing: float, jitter: float, margin: float = 0) -> np.ndarray:
    """Points of a hexagonal lattice at a random place, each moved by about `jitter` spacings; float64 [N, 2] (x, y)."""
    rise = spacing * math.sqrt(3) / 2
    rows = np.arange(-margin - rise, shape[0] + margin + rise, rise)
    cols = np.arange(-margin - spacing, shape[1] + margin + spacing, spacing)
    y, x = np.meshgrid(rows, cols, indexing="ij")
    x = x + (np.arange(len(rows)) % 2)[:, None] * spacing / 2
    points = np.stack([x.ravel(), y.ravel()], axis=1) + rng.random(2) * spacing
    return points + rng.normal(0, jitter * spacing, points.shape)


def cells_at(
    rng: Rng,
    points: np.ndarray,
    a: float,
    b: float,
    *,
    angle: float | np.ndarray | None = None,
    spread: float = 0.12,
    density: float = 0.8,
    bulge: float = 0.06,
) -> Cells:
    """Nuclei at `points` [N, 2]; semi-axes and density scatter by the share `spread`; no angle: any angle."""
    n = len(points)
    size = np.exp(spread * np.clip(rng.standard_normal((2, n)), -2, 2))
    return Cells(
        x=points[:, 0],
        y=points[:, 1],
        a=a * size[0],
        b=b * np.sqrt(size[0]) * size[1] ** 0.5,
        angle=rng.uniform(0, math.pi, n) if angle is None else np.broadcast_to(angle, n),
        density=density * np.exp(rng.normal(0, spread, n)),
        bulge=np.abs(rng.normal(0, bulge, n)),
    )


def draw_cells(haem: np.ndarray, cells: Cells, softness: float = 1.5) -> None:
    """Draws nuclei into `haem` in place, later ones over earlier ones; a faint rim keeps neighbours apart."""
    height, width = haem.shape
    longest = 1.2 * np.maximum(cells.a, cells.b) + softness
    near = (cells.x > -longest) & (cells.x < width + longest) & (cells.y > -longest) & (cells.y < height + longest)
    # Boxes as large as the largest nucleus waste most of their pixels, so small and large ones are drawn apart.
    limit = np.quantile(longest[near], 0.7) if near.any() else 0
    for group in (near & (longest <= limit), near & (longest > limit)):
        if not group.any():
            continue
        reach = math.ceil(longest[group].max())
        x, y, a, b, angle, density, bulge = (field[group].astype(np.float32) for field in vars(cells).values())
        down, right = np.indices((2 * reach + 1, 2 * reach + 1), dtype=np.float32).reshape(2, -1) - np.float32(reach)
        left, top = np.floor(x), np.floor(y)
        # (u, v): the pixel in axes of the ellipse, both linear in (right, down); u^2 + v^2 is one product of matrices.
        u = np.stack([np.cos(angle), np.sin(angle), (left - x) * np.cos(angle) + (top - y) * np.sin(angle)]) / a
        v = np.stack([-np.sin(angle), np.cos(angle), (top - y) * np.cos(angle) - (left - x) * np.sin(angle)]) / b
        forms = [u[i] * u[j] + v[i] * v[j] for i, j in ((0, 0), (1, 1), (2, 2))]
        forms += [2 * (u[i] * u[j] + v[i] * v[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
        terms = np.stack([right * right, down * down, np.ones_like(down), right * down, right, down])
        square = np.stack(forms, axis=1) @ terms
        cell, place = np.nonzero(square < 1.3 * 1.3)
        right, down, radius = right[place], down[place], np.sqrt(np.maximum(square[cell, place], 1e-6))
        turn = (u[0, cell] * right + u[1, cell] * down + u[2, cell]) / radius
        edge = 1 + bulge[cell] * (4 * turn**3 - 3 * turn)  # cos(3 t): irregular nuclei bulge at three places
        inside = np.clip((edge - radius) * np.minimum(a, b)[cell] / softness + 0.5, 0, 1)
        cols, rows = (left[cell] + right).astype(np.intp), (top[cell] + down).astype(np.intp)
        use = (inside > 0.35) & (cols >= 0) & (cols < width) & (rows >= 0) & (rows < height)
        chromatin = 0.7 + 0.3 * np.minimum(radius, 1) ** 3  # it gathers at the membrane
        haem.ravel()[rows[use] * width + cols[use]] = (inside * density[cell] * chromatin)[use]


def grain(rng: Rng, haem: np.ndarray, scale: float) -> np.ndarray:
    """Chromatin: nuclei are not flat."""
    return haem * (1 + 0.16 * noise(rng, haem.shape, 2.2 * scale))


def stroma(rng: Rng, shape: tuple[int, int], habit: Habit) -> Tissue:
    """Collagen: wavy fibres with clefts, few spindle-shaped nuclei along them."""
    return fibrous(rng, shape, habit, wave=3.5 * habit.wave, red=0.40, gaps=0.7, spacing=30, a=7.0, b=2.3)


def muscle(rng: Rng, shape: tuple[int, int], habit: Habit) -> Tissue:
    """Smooth muscle: straighter, denser bundles, cigar-shaped nuclei in line with them."""
    return fibrous(rng, shape, habit, wave=1.5 * habit.wave, red=0.44, gaps=0.85, spacing=25, a=8.5, b=2.5)


def fibrous(
    rng: Rng,
    shape: tuple[int, int],
    habit: Habit,
    *,
    wave: float,
    red: float,
    gaps: float,
    spacing: float,
    a: float,
    b: float,
) -> Tissue:
    s = habit.scale
    angle = rng.uniform(0, math.pi)
    bend = wave * s * noise(rng, shape, 45 * s) + 2 * wave * s * noise(rng, shape, 140 * s)
    fine, bundle, cleft = fibres(rng, shape, angle, bend, [(2.2 * s, 40 * s), (9 * s, 90 * s), (7 * s, 55 * s)])
    open_ = smooth_step((cleft + 0.35 * fine - gaps - rng.normal(0, 0.35)) * 1.6)
    eosin = np.clip(red + rng.normal(0, 0.05) + 0.09 * fine + 0.08 * bundle, 0.05, None) * (1 - 0.93 * open_)
    haem = 0.07 * (1 + 0.3 * bundle) * (1 - 0.9 * open_)
    points = lattice(rng, shape, spacing * s / math.sqrt(habit.cellularity), 0.32)
    rows, cols = in_shape(points, shape)
    by_row, by_col = np.gradient(bend, axis=0)[rows, cols], np.gradient(bend, axis=1)[rows, cols]
    tilt = np.arctan2(math.sin(angle) - by_col, math.cos(angle) + by_row) + rng.normal(0, 0.1, len(points))
    haem = np.ascontiguousarray(haem, np.float32)
    draw_cells(haem, cells_at(rng, points, a * s, b * s, angle=tilt, spread=0.22, density=0.72))
    return Tissue(grain(rng, haem, s), eosin)


def in_shape(points: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels nearest to `points` (x, y)."""
    cols, rows = np.clip(points.astype(int), 0, (shape[1] - 1, shape[0] - 1)).T
    return rows, cols


def lymphocytes(rng: Rng, shape: tuple[int, int], habit: Habit) -> Tissue:
    """A sheet of small round dark nuclei with hardly any cytoplasm, in a loose mesh."""
    s = habit.scale
    mesh = noise(rng, shape, 7 * s) + 0.8 * noise(rng, shape, 30 * s)
    eosin = np.clip(0.16 + 0.07 * mesh, 0.02, None)
    haem = np.ascontiguousarray(0.10 + 0.03 * mesh, np.float32)
    points = lattice(rng, shape, 12.2 * s / math.sqrt(habit.cellularity), 0.2)
    crowd = noise(rng, shape, 60 * s)[in_shape(points, shape)]
    points = points[rng.random(len(points)) < 0.86 + 0.12 * crowd]
    large = rng.random(len(points)) < 0.06 + 0.1 * habit.atypia
    draw_cells(haem, cells_at(rng, points[~large], 4.6 * s, 4.2 * s, spread=0.1, density=0.92, bulge=0.03))
    draw_cells(haem, cells_at(rng, points[large], 6.6 * s, 5.6 * s, spread=0.15, density=0.6))
    return Tissue(grain(rng, haem, s), eosin)


def mucus(rng: Rng, shape: tuple[int, int], habit: Habit) -> Tissue:
    """Pale basophilic pools with curling strands, a few drifting cells, now and then a strip of stroma."""
    s = habit.scale
    bend = 7 * s * noise(rng, shape, 40 * s) + 18 * s * noise(rng, shape, 110 * s)
    thin, wide = fibres(rng, shape, rng.uniform(0, math.pi), bend, [(3 * s, 50 * s), (12 * s, 70 * s)])
    pool = smooth_step(0.6 + 0.5 * noise(rng, shape, 50 * s))
    strand = np.clip(thin + 0.6 * wide - 0.4, 0, None)
    haem = np.ascontiguousarray(pool * (0.10 + 0.10 * strand), np.float32)
    eosin = pool * (0.05 + 0.07 * strand) + 0.2 * smooth_step((wide - 1.3 * habit.wave) * 2)
    points = lattice(rng, shape, 46 * s / math.sqrt(habit.cellularity), 0.4)
    points = points[rng.random(len(points)) < 0.7]
    draw_cells(haem, cells_at(rng, points, 5.0 * s, 3.4 * s, spread=0.25, density=0.7, bulge=0.12))
    return Tissue(grain(rng, haem, s), eosin)


def gland(rng: Rng, shape: tuple[int, int], habit: Habit) -> Tissue:
    """Normal glands: round, apart, an open lumen, goblet cells, one row of basal nuclei."""
    return glands(rng, shape, habit, 0.45 * habit.atypia)


def tumour(rng: Rng, shape: tuple[int, int], habit: Habit) -> Tissue:
    """Tumour glands: crowded, distorted, small lumina, large dark uneven nuclei in several rows."""
    return glands(rng, shape, habit, 0.45 + 0.55 * habit.atypia)


def glands(rng: Rng, shape: tuple[int, int], habit: Habit, atypia: float) -> Tissue:
    """Glands in a loose stroma; `atypia` from 0 (orderly) to 1 (back to back and bizarre) moves every measure."""
    s = habit.scale
    between = fibrous(rng, shape, habit, wave=4, red=0.28, gaps=0.5, spacing=22, a=5.0, b=2.8)
    haem, eosin = between.haem, between.eosin
    spacing = s * rng.normal(96 - 16 * atypia, 6)
    nuclei: list[Cells] = []
    for x, y in lattice(rng, shape, spacing, 0.07 + 0.05 * atypia, margin=spacing / 2):
        radius = spacing * (0.41 + 0.12 * atypia) * math.exp(rng.normal(0, 0.06 + 0.1 * atypia))
        if -1.5 * radius < x < shape[1] + 1.5 * radius and -1.5 * radius < y < shape[0] + 1.5 * radius:
            nuclei.append(one_gland(rng, haem, eosin, x, y, radius, s, atypia))
    joined = Cells(*(np.concatenate(parts) for parts in zip(*(vars(n).values() for n in nuclei), strict=True)))
    draw_cells(haem, joined)
    return Tissue(grain(rng, haem, s), np.clip(eosin + 0.03 * noise(rng, shape, 3 * s), 0.01, None))


def one_gland(
    rng: Rng, haem: np.ndarray, eosin: np.ndarray, x: float, y: float, radius: float, s: float, atypia: float
) -> Cells:
    """Draws epithelium and lumen of one gland in place; returns its nuclei, to be drawn after all glands."""
    height, width = haem.shape
    waves = (rng.normal(0, 0.03 + 0.11 * atypia, (3, 2)) / [[1], [2], [3]]) @ [1, 1j]
    flat, turn = math.exp(-abs(rng.normal(0, 0.1 + 0.3 * atypia))), rng.uniform(0, math.pi)

    def border(ray: np.ndarray) -> np.ndarray:
        """Radius of the gland towards `ray` (a complex unit), as a share of `radius`: an ellipse with waves on it."""
        turned = ray * np.exp(np.complex64(-1j * turn))
        ellipse = flat / np.sqrt((flat * turned.real) ** 2 + turned.imag**2)
        square = ray * ray
        ripple = square * (np.complex64(waves[0]) + ray * np.complex64(waves[1]) + square * np.complex64(waves[2]))
        return ellipse * (1 + ripple.real)

    hole = np.clip(rng.normal(0.34 - 0.14 * atypia, 0.05 + 0.08 * atypia), 0.0, 0.6)
    goblets, num_goblets = max(0.0, 1 - 1.6 * atypia), max(5, round(2 * math.pi * 0.7 * radius / (13 * s)))
    reach = math.ceil(radius * 1.35)
    top, left = max(0, int(y) - reach), max(0, int(x) - reach)
    bottom, right = min(height, int(y) + reach), min(width, int(x) + reach)
    if top < bottom and left < right:
        rows, cols = np.ogrid[top:bottom, left:right]
        ray = ((cols - x) + 1j * (rows - y)).astype(np.complex64)
        distance = np.abs(ray)
        ray /= np.maximum(distance, 0.5)
        rho = distance / (np.float32(radius) * border(ray))
        body = np.clip((1 - rho) * (radius / 2), 0, 1)
        wobble = 1 + np.float32(0.22 * atypia) * (ray * ray * np.exp(np.complex64(7j * waves[0].real))).real
        lumen = smooth_step((hole * wobble - rho) * (radius / 3) + 0.5)
        red, blue = (0.40 - 0.06 * atypia) * (1 - 0.94 * lumen), (0.10 + 0.09 * atypia) * (1 - 0.9 * lumen)
        if goblets:
            wedge = 0.5 + 0.5 * np.cos(num_goblets * np.angle(ray) + 3 * rho)
            cup = smooth_step((0.74 - rho) * 7) * np.float32(goblets) * wedge
            red, blue = red * (1 - 0.75 * cup), blue * (1 - 0.2 * cup)
        window = (slice(top, bottom), slice(left, right))
        eosin[window] += body * (red - eosin[window])
        haem[window] += body * (blue - haem[window])
    per_row = 2 * math.pi * 0.85 * radius / (s * (8.8 + 3 * atypia))
    n = max(4, round(per_row * (1 + atypia * rng.uniform(0.6, 1.4))))
    t = np.arange(n) * 2 * math.pi / n + rng.normal(0, (0.2 + 1.2 * atypia) * 2 * math.pi / n, n)
    depth = 0.84 - np.abs(rng.normal(0, 0.02 + 0.22 * atypia, n))
    at = radius * border(np.exp(1j * t)) * np.maximum(depth, hole + 0.12)
    points = np.stack([x + at * np.cos(t), y + at * np.sin(t)], axis=1)
    lean = t + rng.normal(0, 0.12 + 0.55 * atypia, n)
    a, b = s * (5.2 + 2.0 * atypia), s * (3.0 + 1.9 * atypia)
    spread, density = 0.08 + 0.2 * atypia, 0.72 + 0.06 * atypia
    return cells_at(rng, points, a, b, angle=lean, spread=spread, density=density, bulge=0.04 + 0.1 * atypia)


KINDS: dict[str, Callable[[Rng, tuple[int, int], Habit], Tissue]] = {
    "stroma": stroma,
    "muscle": muscle,
    "gland": gland,
    "tumour": tumour,
    "lymphocytes": lymphocytes,
    "mucus": mucus,
}
