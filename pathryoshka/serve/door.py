"""The routes, as one FastAPI application. Images go in as bytes, what is said of them comes out as JSON.

Knows no Ray: it is given something that embeds. Whatever takes longer than a moment is done in a few threads, so that
the loop always has time to say 429.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Protocol, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from pathryoshka import __version__
from pathryoshka.evaluate.token_map import colours
from pathryoshka.search.index import cosines
from pathryoshka.serve import schema
from pathryoshka.serve.admission import Admission
from pathryoshka.serve.docs import docs_page
from pathryoshka.serve.gate import Gate, Meters, unexpected
from pathryoshka.serve.lookup import Index
from pathryoshka.serve.page import add_page
from pathryoshka.serve.slides import Slides
from pathryoshka.serve.tile import Limits, Refused, view_of

MOST_NEIGHBOURS = 100
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in
                    ("image/jpeg", "image/png", "image/webp")},
    }
}  # fmt: skip
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Problem, "description": words}
    for status, words in {
        401: "no token",
        413: "too many bytes or pixels",
        415: "no image",
        422: "damaged, or not to be understood",
        429: "busy: see Retry-After",
    }.items()
}
T = TypeVar("T")
Width = Annotated[int | None, Query(description="one of the model's widths; none = all of it")]
Widths = Annotated[list[int] | None, Query(description="one or several of the model's widths; none = all of them")]


class Encoder(Protocol):
    """What a door needs of the students."""

    async def embed(self, views: np.ndarray) -> np.ndarray:
        """uint8 [B, size, size, 3] -> fp32 [B, all numbers], rows of length 1."""

    async def tokens(self, view: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """uint8 [size, size, 3] -> fp32 [N, D] and the grid, rows and columns, that N runs over row by row."""


@dataclass(frozen=True)
class House:
    """What is behind a door.

    Attributes:
        facts: `pathryoshka.json` of the student. rate: tiles a second that its replicas make together.
        at_least: tiles that are let in whatever the rate.
    """

    facts: Mapping[str, Any]
    encoder: Encoder
    rate: float
    at_least: int
    index: Index | None = None
    slides: Slides = field(default_factory=lambda: Slides({}))
    limits: Limits = field(default_factory=Limits)
    wanted: str | None = None
    """Digest of the token; None = anyone may ask."""


def make_door(house: House) -> Gate:
    """The whole service as an ASGI application."""
    facts, limits, encoder = house.facts, house.limits, house.encoder
    model_id, full = facts["model_id"], facts["width"]
    admission, meters = Admission(house.rate, limits.wait_s, house.at_least), Meters()
    meters.inside.set_function(lambda: admission.inside)
    threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="door")
    app = FastAPI(
        title="Pathryoshka", version=__version__, docs_url=None, redoc_url=None, dependencies=[
            Depends(HTTPBearer(auto_error=False, description="the token that the service was started with"))
        ],
        description="One small pathology encoder, neighbours by width, and slides.",
    )  # fmt: skip
    add_errors(app)

    async def aside(work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, work, *args)

    async def full_vectors(images: list[bytes]) -> np.ndarray:
        """fp32 [B, all numbers]; what is wrong with one of several images names it."""
        with admission.admit(len(images)):
            tasks = [aside(view_of, image, limits, facts["size"]) for image in images]
            views = await asyncio.gather(*tasks, return_exceptions=True)
            for i, view in enumerate(views):
                if isinstance(view, Refused) and len(images) > 1:
                    raise Refused(view.status, f"image {i}: {view}")
                if isinstance(view, BaseException):
                    raise view
            vectors = await encoder.embed(np.stack([view for view in views if isinstance(view, np.ndarray)]))
        meters.tiles.inc(len(images))
        return vectors

    def known(width: int | None) -> int:
        if width is not None and width not in facts["widths"]:
            raise Refused(422, f"the model was trained for widths {', '.join(map(str, facts['widths']))}, not {width}")
        return width or full

    def index_there() -> Index:
        if house.index is None:
            raise Refused(404, "the service was started without an index; start it with --index")
        return house.index

    @app.post("/v1/embed", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
    async def embed(request: Request, width: Width = None) -> schema.Embedding:
        """Embed one tile; the body is the image."""
        numbers = known(width)
        vectors = await full_vectors([await request.body()])
        return schema.Embedding(model_id=model_id, width=numbers, vector=cut(vectors, numbers)[0].tolist())

    @app.post("/v1/embed/batch", responses=PROBLEMS)
    async def embed_batch(batch: schema.Batch) -> schema.Embeddings:
        """Embed several tiles, all or none of them."""
        numbers = known(batch.width)
        if len(batch.images) > limits.max_batch:
            raise Refused(413, f"{len(batch.images)} images; at most {limits.max_batch} in one request")
        vectors = await full_vectors(batch.images)
        return schema.Embeddings(model_id=model_id, width=numbers, vectors=cut(vectors, numbers).tolist())

    @app.post("/v1/search", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
    async def search(
        request: Request,
        width: Widths = None,
        k: Annotated[int, Query(ge=1, le=MOST_NEIGHBOURS)] = 10,
        not_patient: Annotated[str | None, Query(description="leave out the tiles of this patient")] = None,
        not_slide: Annotated[str | None, Query(description="leave out the tiles of this slide")] = None,
    ) -> schema.Found:
        """The nearest tiles of the index, for each width that is asked for."""
        index, widths = index_there(), [known(w) for w in width or facts["widths"]]
        vectors = await full_vectors([await request.body()])
        by_width = await aside(index.search, vectors[0], widths, k, not_patient, not_slide)
        return schema.Found(model_id=model_id, num_tiles=len(index), by_width=by_width)

    @app.post("/v1/tokens", openapi_extra=IMAGE_BODY, responses={**PROBLEMS, 200: {"content": {"image/png": {}}}})
    async def tokens(request: Request, width: Width = None) -> Response:
        """The first three principal components of the tile's tokens as red, green, blue: a PNG, one pixel a token."""
        numbers, body = known(width), await request.body()
        with admission.admit(1):
            view = await aside(view_of, body, limits, facts["size"])
            found, (rows, columns) = await encoder.tokens(view)
        rgb = await aside(colours, found[None, :, :numbers])
        return Response(await aside(png, rgb.reshape(rows, columns, 3)), media_type="image/png")

    @app.get("/v1/model")
    async def model() -> schema.ModelInfo:
        """What answers, and what it may be asked."""
        return schema.ModelInfo(
            model_id=model_id, width=full, widths=facts["widths"], size=facts["size"], teachers=list(facts["teachers"]),
            licence=facts["licence"], num_tiles=len(house.index) if house.index is not None else 0,
            num_slides=len(house.slides.paths), max_bytes=limits.max_bytes, max_pixels=limits.max_pixels,
            max_batch=limits.max_batch,
        )  # fmt: skip

    @app.get("/v1/tiles/{tile_id:path}", response_class=Response)
    async def tile(tile_id: str) -> Response:
        """The picture of a tile of the index."""
        image = await aside(index_there().image, tile_id)
        if image is None:
            raise Refused(404, "the index has no picture of this tile")
        return Response(image, media_type=media_type(image))

    @cache
    def about(slide_id: str) -> schema.SlideInfo:
        places = house.index.on_slide(slide_id)[0] if house.index is not None else np.empty((0, 3))
        side = float(np.median(places[:, 2])) if len(places) else None
        return house.slides.info(slide_id, len(places), side, facts["size"])

    @app.get("/v1/slides")
    async def slides() -> list[schema.SlideInfo]:
        """Slides to look at."""
        return await aside(lambda: [about(slide_id) for slide_id in house.slides.paths])

    @app.get("/v1/slides/{slide_id}/deep-zoom/{level}/{column}/{row}.jpeg", response_class=Response)
    async def deep_zoom(slide_id: str, level: int, column: int, row: int) -> Response:
        """A tile of the slide's pyramid, in Deep Zoom's numbering."""
        return Response(await aside(house.slides.tile, slide_id, level, column, row), media_type="image/jpeg")

    @app.get("/v1/slides/{slide_id}/region", response_class=Response)
    async def region(slide_id: str, x: float, y: float, side: float | None = None) -> Response:
        """A square of a slide as PNG, by its middle in pixels of level 0; its side is that of the index's tiles."""
        side = side if side is not None else (await aside(about, slide_id)).side
        pixels = await aside(house.slides.region, slide_id, x, y, side, facts["size"])
        return Response(await aside(png, pixels), media_type="image/png")

    @app.post("/v1/slides/{slide_id}/likeness", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
    async def likeness(slide_id: str, request: Request, width: Widths = None) -> schema.Likeness:
        """How alike each tile of a slide, as far as the index has it, is to an image: a heat map for each width."""
        index, widths = index_there(), [known(w) for w in width or facts["widths"]]
        places, rows = await aside(index.on_slide, slide_id)
        if not len(places):
            raise Refused(404, "the index has no tiles of this slide; embed it and add it to the index")
        vectors = await full_vectors([await request.body()])
        by_width = {w: (await aside(cosines, rows, vectors[0], w)).tolist() for w in widths}
        tiles = [(left, top, side) for left, top, side in places.tolist()]
        return schema.Likeness(model_id=model_id, slide_id=slide_id, tiles=tiles, by_width=by_width)

    @app.get("/health")
    async def health() -> schema.Health:
        """Whether the service is there; needs no token."""
        return schema.Health(status="busy" if admission.full else "ok", model_id=model_id)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts, times and what waits, for Prometheus."""
        return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    add_page(app)
    return Gate(app, limits, house.wanted, admission, meters, model_id)


def cut(vectors_BD: np.ndarray, width: int) -> np.ndarray:
    """The first `width` numbers, rows of length 1 again."""
    short = vectors_BD[:, :width]
    return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=3)
    return sink.getvalue()


def media_type(image: bytes) -> str:
    if image[:2] == b"\xff\xd8":
        return "image/jpeg"
    return "image/png" if image[:4] == b"\x89PNG" else "image/webp"


def add_errors(app: FastAPI) -> None:
    """Whatever FastAPI refuses says so as the rest of the service does."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{where}: {first['msg']}"[:300]}, 422)

    @app.exception_handler(HTTPException)
    async def wrong(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)[:300]}, error.status_code, headers=error.headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(unexpected(error))}, 500)
