"""What a stored feature depends on: the recipe of a teacher's part of a store, and whether a run asks for the same.

It must match exactly. That the pixels are the same is not left to a version number: each row carries the hash of the
view that was embedded, and whoever reads it has that view at hand (`features/reader.py`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pathryoshka import config, storage
from pathryoshka.changes import differences
from pathryoshka.features.codec import Codec, CodecError, Format
from pathryoshka.features.coverage import StoreError
from pathryoshka.tiles.views import shared_transform

RECIPE, CODEC = "recipe.json", "codec.safetensors"
VERSION = 1


class Recipe(BaseModel):
    """One teacher's part of a store.

    Attributes:
        teacher: the encoder's fingerprint: row, digest of the weights, input size, precision, grid, ...
        views: the shared transform, its seed and the version of its code.
        tokens: `format`, how many `per_view` out of how many on the student's grid (`of`), `codec_sha256`.
        torch: its version, which resizes views to the teacher's input.
        facts: what a run needs to know of a teacher that it does not load: dimensions, parameters, licence.
        lost: share of the tokens' variance that their format loses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = VERSION
    teacher: dict[str, Any]
    views: dict[str, Any]
    tokens: dict[str, Any]
    torch: str
    facts: dict[str, Any]
    lost: float = 0.0

    @property
    def format(self) -> Format:
        return self.tokens["format"]


def asked(run: config.Run, teacher: dict[str, Any], num_tokens: int, kept_tokens: int) -> dict[str, Any]:
    """What a run asks of a recipe; the parts that are compared.

    Args:
        teacher: the encoder's fingerprint; num_tokens: on the student's grid; kept_tokens: of them a view, 0 = a run
            without losses of tokens, which takes any.
    """
    out: dict[str, Any] = {"teacher": teacher, "views": shared_transform(run.views), "torch": torch_version()}
    if kept_tokens:
        out["tokens"] = {"format": run.store.tokens, "per_view": kept_tokens, "of": num_tokens}
    return out


def torch_version() -> str:
    return importlib.metadata.version("torch").partition("+")[0]  # not asked of torch: readers need not import it


def refuse_other(where: str, recipe: Recipe, wanted: dict[str, Any]) -> None:
    """Refuses a store of something else, by field.

    Raises:
        StoreError: with both values of the first field that differs.
    """
    for key in wanted:
        mine = json.loads(json.dumps(wanted[key]))
        has = getattr(recipe, key)
        if key == "tokens":
            has = {name: has[name] for name in mine}
        for field, stored, now in differences({key: has}, {key: mine}):
            if field == "teacher.precision" and now == "auto":
                continue  # whatever was settled where the store was filled
            raise StoreError(
                f"the store at {where} was filled with {field} = {stored!r}, this run says {now!r}; give the run "
                "another store.uri, or the old value"
            )


def write_recipe(uri: str, recipe: Recipe, codec: Codec, cfg: config.Storage) -> None:
    if codec.format in ("int8", "projected"):
        storage.write_bytes(storage.join(uri, CODEC), codec.to_bytes(), cfg)
    tree = recipe.model_dump(mode="json")
    storage.write_json(storage.join(uri, RECIPE), tree | {"sha256": digest_of(tree)}, cfg)


def read_recipe(uri: str, cfg: config.Storage) -> tuple[Recipe, Codec] | None:
    """The recipe of the teacher kept at `uri` and the codec of its tokens; none where nothing is kept.

    Raises:
        StoreError: there is one, damaged or of another version.
    """
    where = storage.join(uri, RECIPE)
    try:
        tree = storage.read_json(where, cfg)
    except storage.NotFound:
        return None
    try:
        told = tree.pop("sha256")
        recipe = Recipe.model_validate(tree)
    except (ValidationError, KeyError, AttributeError, TypeError):
        raise StoreError(f"{where} is no recipe of this version; delete {uri} and fill the store again") from None
    if told != digest_of(tree) or recipe.version != VERSION:
        raise StoreError(f"{where} was changed after it was written; delete {uri} and fill the store again")
    if recipe.format not in ("int8", "projected"):
        return recipe, Codec(recipe.format)
    data = storage.read_bytes(storage.join(uri, CODEC), cfg)
    if hashlib.sha256(data).hexdigest() != recipe.tokens["codec_sha256"]:
        raise StoreError(f"{storage.join(uri, CODEC)} is not the one of its recipe; delete {uri} and fill it again")
    try:
        return recipe, Codec.from_bytes(data, recipe.format)
    except CodecError as error:
        raise StoreError(str(error)) from None


def digest_of(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
