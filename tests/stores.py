"""A small feature store for tests, filled and read by the real code, without Ray between its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathryoshka import config
from pathryoshka.distill.stream import micro_batch_of, read_segments
from pathryoshka.features import coverage
from pathryoshka.features.filling import write_part
from pathryoshka.features.store import open_store
from pathryoshka.recipes import recipe_by_name
from pathryoshka.runs import shelving
from pathryoshka.runs.inputs import make_stream, plan_of, student_grid, tiles_of, tokens_kept
from pathryoshka.teachers.encoder import Encoder, load_encoder, sample_tokens
from pathryoshka.teachers.pool import Facts
from pathryoshka.tiles.ledger import Ledger
from pathryoshka.tiles.phantom import write_phantom


def run_of(folder: Path, **over: Any) -> config.Run:
    """200 phantom tiles of 5 patients, two mock teachers, two views a tile, 4 of 16 tokens."""
    uri = str(folder / "tiles")
    if not (folder / "tiles" / "_manifest.json").exists():
        write_phantom(uri, config.Storage(), num_tiles=200, num_patients=5, num_sites=2, size=48)
    tree: dict[str, Any] = {
        "data": {"tiles": [uri]},
        "views": {"size": 32, "per_tile": 2},
        "plan": {"num_views": 400, "window": 2},
        "teachers": {"tokens_per_view": 4},
        "train": {"num_workers": 1},
        "storage": {"root": str(folder / "runs")},
        "store": {"uri": str(folder / "store"), "part_rows": 64},
    }
    return config.make_run(config.overlay(config.overlay(recipe_by_name("debug").model_dump(), tree), over))


def encoders(run: config.Run, grid: tuple[int, int]) -> dict[str, Encoder]:
    return {name: load_encoder(name, t, grid, "cpu", run.storage) for name, t in run.teachers.models.items()}


def facts_of(encoder: Encoder) -> Facts:
    fingerprint = encoder.fingerprint
    return Facts(encoder.summary_dim, encoder.token_dim, 0, "apache-2.0", {}, fingerprint, "", "", 0, 0.0, 0.0)


def answers(loaded: dict[str, Encoder], batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """What replicas say of a micro-batch."""
    out = {}
    for name, encoder in loaded.items():
        features = encoder(batch["views"])
        tokens = sample_tokens(features["tokens"], torch.from_numpy(batch["token_pos"]))
        out[f"{name}.summary"] = features["summary"].to(torch.float16).numpy()
        out[f"{name}.tokens"] = tokens.to(torch.float16).numpy()
    return out


def fill_here(run: config.Run, num_parts: int | None = None) -> int:
    """Fills the store with all, or the first, parts that it lacks; returns how many."""
    todo = shelving.look(run, say=lambda _: None)
    if not todo.parts:
        return 0
    loaded = {name: e for name, e in encoders(run, todo.grid).items() if name in todo.lacking}
    facts = {name: facts_of(encoder) for name, encoder in loaded.items()}
    stream = shelving.stream_of(todo, facts, "test")
    parts = todo.parts[:num_parts]

    def rows(n: int) -> list[dict[str, Any]]:
        made = [next(shelving.read_parts({"part": np.array([i])}, stream, todo.plan, todo.parts)) for i in range(n)]
        return [row | shelving.batched(answers(loaded, micro_batch_of(row))) for row in made]

    tokens = shelving.tokens_in(rows(min(8, len(todo.parts))), stream)
    shelves = {name: shelving.shelf(todo, name, fact, stream, tokens[name]) for name, fact in facts.items()}
    for row, part in zip(rows(len(parts)), parts, strict=True):
        batch = shelving.with_names(micro_batch_of(row))
        for to in shelves.values():
            if to.missing[list(part.groups), part.view_id].any():
                written = write_part(to, todo.plan, stream.source.shards, part, batch, run.storage)
                coverage.append(to.uri, written, run.storage)
    return len(parts)


def grid_of(run: config.Run) -> tuple[int, int]:
    return student_grid(run)


def read_here(run: config.Run) -> list[dict[str, np.ndarray]]:
    """Every micro-batch of the plan as readers make it, with what the store has."""
    tiles, grid = tiles_of(run), grid_of(run)
    plan = plan_of(run, tiles)
    stored = open_store(run, plan, grid, tokens_kept(run, grid), lambda _: None)
    stream = make_stream(run, tiles, plan, grid, {name: one.dims for name, one in stored.items()}, stored)
    read = read_segments({"segment": np.arange(plan.num_segments)}, stream, Ledger())
    return [micro_batch_of(row) for row in read]
