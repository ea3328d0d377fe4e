"""What tokens see, as colours: the first three principal components of the tokens of some tiles as red, green, blue."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pathryoshka.evaluate.scores import Frozen

SIDE = 112


class TokenMap(Frozen):
    """A tile and its tokens as colours, by width; PNG and JPEG in base64."""

    tile_id: str
    label: str
    jpeg: str
    maps: dict[int, str]


def colours(tokens_BND: np.ndarray) -> np.ndarray:
    """uint8 [B, N, 3]: components of all tokens together, each from its 2nd to its 98th percentile.

    Signs are settled so that the token farthest from the middle is bright.
    """
    flat = tokens_BND.reshape(-1, tokens_BND.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    projected = flat @ vectors[:, ::-1][:, :3]
    projected = np.pad(projected, ((0, 0), (0, 3 - projected.shape[1])))
    low, high = projected.min(0), projected.max(0)
    projected = projected * np.where(-low > high, -1, 1)
    low, high = np.percentile(projected, [2, 98], axis=0)
    scaled = np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (255 * scaled).round().astype(np.uint8).reshape(*tokens_BND.shape[:2], 3)


def token_maps(
    tile_ids: Sequence[str],
    labels: Sequence[str],
    jpegs: Sequence[bytes],
    tokens_BND: np.ndarray,
    grid: tuple[int, int],
    widths: Sequence[int],
) -> tuple[TokenMap, ...]:
    """Maps of some tiles; a width is the first numbers of each token, as it is of the embedding.

    Args:
        tokens_BND: row-major on `grid`.
    """
    by_width = {w: colours(tokens_BND[:, :, :w]) for w in dict.fromkeys(min(w, tokens_BND.shape[2]) for w in widths)}
    out = []
    for i, (tile_id, label, jpeg) in enumerate(zip(tile_ids, labels, jpegs, strict=True)):
        maps = {width: png(rgb[i].reshape(*grid, 3)) for width, rgb in by_width.items()}
        out.append(TokenMap(tile_id=tile_id, label=label, jpeg=base64.b64encode(jpeg).decode(), maps=maps))
    return tuple(out)


def png(pixels: np.ndarray) -> str:
    sink = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(sink, "PNG", optimize=True)
    return base64.b64encode(sink.getvalue()).decode()
