"""What the stream of a run is made of: manifests, plan, the student's grid, and who answers what."""

from __future__ import annotations

from collections.abc import Callable

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.distill.stream import Stream
from pathryoshka.features.store import Stored, codecs_of, open_store
from pathryoshka.teachers.pool import Facts
from pathryoshka.tiles.balance import weights_of
from pathryoshka.tiles.plan import ROWS, Plan, make_plan
from pathryoshka.tiles.segments import Source
from pathryoshka.tiles.shards import Manifest, read_manifest


def tiles_of(run: config.Run) -> dict[str, Manifest]:
    """The manifests of the run's data sets by URI."""
    if not run.data.tiles:
        raise config.ConfigError(
            "data.tiles is empty; set it to the URI of a data set made by `pathryoshka tiles import`"
        )
    return {uri: read_manifest(uri, run.storage) for uri in run.data.tiles}


def plan_of(run: config.Run, tiles: dict[str, Manifest]) -> Plan:
    plan = make_plan(
        [shard for manifest in tiles.values() for shard in manifest.shards],
        splits=run.data.splits,
        seed=run.plan.seed,
        num_views=run.plan.num_views,
        window=run.plan.window,
        mix_share=run.views.mix_share,
        weights=weights_of(tiles, run.storage, run.data.splits, run.plan),
        views_seed=run.views.seed,
        views_per_tile=run.views.per_tile,
    )
    if plan.segment_rows % run.train.micro_batch:
        raise config.ConfigError(
            f"train.micro_batch={run.train.micro_batch} does not divide a segment of plan.window x {ROWS} = "
            f"{plan.segment_rows} tiles; choose a power of two"
        )
    return plan


def student_grid(run: config.Run) -> tuple[int, int]:
    from pathryoshka.student.encoder import build_student

    return build_student(run.student.model_copy(update={"start": "random"}), run.views.size).grid


def tokens_kept(run: config.Run, grid: tuple[int, int]) -> int:
    """Tokens a view has in this run: as many as are asked for, all, or none where no loss looks at them."""
    num_tokens = grid[0] * grid[1]
    return min(run.teachers.tokens_per_view or num_tokens, num_tokens) if "tokens" in run.kinds else 0


def make_stream(
    run: config.Run,
    tiles: dict[str, Manifest],
    plan: Plan,
    grid: tuple[int, int],
    dims: dict[str, tuple[int, int]],
    stored: dict[str, Stored] | None = None,
) -> Stream:
    source = Source(
        bases=tuple(uri for uri, manifest in tiles.items() for _ in manifest.shards),
        shards=tuple(shard for manifest in tiles.values() for shard in manifest.shards),
        plan=plan,
        views=run.views,
        storage=run.storage,
        micro_batch=run.train.micro_batch,
        num_tokens=grid[0] * grid[1],
        kept_tokens=tokens_kept(run, grid),
    )
    return Stream(
        source=source,
        failures_uri=storage.join(checkpoint.uri_of(run), "failures"),
        directory=f"{run.name}/directory",
        dims=dims,
        global_batch=run.train.global_batch,
        read_tasks=run.data.read_tasks,
        max_in_flight=run.teachers.max_in_flight,
        deterministic=run.data.deterministic,
        stored=stored or {},
        codecs=codecs_of(stored or {}),
    )


def with_only(run: config.Run, names: list[str]) -> config.Run:
    """The run with these teachers only: what has to be loaded."""
    models = {name: run.teachers.models[name] for name in names}
    return run.model_copy(update={"teachers": run.teachers.model_copy(update={"models": models})})


def must_load(run: config.Run, say: Callable[[str], None] = print) -> config.Run:
    """The run with the teachers that its store does not have in full."""
    if run.store.uri is None:
        return run
    grid = student_grid(run)
    stored = open_store(run, plan_of(run, tiles_of(run)), grid, tokens_kept(run, grid), say)
    return with_only(run, [name for name in run.teachers.models if not is_complete(stored, name)])


def is_complete(stored: dict[str, Stored], name: str) -> bool:
    return name in stored and stored[name].complete


def in_order(run: config.Run, facts: dict[str, Facts]) -> dict[str, Facts]:
    """In the config's order: it decides the order of heads and optimizer states."""
    return {name: facts[name] for name in run.teachers.models}
