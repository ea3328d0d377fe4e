"""Bytes that a stranger sent -> pixels. What a header claims is judged before anything is decoded."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from pathryoshka.tiles.views import as_rgb, identity_view

FORMATS = ("JPEG", "PNG", "WEBP")
SMALLEST_SIDE = 16


@dataclass(frozen=True)
class Limits:
    """What a request may be."""

    max_bytes: int = 16 * 2**20
    """Of the body with one image."""
    max_batch_bytes: int = 64 * 2**20
    """Of a body with several; base64 makes three bytes four."""
    max_pixels: int = 2**24
    """Of one image, as its header has it: 4096 x 4096."""
    max_batch: int = 64
    """Images of one request."""
    body_s: float = 20.0
    """For a body to arrive."""
    answer_s: float = 30.0
    """For the answer, after that."""
    wait_s: float = 2.0
    """Work that would wait longer than this for a student is answered with 429."""


class Refused(Exception):
    """A request that gets no answer but a sentence.

    Attributes:
        status: of HTTP, 4xx or 5xx. headers: that go with it.
    """

    def __init__(self, status: int, sentence: str, retry_s: int | None = None) -> None:
        """`retry_s`: when to come back, for 429 and 5xx."""
        super().__init__(sentence)
        self.status = status
        self.headers = {"retry-after": str(retry_s)} if retry_s is not None else {}
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"
        if status in (408, 413):
            self.headers["connection"] = "close"  # else the server reads on, to throw it away


def decoded(data: bytes, limits: Limits) -> np.ndarray:
    """uint8 [H, W, 3] of a JPEG, PNG or WebP, transparency over white.

    Raises:
        Refused: 400 empty, 413 too many pixels, 415 no such image, 422 damaged or too small.
    """
    if not data:
        raise Refused(400, "the body is empty; send the bytes of a JPEG, PNG or WebP image")
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's own limit is far above ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Refused(413, f"the image has too many pixels; at most {limits.max_pixels} are read") from None
    except UnidentifiedImageError:
        raise Refused(415, "this is no JPEG, PNG or WebP image; send the bytes of one as the body") from None
    except Exception:  # whatever a parser makes of hostile bytes
        raise Refused(422, "the header of the image is damaged; save the image again") from None
    width, height = image.size
    if width * height > limits.max_pixels:
        raise Refused(413, f"the image has {width} x {height} pixels; at most {limits.max_pixels} are read: cut tiles")
    if min(width, height) < SMALLEST_SIDE:
        raise Refused(422, f"the image has {width} x {height} pixels; a tile has at least {SMALLEST_SIDE} a side")
    try:
        return as_rgb(image)
    except Exception:
        raise Refused(
            422, "the image is damaged or cut off, or its pixels have no fixed range; save it again"
        ) from None


def view_of(data: bytes, limits: Limits, size: int) -> np.ndarray:
    """What a student of this size sees of an encoded image: uint8 [size, size, 3]. Raises Refused as `decoded`."""
    return identity_view(decoded(data, limits), size)
