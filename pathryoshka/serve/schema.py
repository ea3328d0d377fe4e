"""What the service says and is told: the same types in the service, the client and the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field


class Said(BaseModel):
    """Base of all answers and requests."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Embedding(Said):
    """One tile: `width` numbers, of length 1."""

    model_id: str
    width: int
    vector: list[float]


class Embeddings(Said):
    """Several tiles, in the order in which they were sent."""

    model_id: str
    width: int
    vectors: list[list[float]]


class Batch(Said):
    """Several tiles to embed: JPEG, PNG or WebP, each in base64."""

    images: Annotated[list[Base64Bytes], Field(min_length=1)]
    width: int | None = None


class Hit(Said):
    """A neighbour. `score` is the cosine between the first `width` numbers of both, -1 to 1."""

    tile_id: str
    score: float
    slide_id: str
    patient_id: str
    site: str
    label: str | None = None
    has_image: bool = True


class Found(Said):
    """Neighbours of a tile, the nearest first, for each width that was asked for."""

    model_id: str
    num_tiles: int
    """In the index."""
    by_width: dict[int, list[Hit]]


class ModelInfo(Said):
    """The student that answers, and what it may be asked."""

    model_id: str
    width: int
    widths: list[int]
    size: int
    """Side in pixels of what it sees; other sizes are resized, the centre kept."""
    teachers: list[str]
    licence: str
    num_tiles: int
    """In the index; 0 without one."""
    num_slides: int
    max_bytes: int
    max_pixels: int
    max_batch: int


class Health(Said):
    """`busy`: alive, but new work would be answered with 429."""

    status: Literal["ok", "busy"]
    model_id: str


class SlideInfo(Said):
    """A slide to look at."""

    slide_id: str
    width: int
    height: int
    mpp: float | None
    side: float
    """Of a tile, in pixels of level 0."""
    num_tiles: int
    """Of it in the index: what a heat map is made of."""


class Likeness(Said):
    """How alike the tiles of a slide are to a query, for each width. Tiles are squares in pixels of level 0."""

    model_id: str
    slide_id: str
    tiles: list[tuple[float, float, float]]
    """Left, top, side."""
    by_width: dict[int, list[float]]
    """Cosines, in the order of `tiles`."""


class Problem(Said):
    """Why there is no answer: one sentence that says what to do."""

    error: str
