"""A picture's neighbours, for a terminal: embedded by the student that the index was made with."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pathryoshka import config
from pathryoshka.export.facts import LoadError
from pathryoshka.export.load import load
from pathryoshka.search.filters import Filter
from pathryoshka.search.index import Index, Neighbour
from pathryoshka.search.manifest import SearchError, short_id
from pathryoshka.tiles.views import as_rgb


@dataclass(frozen=True)
class Answer:
    """`pixels`: uint8 [H, W, 3] of the query."""

    pixels: np.ndarray
    width: int
    hits: list[Neighbour]


def ask(
    index: Index, image: Path, cfg: config.Storage, *, student: str | None, width: int | None, top: int,
    only: Filter, exact: bool = False,
) -> Answer:  # fmt: skip
    """The `top` nearest tiles of a picture.

    Args:
        student: an export; none = the one that the index was made with, where it was.

    Raises:
        SearchError: no such picture, another model, a width that the student was not trained for, unknown names.
    """
    refuse_unknown(index, only)
    pixels = read_picture(image)
    where = student or index.manifest.student
    if where is None:
        raise SearchError(f"the index at {index.uri} does not say where its student is; name it with --student")
    try:
        model = load(where, storage=cfg)
    except LoadError as error:
        raise SearchError(f"{error} (name the student of the index with --student)") from None
    if model.model_id != index.model_id:
        raise SearchError(
            f"the student at {where} is model {short_id(model.model_id)} and the index at {index.uri} is of model "
            f"{short_id(index.model_id)}; their vectors cannot be compared"
        )
    if width is not None and width not in model.widths:
        known = ", ".join(str(w) for w in model.widths if w <= index.manifest.width)
        raise SearchError(f"the student was trained for widths {known}, not {width}")
    wanted = width or index.manifest.width
    vector = model.embed(pixels[None])[0, : index.manifest.width].numpy()
    return Answer(pixels, wanted, index.search(vector, [wanted], top, only, exact=exact)[wanted])


def read_picture(image: Path) -> np.ndarray:
    try:
        return np.array(as_rgb(Image.open(io.BytesIO(image.read_bytes()))))
    except OSError as error:
        strange = isinstance(error, UnidentifiedImageError)
        what = "is no picture" if strange else f"cannot be read: {error.strerror or error}"
        raise SearchError(f"{image} {what}; give a JPEG, PNG or WebP file") from None
    except (ValueError, Image.DecompressionBombError) as error:
        raise SearchError(f"{image} cannot be read: {error}") from None


def refuse_unknown(index: Index, only: Filter) -> None:
    """A name that no tile bears is a slip of the pen, and would be answered with nothing, or with everything."""
    asked = {"patient_id": only.not_patients, "slide_id": only.not_slides, "site": only.sites, "label": only.labels}
    for column, names in asked.items():
        for name in names:
            if not any(one.columns[column].among((name,)).any() for one in index.segments):
                some = sorted({value for one in index.segments for value in one.columns[column].values})[:5]
                word = column.removesuffix("_id")
                raise SearchError(f"no tile of the index has {word} {name}; there are {', '.join(some)}, ...")


def lines(answer: Answer) -> list[str]:
    """A table, one neighbour a line."""
    rows = [("score", "tile", "slide", "patient", "site", "label")]
    rows += [(f"{h.score:.4f}", h.tile_id, h.slide_id, h.patient_id, h.site, h.label or "-") for h in answer.hits]
    return [aligned(row, rows) for row in rows]


def aligned(row: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    wide = [max(len(one[i]) for one in rows) for i in range(len(row))]
    return "  ".join(text.ljust(n) for text, n in zip(row, wide, strict=True)).rstrip()
