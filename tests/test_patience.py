"""A slow consumer: Ray Data's scheduling loop waits with it instead of turning round as fast as it can."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.data import ExecutionOptions, ExecutionResources

from pathryoshka.distill import stream
from pathryoshka.patience import PAUSE_S, Patience
from pathryoshka.session import ray_session
from tests.runs import short_tmp


def blocks(batch: dict[str, np.ndarray], stream: Any) -> Iterator[dict[str, np.ndarray]]:
    for _ in range(8):
        yield {"x": np.zeros((1, 4 * 2**20), np.uint8)}


def test_the_streams_loop_rests_while_nobody_takes_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the CPU time of this process, where the loop runs: 3.0 s in three seconds without patience, .2 with it."""
    limits = ExecutionResources.for_limits(object_store_memory=2**24)
    monkeypatch.setattr(stream, "execution_options", lambda _: ExecutionOptions(resource_limits=limits))
    monkeypatch.setenv("RAY_TMPDIR", str(short_tmp()))
    with ray_session(4):
        some: Any = SimpleNamespace(read_tasks=2)
        batches = iter(stream.from_items(some, [{"segment": k} for k in range(8)], blocks).iter_batches(batch_size=1))
        taken = sum(len(next(batches)["x"]) for _ in range(3))
        time.sleep(1)
        before = time.process_time()
        time.sleep(3)
        spent = time.process_time() - before
        taken += sum(len(batch["x"]) for batch in batches)
    assert spent < 0.8 and taken == 64


def turn(of: Patience, *counts: int) -> float:
    """Seconds that a turn takes after which operators have done so much."""
    facts = [SimpleNamespace(num_tasks_submitted=n, num_tasks_finished=0, num_task_outputs_generated=0,
                             num_outputs_taken=0) for n in counts]  # fmt: skip
    executor: Any = SimpleNamespace(_topology=[SimpleNamespace(metrics=m) for m in facts])
    started = time.perf_counter()
    of.on_execution_step(executor)
    return time.perf_counter() - started


def test_it_pauses_only_where_a_quick_turn_did_nothing() -> None:
    patience = Patience()
    assert turn(patience, 1, 2) < PAUSE_S  # something was done
    assert turn(patience, 1, 2) >= PAUSE_S
    assert turn(patience, 2, 2) < PAUSE_S
    time.sleep(1.5 * PAUSE_S)  # `ray.wait` has waited
    assert turn(patience, 2, 2) < PAUSE_S
