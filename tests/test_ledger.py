"""The plan minus the ledger is what is left, in whole micro-batches, for any history and any number of workers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathryoshka.tiles.ledger import Ledger, LedgerError, remaining, undone
from tests.test_plan import plan_of


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 500), max_size=200, unique=True), st.integers(1, 9))
def test_ledger_is_a_set_of_seqs(seqs: list[int], parts: int) -> None:
    ledger = Ledger()
    for part in np.array_split(np.array(seqs, np.int64), parts):
        ledger = ledger.add(part)
    assert ledger.count == len(seqs)
    np.testing.assert_array_equal(ledger.mask(np.arange(501)), np.isin(np.arange(501), seqs))
    assert all(a[1] < b[0] for a, b in zip(ledger.ranges, ledger.ranges[1:], strict=False))
    assert Ledger.from_json(ledger.to_json()) == ledger


def test_a_seq_counts_once() -> None:
    ledger = Ledger().add(np.array([3, 4, -1, -1]))
    with pytest.raises(LedgerError, match="seq 4 was trained on before"):
        ledger.add(np.array([4]))
    with pytest.raises(LedgerError, match="seq 7 was delivered twice"):
        ledger.add(np.array([7, 8, 7]))


def test_content_does_not_depend_on_order() -> None:
    a = Ledger().add(np.array([1]), content=2**63 + 5).add(np.array([0]), content=2**63 + 9)
    b = Ledger().add(np.array([0]), content=2**63 + 9).add(np.array([1]), content=2**63 + 5)
    assert a == b and a.content == 14 and a.digest() == b.digest() != Ledger().digest()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 1500),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(1, 300)), max_size=5),
    st.sampled_from([(16, 48), (32, 64), (64, 64), (8, 48)]),
)
def test_work_is_exactly_what_the_ledger_lacks(
    num_views: int, done: list[tuple[int, int]], batch: tuple[int, int]
) -> None:
    plan = plan_of([[64, 64, 30], [50]], num_views=num_views, window=2)
    had = np.unique(np.concatenate([np.arange(a, min(a + n, num_views)) for a, n in done] or [np.zeros(0, int)]))
    ledger = Ledger().add(had)
    micro, total = batch
    work = remaining(plan, ledger, micro_batch=micro, global_batch=total)
    assert work.num_blocks % (total // micro) == 0 and work.padding < total // micro
    left = []
    for k, blocks in zip(work.segments, work.blocks, strict=True):
        segment = plan.segment(k)
        todo = segment.seq[undone(segment, ledger)]
        assert blocks == -(-len(todo) // micro) > 0
        left.append(todo)
    np.testing.assert_array_equal(np.concatenate(left or [np.zeros(0, int)]), np.setdiff1d(np.arange(num_views), had))
