"""Balanced plans: shares as asked, counted by hand; every draw of a tile once; the laws of unbalanced plans hold."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from pathryoshka import config
from pathryoshka.recipes import debug
from pathryoshka.runs.inputs import make_stream, plan_of, tiles_of
from pathryoshka.tiles.ledger import Ledger
from pathryoshka.tiles.plan import PHASES, REPEATS, Plan, PlanError, Weights, make_plan, rates
from pathryoshka.tiles.segments import segment_batches
from tests.blotches import rows, write
from tests.test_plan import entry

GROUPS = [[64, 64, 17]] * 3 + [[64]] * 2 + [[9]]
NUM_TILES = 3 * 145 + 2 * 64 + 9


def plan_with(weights: np.ndarray | None, **more: object) -> Plan:
    flat = [(s, g, rows) for s, groups in enumerate(GROUPS) for g, rows in enumerate(groups)]
    shard, group, rows = (tuple(c) for c in zip(*flat, strict=True))
    values = {"seed": 3, "num_views": 20_000, "window": 2, "mix_share": 0.3} | more
    return Plan(shard, group, rows, **values, weights=None if weights is None else Weights.of(weights))  # type: ignore[arg-type]


def tiles(plan: Plan) -> list[tuple[int, int, int, int]]:
    """(shard, group, row, draw) of the whole plan."""
    found = []
    for k in range(plan.num_segments):
        s = plan.segment(k)
        columns = (column[s.keep].tolist() for column in (s.shard, s.group, s.row, s.draw))
        found += list(zip(*columns, strict=True))
    return found


def numbered() -> dict[tuple[int, int, int], int]:
    """(shard, group, row) -> index of the tile."""
    places = [(s, g, r) for s, groups in enumerate(GROUPS) for g, rows in enumerate(groups) for r in range(rows)]
    return {place: i for i, place in enumerate(places)}


def mixed_labels() -> np.ndarray:
    """Weights that share draws evenly among three labels of very different size, mixed in every group."""
    label = np.random.default_rng(0).choice(3, NUM_TILES, p=[0.9, 0.08, 0.02])
    return (1 / np.bincount(label))[label]


def by_shard() -> np.ndarray:
    """Weights that share draws evenly among the shards, as patients with a shard each would have it."""
    sizes = [sum(groups) for groups in GROUPS]
    return np.repeat([1 / size for size in sizes], sizes)


def counted(weights: np.ndarray) -> np.ndarray:
    """How often each tile comes up in the whole plan."""
    index = numbered()
    drawn = Counter(index[tile[:3]] for tile in tiles(plan_with(weights)))
    return np.array([drawn[i] for i in range(NUM_TILES)])


@pytest.mark.parametrize("weights", [mixed_labels(), by_shard(), np.random.default_rng(1).random(NUM_TILES) ** 4])
def test_tiles_come_up_as_often_as_their_weight_says(weights: np.ndarray) -> None:
    """To within two roundings down and the round in which the plan breaks off."""
    counts, want = counted(weights), 20_000 * weights / weights.sum()
    assert counts.sum() == 20_000
    assert (np.abs(counts - want) <= 2 + 2 * REPEATS + want / (20_000 / NUM_TILES)).all()


def test_labels_and_shards_share_the_draws_evenly() -> None:
    weights = mixed_labels()
    shares = [counted(weights)[weights == w].sum() / 20_000 for w in np.unique(weights)]
    np.testing.assert_allclose(shares, 1 / 3, rtol=0.02)
    shard = np.repeat(np.arange(len(GROUPS)), [sum(groups) for groups in GROUPS])
    np.testing.assert_allclose(np.bincount(shard, counted(by_shard())) / 20_000, 1 / 6, rtol=0.02)


@pytest.mark.parametrize("weights", [mixed_labels(), by_shard()])
def test_every_draw_of_a_tile_comes_once_from_the_first_on(weights: np.ndarray) -> None:
    """So each view's key is unique, and draws of a tile count up without a gap but where the plan breaks off."""
    found = tiles(plan_with(weights))
    assert len(set(found)) == len(found)
    draws: dict[tuple[int, int, int], list[int]] = {}
    for *tile, draw in found:
        draws.setdefault((tile[0], tile[1], tile[2]), []).append(draw)
    gaps = sum(max(of) + 1 - len(of) for of in draws.values())
    assert gaps <= NUM_TILES  # of the last round, whose visits are shuffled


def test_a_longer_balanced_plan_extends_a_shorter_one_and_segments_stand_alone() -> None:
    short, long = plan_with(mixed_labels(), num_views=900), plan_with(mixed_labels(), num_views=9000)
    late = long.segment(50)  # first, without those before it
    for k in range(short.num_segments):
        for field in ("seq", "shard", "group", "row", "draw", "partner"):
            np.testing.assert_array_equal(getattr(short.segment(k), field), getattr(long.segment(k), field))
    fresh = plan_with(mixed_labels(), num_views=9000).segment(50)
    np.testing.assert_array_equal(late.row, fresh.row)
    assert not np.array_equal(plan_with(mixed_labels(), seed=4).segment(0).row, short.segment(0).row)


def test_weights_of_one_are_an_epoch_and_weight_nothing_never_comes_up() -> None:
    weights = np.ones(NUM_TILES)
    dropped = [0, 5, 100, *range(NUM_TILES - 9, NUM_TILES)]  # the last shard as a whole
    weights[dropped] = 0
    plan = plan_with(weights, num_views=6 * (NUM_TILES - len(dropped)))
    assert plan.num_tiles == NUM_TILES - len(dropped)
    index = numbered()
    early = sorted((index[tile[:3]], tile[3]) for tile in tiles(plan) if tile[3] < 5)  # the sixth epoch breaks off
    assert early == [(i, draw) for i in range(NUM_TILES) if i not in dropped for draw in range(5)]
    with pytest.raises(PlanError, match="every tile of the splits was dropped"):
        make_plan(
            [entry("a", None, (4,))],
            splits=(),
            seed=0,
            num_views=1,
            window=1,
            mix_share=0,
            weights=Weights.of(np.zeros(4)),
        )


def test_a_tile_does_not_fill_a_visit_and_few_groups_are_read() -> None:
    plan = plan_with(mixed_labels())
    found = rates(plan)
    assert found.times.max() <= REPEATS and found.phase.max() < 1 and (found.phase * PHASES % 1 == 0).all()
    for k in range(0, plan.num_segments, 9):
        s = plan.segment(k)
        assert max(Counter(zip(s.shard, s.group, s.row, strict=True)).values()) <= 5 * (REPEATS + 1)


def test_weights_are_compared_by_digest_and_cheap_for_a_million_tiles() -> None:
    assert Weights.of(np.ones(5)) == Weights.of(np.ones(5)) != Weights.of(np.zeros(5))
    rows = tuple([64] * 15_625)
    weights = Weights.of(np.random.default_rng(0).random(10**6))
    plan = Plan(
        tuple(i // 32 for i in range(len(rows))),
        tuple(i % 32 for i in range(len(rows))),
        rows,
        1,
        10**8,
        8,
        0.5,
        weights,
    )
    plan.segment(100_000)
    started = time.process_time()
    for k in range(100_001, 100_011):
        assert plan.segment(k).keep.all()
    assert (time.process_time() - started) / 10 < 0.1


def test_a_balanced_plan_is_delivered_seq_by_seq(tmp_path: Path) -> None:
    """Real tiles through the readers: every planned seq once, no view twice, sites as even as asked."""
    tiles = rows(40, split="distil", site="north") + rows(8, start=40, split="distil", site="south")
    uri = write(tmp_path / "set", tiles)
    run = debug()
    run = run.model_copy(
        update={
            "data": run.data.model_copy(update={"tiles": (uri,), "splits": ()}),
            "views": run.views.model_copy(update={"size": 32, "mix_share": 0.0, "per_tile": 0}),
            "plan": config.Plan(balance="site", num_views=1500, window=2),
        }
    )
    manifests = tiles_of(run)
    source = make_stream(run, manifests, plan_of(run, manifests), (2, 2), {}).source
    ledger, south, pictures = Ledger(), 0, set()
    for k in range(source.plan.num_segments):
        segment = source.plan.segment(k)
        south += int(((segment.group * 16 + segment.row) >= 40)[segment.keep].sum())
        for batch in segment_batches(source, source.plan.segment(k), Ledger()):
            real = batch.weight > 0
            ledger = ledger.add(batch.seq[real])
            pictures |= {view.tobytes() for view in batch.views[real]}
    assert ledger.ranges == ((0, 1500),) and len(pictures) == 1500
    assert abs(south / 1500 - 0.5) < 0.02  # a visit is 16 entries, and the plan breaks off inside of one


def test_the_verbs_say_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from pathryoshka.cli import cli
    from pathryoshka.tiles.duplicates import Found

    found = mock.Mock(return_value=Found({("near", "across splits"): 3}, 60, "set/_duplicates.parquet", True))
    monkeypatch.setattr("pathryoshka.tiles.duplicates.find_duplicates", found)
    monkeypatch.setattr("pathryoshka.session.ray_session", lambda cpus: contextlib.nullcontext())
    said = CliRunner().invoke(cli, ["tiles", "duplicates", "set", "--drop", "--keep", "test"], catch_exceptions=False)
    assert "across splits: 0 exact, 3 near" in said.output and "3 tiles are left out" in said.output
    assert found.call_args.args[0] == "set" and found.call_args.kwargs == {"drop": True, "keep": ("test",)}
    cluster = mock.Mock(return_value=np.array([4, 5]))
    monkeypatch.setattr("pathryoshka.clusters.cluster_tiles", cluster)
    said = CliRunner().invoke(cli, ["tiles", "cluster", "set", "--num-clusters", "2"], catch_exceptions=False)
    assert said.output == "set: 9 tiles in 2 clusters of 4 to 5\n"
    assert cluster.call_args.kwargs == {"num_clusters": 2, "seed": 0}
