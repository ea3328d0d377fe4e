"""What every vector of a table depends on; a table is continued with the same recipe or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from pydantic import ValidationError

from pathryoshka import config, storage
from pathryoshka.changes import differences
from pathryoshka.tiles.grid import Cut, resolutions
from pathryoshka.tiles.stats import Frozen
from pathryoshka.tiles.views import VIEW_CODE_VERSION

RECIPE = "recipe.json"
VERSION = 1
ENCODED_ONLY = ("image_format", "quality")
"""Fields of a cut that only tiles on disk have."""


class EmbedRefused(config.ConfigError):
    """An embedding that cannot be begun or continued: one sentence that says what to do."""


class EmbedError(RuntimeError):
    """A run that did not make a table; the sentence says why."""


class Recipe(Frozen):
    """The fingerprint of a table of vectors.

    Attributes:
        model_id, width: the student, and how many of its numbers are kept, rows of length 1.
        dtype: of the numbers in the table. precision: in which the student computes.
        transform: how a tile becomes what the student sees.
        tiles: where tiles come from (`kind`: slides or tiles), at which resolution and size.
    """

    version: int = VERSION
    model_id: str
    width: int
    dtype: Literal["float32", "float16"] = "float32"
    precision: Literal["float32", "bfloat16"] = "float32"
    transform: dict[str, Any]
    tiles: dict[str, Any]


def transform_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of `pathryoshka.json`: `identity_view` to the student's side, then its mean and std."""
    of = {"resize": "bilinear, shorter side, centre", "code": VIEW_CODE_VERSION}
    return of | {name: facts[name] for name in ("size", "mean", "std")}


def tiles_of_slides(cut: Cut, slide_mpp: float | None, pseudonymised: bool) -> dict[str, Any]:
    facts = {name: value for name, value in asdict(cut).items() if name not in ENCODED_ONLY}
    return {"kind": "slides", **facts, "slide_mpp": slide_mpp, "pseudonymised": pseudonymised}


def tiles_of_data_set(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """Of a manifest: what must be equal for two data sets to stand in one table."""
    return {"kind": "tiles", **{name: made_by.get(name) for name in ("size", "stride", "mpp", "mpp_range")}}


def settle(to: str, recipe: Recipe, cfg: config.Storage) -> None:
    """Writes the recipe of a new table, or finds that the one at `to` is of this recipe.

    Raises:
        EmbedRefused: names the first field that differs, with both values.
    """
    there = read_recipe(to, cfg)
    if there is None:
        storage.write_json(storage.join(to, RECIPE), recipe.model_dump(mode="json"), cfg)
        return
    now = json.loads(recipe.model_dump_json())
    for field, was, is_now in differences(there.model_dump(mode="json"), now):
        raise EmbedRefused(
            f"the embeddings at {to} were made with {field} = {was!r}, not {is_now!r}; choose another place, or the "
            "old value"
        )


def read_recipe(to: str, cfg: config.Storage) -> Recipe | None:
    """The recipe of the table at `to`; none where nothing is.

    Raises:
        EmbedRefused: a recipe that cannot be read.
    """
    where = storage.join(to, RECIPE)
    try:
        return Recipe.model_validate(storage.read_json(where, cfg))
    except storage.NotFound:
        return None
    except ValidationError:
        raise EmbedRefused(f"{where} is no recipe of this version; choose another place, or delete {to}") from None


def cut_of(
    *,
    size: int | None,
    mpp: tuple[str, ...],
    min_tissue: float | None,
    stride: int | None,
    keep: tuple[str, ...],
    cap: int | None,
) -> Cut | None:
    """How slides are cut, as in `tiles cut`; none where nothing is said of it."""
    given = (size, min_tissue, stride, cap)
    if not mpp and not keep and all(value is None for value in given):
        return None
    several, mpp_range = resolutions(mpp or "0.5")
    side = size if size is not None else Cut.size
    least = min_tissue if min_tissue is not None else Cut.min_tissue
    return Cut(side, stride if stride is not None else side, several, mpp_range, least, keep, cap)
