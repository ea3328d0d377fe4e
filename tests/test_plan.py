"""The plan is a pure function; every tile comes up once an epoch; a longer plan extends a shorter one."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathryoshka.tiles.plan import Plan, PlanError, make_plan
from pathryoshka.tiles.shards import ShardEntry


def plan_of(group_rows: list[list[int]], **more: object) -> Plan:
    """A plan over shards with the given rows in their row groups."""
    flat = [(s, g, rows) for s, groups in enumerate(group_rows) for g, rows in enumerate(groups)]
    shard, group, rows = (tuple(c) for c in zip(*flat, strict=True))
    values = {"seed": 1, "num_views": 3000, "window": 4, "mix_share": 0.5} | more
    return Plan(shard, group, rows, **values)  # type: ignore[arg-type]


def tiles(plan: Plan, index: int) -> list[tuple[int, int, int]]:
    s = plan.segment(index)
    return list(zip(s.shard.tolist(), s.group.tolist(), s.row.tolist(), strict=True))


shards = st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=5), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(shards, st.integers(0, 3))
def test_every_tile_once_an_epoch(rows: list[list[int]], seed: int) -> None:
    plan = plan_of(rows, seed=seed, window=1, num_views=3 * sum(map(sum, rows)))
    seen: dict[int, list[tuple[int, int, int]]] = {0: [], 1: [], 2: []}
    for k in range(plan.num_segments):
        segment = plan.segment(k)
        for tile, draw in zip(tiles(plan, k), segment.draw.tolist(), strict=True):
            seen.setdefault(draw, []).append(tile)
    everything = sorted((s, g, r) for s, groups in enumerate(rows) for g, n in enumerate(groups) for r in range(n))
    assert [sorted(seen[e]) for e in range(3)] == [everything] * 3


def test_longer_plan_extends_shorter() -> None:
    rows = [[64, 64, 10]] * 5
    short, long = plan_of(rows, num_views=900), plan_of(rows, num_views=5000)
    for k in range(short.num_segments):
        a, b = short.segment(k), long.segment(k)
        for field in ("seq", "shard", "group", "row", "draw", "partner"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    assert short.segment(short.num_segments - 1).keep.sum() == 900 - 3 * 256


def test_seed_decides_order() -> None:
    rows = [[64] * 4] * 4
    assert tiles(plan_of(rows), 0) == tiles(plan_of(rows), 0)
    assert tiles(plan_of(rows), 0) != tiles(plan_of(rows, seed=2), 0)


def test_segments_take_row_groups_of_different_shards() -> None:
    plan = plan_of([[64] * 8] * 32, window=8, num_views=16384)
    shards_touched = [len(np.unique(plan.segment(k).shard)) for k in range(plan.num_segments)]
    groups_touched = [len(set(zip(plan.segment(k).shard, plan.segment(k).group, strict=True))) for k in range(32)]
    assert groups_touched == [8] * 32
    assert np.mean(shards_touched) > 7  # 32 shards in turn; 8 at random would touch 7.2 but with runs of one shard
    assert min(shards_touched) >= 6


def test_partners_are_other_tiles_in_the_wanted_share() -> None:
    plan = plan_of([[64] * 16] * 4, window=32, mix_share=0.25, num_views=2048)
    s = plan.segment(0)
    has = s.partner >= 0
    assert abs(has.mean() - 0.25) < 0.04
    tile = np.array(tiles(plan, 0))
    assert not (tile[has] == tile[s.partner[has]]).all(axis=1).any()
    assert (plan_of([[64] * 16], mix_share=0.0).segment(0).partner == -1).all()


def test_a_data_set_of_one_tile_has_a_plan_without_partners() -> None:
    plan = plan_of([[1]], window=1, num_views=100, mix_share=1.0)
    assert (plan.segment(0).partner == -1).all()
    np.testing.assert_array_equal(plan.segment(0).draw[np.argsort(plan.segment(0).draw)], np.arange(64))


def entry(path: str, split: str | None, groups: tuple[int, ...]) -> ShardEntry:
    return ShardEntry(
        path=path,
        rows=sum(groups),
        row_groups=groups,
        bytes=1,
        sha256="0",
        slide_ids=("s",),
        patient_ids=("p",),
        sites=("x",),
        split=split,
    )


def test_splits_pick_shards() -> None:
    shards = (entry("a", "distil", (64, 3)), entry("b", "test", (64,)))
    plan = make_plan(shards, splits=("distil",), seed=0, num_views=10, window=1, mix_share=0)
    assert plan.group_shard == (0, 0) and plan.num_tiles == 67
    with pytest.raises(PlanError, match=r"splits of the data are \['distil', 'test'\]"):
        make_plan(shards, splits=("train",), seed=0, num_views=10, window=1, mix_share=0)


def test_plan_is_cheap_for_millions_of_tiles() -> None:
    plan = plan_of([[64] * 40] * 4000, num_views=10_000_000)  # 10 M tiles
    assert plan.segment(30_000).keep.all()
    assert dataclasses.replace(plan, seed=2).segment(5).seq[0] == 5 * plan.segment_rows
