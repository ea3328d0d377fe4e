"""The store as a run sees it: which of its teachers are kept, whether in the same form, and how much of them.

    <store.uri>/teachers/<teacher>/recipe.json, codec.safetensors     what the features depend on
                                   journal/...                        which views are there (coverage.py)
                                   parts/<shard>/v<view>-g<groups>... the features (table.py)

A teacher whose features are complete is not loaded; of the others, what is missing is asked of them live.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pathryoshka import config, storage
from pathryoshka.features import recipe as recipes
from pathryoshka.features.codec import Codec
from pathryoshka.features.coverage import Coverage, read_coverage
from pathryoshka.tiles.plan import Plan

TEACHERS = "teachers"


@dataclass(frozen=True)
class Stored:
    """One teacher's part of the store, all that a reader needs; picklable.

    Attributes:
        complete: every view of the plan is there.
        cache_dir: folder for copies of what was read out of object storage, or None; cache_bytes: most bytes there.
    """

    name: str
    uri: str
    recipe: recipes.Recipe
    codec: Codec
    coverage: Coverage
    complete: bool
    cache_dir: str | None
    cache_bytes: int

    @property
    def dims(self) -> tuple[int, int]:
        return self.recipe.facts["summary_dim"], self.recipe.facts["token_dim"]


def open_store(
    run: config.Run, plan: Plan, grid: tuple[int, int], kept_tokens: int, say: Callable[[str], None] = print
) -> dict[str, Stored]:
    """The teachers of a run that its store keeps; empty without a store.

    Raises:
        StoreError: kept in another form than the run asks for; ConfigError: views are not limited.
    """
    if run.store.uri is None:
        return {}
    refuse_unlimited(run)
    found: dict[str, Stored] = {}
    for name in run.teachers.models:
        uri = teacher_uri(run.store.uri, name)
        kept = recipes.read_recipe(uri, run.storage)
        if kept is None:
            continue
        recipe, codec = kept
        teacher = fingerprint(run, name, grid, recipe, say)
        recipes.refuse_other(uri, recipe, recipes.asked(run, teacher, grid[0] * grid[1], kept_tokens))
        coverage = read_coverage(uri, run.storage)
        complete = not coverage.missing(plan).any()
        cache = storage.absolute(run.store.cache_dir) if run.store.cache_dir else None
        found[name] = Stored(name, uri, recipe, codec, coverage, complete, cache, run.store.cache_bytes)
    return found


def codecs_of(stored: dict[str, Stored]) -> dict[str, Codec]:
    """What makes a teacher's tokens as coarse as the store keeps them, for whoever is asked beside it."""
    return {name: one.codec for name, one in stored.items() if one.codec.lossy}


def teacher_uri(store_uri: str, name: str) -> str:
    return storage.join(store_uri, TEACHERS, name)


def refuse_other_teachers(stored: dict[str, Stored], loaded: dict[str, dict[str, Any]]) -> None:
    """What a store has is not mixed with what another teacher, or the same at another precision, says of the rest.

    Args:
        loaded: teacher -> the fingerprint of the encoder that was loaded.
    """
    for name, teacher in loaded.items():
        if name in stored:
            recipes.refuse_other(stored[name].uri, stored[name].recipe, {"teacher": teacher})


def fingerprint(
    run: config.Run, name: str, grid: tuple[int, int], recipe: recipes.Recipe, say: Callable[[str], None]
) -> dict[str, Any]:
    """Of the teacher that the run names, from its files alone. Where they are not at hand the store is trusted, and
    that is said: a lab may share features of weights that it may not share."""
    from pathryoshka.teachers.encoder import EncoderError, claimed_fingerprint  # torch: not for readers

    try:
        return claimed_fingerprint(name, run.teachers.models[name], grid, run.storage)
    except EncoderError as error:
        say(f"store: {name} is taken as it was when the store was filled, for its weights are not here ({error})")
        return recipe.teacher


def refuse_unlimited(run: config.Run) -> None:
    if not run.views.per_tile:
        raise config.ConfigError(
            "a feature store holds a limited number of views a tile, and views.per_tile is 0; set it to e.g. 8"
        )
    if run.store.tokens == "none" and "tokens" in run.kinds:
        raise config.ConfigError(
            "store.tokens is none and the run has a loss of tokens; set loss.kinds.tokens=0, or store.tokens=exact"
        )
