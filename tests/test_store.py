"""A feature store says what the teachers say, or nothing: each way of making it lie is refused or repaired."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pathryoshka import config, storage
from pathryoshka.distill.fanout import FanOut
from pathryoshka.features import recipe as recipes
from pathryoshka.features import upkeep
from pathryoshka.features.coverage import StoreError, read_coverage
from pathryoshka.features.store import codecs_of, open_store
from pathryoshka.runs.inputs import plan_of, tiles_of, tokens_kept
from pathryoshka.storage import parquet
from pathryoshka.tiles import views
from tests.stores import answers, encoders, fill_here, grid_of, read_here, run_of

CFG = config.Storage()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiles and a full store."""
    folder = tmp_path_factory.mktemp("store")
    assert fill_here(run_of(folder)) > 4
    return folder


@pytest.fixture
def place(filled: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    shutil.copytree(filled, tmp_path / "copy")
    parquet.footers.clear()
    return tmp_path / "copy"


def test_the_store_says_what_the_teachers_say_bit_for_bit(filled: Path) -> None:
    run = run_of(filled)
    loaded, rows = encoders(run, grid_of(run)), 0
    for batch in read_here(run):
        live = answers(loaded, batch)
        real = batch["weight"] > 0
        rows += real.sum()
        for name in run.teachers.models:
            assert batch[f"{name}.stored"].all()
            for kind in ("summary", "tokens"):
                np.testing.assert_array_equal(batch[f"{name}.{kind}"][real], live[f"{name}.{kind}"][real])
    assert rows == 400


def test_half_of_the_views_are_mixed_and_keep_their_partners(filled: Path) -> None:
    run = run_of(filled)
    twice = run.model_copy(update={"plan": run.plan.model_copy(update={"num_views": 800, "seed": 7})})
    plans = [plan_of(r, tiles_of(r)) for r in (run, twice)]
    partner: dict[tuple[int, ...], tuple[int, ...] | None] = {}
    for plan in plans:  # two passes in another order: the same view, the same partner
        for k in range(plan.num_segments):
            s = plan.segment(k)
            for i in np.flatnonzero(s.keep):
                j = s.partner[i]
                mine = (int(s.shard[i]), int(s.group[i]), int(s.row[i]), int(s.draw[i]) % 2)
                other = (int(s.shard[j]), int(s.group[j]), int(s.row[j])) if j >= 0 else None
                assert other != mine[:3] and partner.setdefault(mine, other) == other
    assert len(partner) == 400
    assert 0.4 < np.mean([other is not None for other in partner.values()]) < 0.6


def lite(folder: Path, **over: Any) -> config.Run:
    """One real teacher, whose weights are a file."""
    from pathryoshka.teachers import weights
    from pathryoshka.teachers.zoo import row_by_name

    file = folder / "lite0.pth"
    if not file.exists():
        shutil.copy(weights.from_source(row_by_name("efficientnet_lite0"), download=False), file)
    teacher = {"model": "efficientnet_lite0", "weights": str(file), "input_size": 64, "device": "cpu", "batch_size": 16}
    run = run_of(folder, **over)
    models = {"lite": config.Teacher.model_validate(teacher)}
    return run.model_copy(update={"teachers": run.teachers.model_copy(update={"models": models})})


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    import torch

    run = lite(tmp_path, store={"uri": str(tmp_path / "lite")})
    fill_here(run, num_parts=1)
    assert any(batch["lite.stored"].any() for batch in read_here(run))
    file = tmp_path / "lite0.pth"
    state = torch.load(file, weights_only=True)
    next(iter(state.values())).flatten()[0] += 1e-3
    torch.save(state, file)
    with pytest.raises(StoreError, match="teacher.weights_sha256 = '.{64}', this run says '.{64}'"):
        read_here(run)
    file.unlink()  # a lab that has the features and not the weights
    said: list[str] = []
    from pathryoshka.features.store import open_store

    open_store(run, plan_of(run, tiles_of(run)), grid_of(run), 4, said.append)
    assert "lite is taken as it was when the store was filled" in said[0]


REFUSED_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"views": {"seed": 1}}, "views.seed = 0, this run says 1"),
    ({"views": {"scale": (0.5, 1.0)}}, r"views.scale = \[0.4, 1.0\]"),
    ({"views": {"stain": 0.1}}, "views.stain = 0.05, this run says 0.1"),
    ({"views": {"mix": "blend"}}, "views.mix = 'cut', this run says 'blend'"),
    ({"views": {"mix_share": 0.2}}, "views.mix_share"),
    ({"views": {"size": 40}}, "teacher.grid|views.size"),
    ({"teachers": {"tokens_per_view": 5}}, "tokens.per_view = 4, this run says 5"),
    ({"teachers": {"models": {"mock0": {"model": "mock:64x40"}}}}, "teacher.row = 'mock:64x48'"),
    ({"teachers": {"models": {"mock0": {"precision": "bf16"}}}}, "teacher.precision = 'fp32', this run says 'bf16'"),
    ({"store": {"tokens": "int8"}}, "tokens.format = 'exact', this run says 'int8'"),
]


@pytest.mark.parametrize(("over", "words"), REFUSED_CONFIGS, ids=[str(over) for over, _ in REFUSED_CONFIGS])
def test_a_store_of_something_else_is_refused_by_field(filled: Path, over: dict[str, Any], words: str) -> None:
    with pytest.raises(StoreError, match=words):
        read_here(run_of(filled, **over))


def parts(place: Path, teacher: str = "mock0") -> list[Path]:
    return sorted((place / "store" / "teachers" / teacher / "parts").rglob("*.parquet"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def flip_a_part(place: Path) -> None:
    path = parts(place)[0]
    flip(path, path.stat().st_size // 3)


def lose_a_part(place: Path) -> None:
    parts(place)[1].unlink()


def cut_a_part_short(place: Path) -> None:
    path = parts(place)[1]
    path.write_bytes(path.read_bytes()[:-100])


def swap_parts(place: Path) -> None:
    """Two whole parts in each other's place: every checksum is right."""
    first, second = parts(place)[:2]
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def features_of_the_other_teacher(place: Path) -> None:
    for mine, other in zip(parts(place), parts(place, "mock1"), strict=True):
        mine.write_bytes(other.read_bytes())


def flip_the_journal(place: Path) -> None:
    path = sorted((place / "store/teachers/mock0/journal").iterdir())[0]
    flip(path, path.stat().st_size // 3)


def edit_the_recipe(place: Path) -> None:
    path = place / "store/teachers/mock0/recipe.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))


@pytest.mark.parametrize(
    "spoil",
    [
        flip_a_part, lose_a_part, cut_a_part_short, swap_parts, features_of_the_other_teacher, flip_the_journal,
        edit_the_recipe,
    ],
)  # fmt: skip
def test_a_spoilt_store_is_refused(place: Path, spoil: Callable[[Path], None]) -> None:
    spoil(place)
    with pytest.raises(StoreError):
        read_here(run_of(place))


def test_what_is_broken_is_found_dropped_and_filled_again(place: Path) -> None:
    uri, run = str(place / "store"), run_of(place)
    flip_a_part(place)
    lose_a_part(place)
    for holding in upkeep.holdings(uri, CFG):
        found = dict(upkeep.broken(uri, holding, CFG))
        assert len(found) == (2 if holding.name == "mock0" else 0)
        upkeep.drop(uri, holding, set(found), CFG)
    assert fill_here(run) == 2 and fill_here(run) == 0
    parquet.footers.clear()
    assert all(batch["mock0.stored"].all() for batch in read_here(run))
    for holding in upkeep.holdings(uri, CFG):
        assert not dict(upkeep.broken(uri, holding, CFG))


def test_pixels_that_a_library_now_makes_otherwise_are_refused(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    def resized(tile: np.ndarray, size: int) -> np.ndarray:
        return np.asarray(Image.fromarray(tile).resize((size, size), Image.Resampling.BICUBIC))

    monkeypatch.setattr(views, "resized", resized)
    with pytest.raises(StoreError, match="has other pixels than the one whose features are stored"):
        read_here(run_of(filled))


def test_another_torch_or_view_code_is_refused(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "torch_version", lambda: "99.0")
    with pytest.raises(StoreError, match="torch = '.*', this run says '99.0'"):
        read_here(run_of(filled))
    monkeypatch.undo()
    monkeypatch.setattr(views, "VIEW_CODE_VERSION", 99)
    with pytest.raises(StoreError, match="views.version"):
        read_here(run_of(filled))


def test_other_tiles_of_the_same_number_are_not_in_the_store(place: Path) -> None:
    from pathryoshka.tiles.phantom import write_phantom

    shutil.rmtree(place / "tiles")
    write_phantom(str(place / "tiles"), CFG, num_tiles=200, num_patients=5, num_sites=2, size=48, seed=5)
    assert not any(batch["mock0.stored"][batch["weight"] > 0].any() for batch in read_here(run_of(place)))


def test_a_filling_that_stopped_goes_on_and_what_no_journal_names_is_not_used(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert fill_here(run, num_parts=3) == 3
    stray = tmp_path / "store/teachers/mock0/parts/0/v0000-g000000-000000-00000000.parquet"
    stray.parent.mkdir()
    stray.write_bytes(b"half of a part")
    some = sum(int(batch["mock0.stored"][batch["weight"] > 0].sum()) for batch in read_here(run))
    assert 0 < some < 400
    uri = str(tmp_path / "store")
    assert [upkeep.collect(uri, h, CFG)[0] for h in upkeep.holdings(uri, CFG)] == [1, 0]
    assert not stray.exists()
    before = read_coverage(f"{uri}/teachers/mock0", CFG).num_views
    fill_here(run)
    assert before < read_coverage(f"{uri}/teachers/mock0", CFG).num_views == 400
    assert all(batch["mock0.stored"].all() for batch in read_here(run))


def test_a_slide_that_is_added_voids_only_what_it_is_mixed_into(place: Path) -> None:
    from pathryoshka.tiles.phantom import write_phantom

    more = str(place / "more")
    write_phantom(more, CFG, num_tiles=20, num_patients=2, num_sites=1, size=48, seed=9)
    run = run_of(place, data={"tiles": [str(place / "tiles"), more]}, plan={"num_views": 440})
    stored = sum(int(batch["mock0.stored"][batch["weight"] > 0].sum()) for batch in read_here(run))
    groups = sum(len(shard.row_groups) for shard in tiles_of(run)[more].shards)
    old = max(rows for shard in tiles_of(run_of(place))[str(place / "tiles")].shards for rows in shard.row_groups)
    assert 400 > stored >= 400 - 2 * groups * old
    fill_here(run)
    assert all(batch["mock0.stored"].all() for batch in read_here(run))


def test_more_views_a_tile_extend_a_store(place: Path) -> None:
    run = run_of(place, views={"per_tile": 3}, plan={"num_views": 600})
    before = len(parts(place))
    assert fill_here(run) == before // 2
    assert all(batch["mock0.stored"].all() for batch in read_here(run))


@pytest.mark.parametrize(("how", "most"), [("int8", 2e-3), ("projected", 0.2)])
def test_smaller_tokens_lose_what_the_recipe_says(tmp_path: Path, how: str, most: float) -> None:
    run = run_of(tmp_path, store={"uri": str(tmp_path / "small"), "tokens": how, "directions": 16})
    fill_here(run)
    recipe, _ = recipes.read_recipe(str(tmp_path / "small/teachers/mock0"), CFG) or (None, None)
    assert recipe is not None and 0 < recipe.lost < most
    loaded, exact, again = encoders(run, grid_of(run)), [], []
    for batch in read_here(run):
        real = batch["weight"] > 0
        live = answers(loaded, batch)
        np.testing.assert_array_equal(batch["mock0.summary"][real], live["mock0.summary"][real])
        exact.append(live["mock0.tokens"][real].reshape(-1, 48).astype(np.float64))
        again.append(batch["mock0.tokens"][real].reshape(-1, 48).astype(np.float64))
    x, y = np.concatenate(exact), np.concatenate(again)
    lost = ((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert recipe.lost / 1.5 < lost < recipe.lost * 1.5


def test_a_teacher_asked_beside_coarser_tokens_answers_as_coarsely(tmp_path: Path) -> None:
    run = run_of(tmp_path, store={"uri": str(tmp_path / "small"), "tokens": "projected", "directions": 4})
    fill_here(run)
    grid = grid_of(run)
    stored = open_store(run, plan_of(run, tiles_of(run)), grid, tokens_kept(run, grid), lambda _: None)
    loaded, batch = encoders(run, grid), read_here(run)[0]
    live = answers(loaded, batch)

    async def teacher(name: str, views: Any, token_pos: np.ndarray) -> Any:
        return live[f"{name}.summary"], live[f"{name}.tokens"], 0.0

    asker = FanOut.__new__(FanOut)  # what it does with an answer, without actors to get one from
    asker.codecs, asker.count, asker.ask_until_answered = codecs_of(stored), lambda *_: None, teacher  # type: ignore
    real = batch["weight"] > 0
    for name in run.teachers.models:
        summary, tokens, _ = asyncio.run(asker.ask(name, None, batch["token_pos"]))  # type: ignore[arg-type]
        np.testing.assert_array_equal(summary[real], batch[f"{name}.summary"][real])
        np.testing.assert_allclose(tokens[real], batch[f"{name}.tokens"][real], rtol=2e-3, atol=2e-3)
        assert np.abs(tokens[real] - live[f"{name}.tokens"][real]).max() > 0.05, "exact tokens are others"
    exact = run_of(tmp_path)
    fill_here(exact)
    assert codecs_of(open_store(exact, plan_of(exact, tiles_of(exact)), grid, 4, lambda _: None)) == {}


def test_a_run_without_losses_of_tokens_takes_any_store_and_reads_no_tokens(filled: Path) -> None:
    batch = read_here(run_of(filled, loss={"kinds": {"tokens": 0.0}}))[0]
    assert batch["mock0.tokens"].shape[1] == 0 and batch["mock0.stored"].all()


def test_copies_on_a_local_disk_are_read_again_and_bounded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathryoshka.features import cache

    monkeypatch.setattr(cache, "SWEEP_EVERY", 1)
    cached = run_of(place, store={"cache_dir": str(place / "cache"), "cache_bytes": 10**9})
    read_here(cached)
    copies = sorted((place / "cache").iterdir())
    assert copies
    for path in parts(place):
        path.unlink()
    again = read_here(cached)  # all of it from copies
    assert all(batch["mock0.stored"].all() for batch in again)
    flip(copies[0], copies[0].stat().st_size - 3)
    with pytest.raises(StoreError, match="is missing"):  # a damaged copy is fetched again, here in vain
        read_here(cached)
    size = copies[0].stat().st_size
    for n in range(3):
        cache.through_cache(str(place / "small"), 2 * size, str(n), lambda: again_table(size))
    assert sum(p.stat().st_size for p in (place / "small").iterdir()) <= 2 * size


def again_table(size: int) -> Any:
    import pyarrow as pa

    return pa.table({"x": np.zeros(size - 600, np.uint8)})


def test_a_store_that_is_too_large_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    from pathryoshka.features.budget import refuse_too_large
    from pathryoshka.runs import shelving

    run = run_of(tmp_path, store={"max_bytes": 400_000})
    todo = shelving.look(run)
    with pytest.raises(StoreError, match="store.max_bytes .* set views.per_tile=1"):
        refuse_too_large(todo.budget, todo.held, run)
    fill_here(run_of(tmp_path))
    written = sum(path.stat().st_size for path in (tmp_path / "store").rglob("parts/*/*"))
    assert todo.budget.num_views == 400 and todo.budget.num_files == len(list((tmp_path / "store").rglob("parts/*/*")))
    assert 0.7 < written / todo.budget.num_bytes < 1.6, "small parts: a footer counts"
    with pytest.raises(config.ConfigError, match="views.per_tile is 0"):
        shelving.look(run_of(tmp_path, views={"per_tile": 0}))
    with pytest.raises(config.ConfigError, match="store.tokens is none and the run has a loss of tokens"):
        shelving.look(run_of(tmp_path, store={"tokens": "none"}))


def test_in_object_storage(s3_storage: tuple[config.Storage, str], tmp_path: Path) -> None:
    s3, uri = s3_storage
    run = run_of(tmp_path)
    run = run.model_copy(update={"storage": s3, "store": run.store.model_copy(update={"uri": f"{uri}/store"})})
    fill_here(run)
    assert all(batch["mock0.stored"].all() for batch in read_here(run))
    assert storage.exists(f"{uri}/store/teachers/mock0/recipe.json", s3)
