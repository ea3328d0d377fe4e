"""The helpers of the throughput tests, at a size for two cores; the real sizes run in tests/gpu."""

from __future__ import annotations

import pytest
import torch

from pathryoshka import config
from tests.throughput import matmul_tflops, rate_of, rates_side_by_side

TINY = config.Teacher(model="timm:test_vit", device="cpu", batch_size=4)
CPU = torch.device("cpu")


def test_the_peak_of_a_product_bounds_a_teacher() -> None:
    peak = matmul_tflops(CPU, n=512, dtype=torch.float32, seconds=0.2)
    rate = rate_of("tiny", TINY, CPU, seconds=0.3, size=160)
    assert 1e-4 < peak < 100 and rate.tiles_per_s > 1 and 0 < rate.tflops < peak and rate.memory_gib > 0.1
    assert rate.tflops == pytest.approx(rate.tiles_per_s * 0.0751 / 1e3, rel=1e-2)  # GFLOP a tile, by timm's counter
    assert "tiles/s" in rate.line(peak) and "fp32" in rate.line(peak)


def test_two_teachers_at_once_each_have_a_rate() -> None:
    rates = rates_side_by_side({"a": TINY, "b": TINY.model_copy(update={"batch_size": 2})}, "cpu", 0.3, size=160)
    assert [(r.teacher, r.batch_size) for r in rates] == [("a", 4), ("b", 2)] and all(r.tiles_per_s > 0 for r in rates)


@pytest.mark.slow
def test_a_teacher_that_fails_is_told_and_ends_the_wait() -> None:
    with pytest.raises(AssertionError, match="unknown teacher|BrokenBarrier"):
        rates_side_by_side({"a": TINY, "b": config.Teacher(model="no_such", device="cpu")}, "cpu", 0.1, size=160)
