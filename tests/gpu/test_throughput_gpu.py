"""The published trio at its real size, with random weights: tiles/s, share of the matrix-multiply peak, memory.

`pytest tests/gpu -s` shows the lines; skipped, loudly, where there is no GPU or one too small.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pathryoshka import config
from pathryoshka.teachers.tune import random_encoder, tune
from pathryoshka.teachers.zoo import ROWS
from tests.throughput import matmul_tflops, rate_of, rates_side_by_side

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU HERE: real teachers were not timed"),
]
TRIO = ("virchow2", "uni2_h", "h_optimus_1")
GIB = 2**30


def teacher(name: str, **over: object) -> config.Teacher:
    return config.Teacher.model_validate({"model": name, "device": "cuda", "batch_size": 64, **over})


@pytest.fixture(scope="module")
def peak() -> float:
    """Of a large bf16 product on this card, TFLOP/s."""
    found = matmul_tflops(torch.device("cuda"))
    print(f"\n{torch.cuda.get_device_name()}: {found:.0f} TFLOP/s in 8192 x 8192 bf16 products")
    return found


@pytest.fixture(autouse=True)
def clean_device() -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.empty_cache()


def need(gib: float) -> None:
    free = torch.cuda.mem_get_info()[0] / GIB
    if free < gib:
        pytest.skip(f"NOT TIMED: {gib:.0f} GiB of GPU memory are needed and {free:.0f} are free")


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", TRIO)
def test_one_teacher_on_one_gpu(name: str, compiled: bool, peak: float) -> None:
    need(16)
    rate = rate_of(name, teacher(name, compile=compiled), torch.device("cuda"), seconds=5)
    print(f"{rate.line(peak)}{', compiled' if compiled else ''}")
    assert rate.precision == ROWS[name].precision  # "auto" on a GPU is what the card of the model recommends
    assert 0.1 < rate.tflops / peak < 1.05  # above the peak the row's GFLOP would be wrong
    assert rate.memory_gib > ROWS[name].num_params * 4 / GIB


def test_two_teachers_share_one_gpu(peak: float) -> None:
    need(32)
    pair = {name: teacher(name) for name in TRIO[:2]}
    alone = {name: rate_of(name, cfg, torch.device("cuda"), seconds=5) for name, cfg in pair.items()}
    torch.cuda.empty_cache()
    both = rates_side_by_side(pair, "cuda", seconds=10)
    for rate in both:
        share = rate.tiles_per_s / alone[rate.teacher].tiles_per_s
        print(f"{rate.line(peak)}, beside the other; {share:.0%} of its rate alone")
        assert 0.2 < share < 1.1
    together = sum(rate.tiles_per_s / alone[rate.teacher].tiles_per_s for rate in both)
    print(f"together {together:.0%} of taking turns")
    assert together > 0.7


@pytest.mark.parametrize("name", TRIO)
def test_half_precision_is_close_to_fp32(name: str) -> None:
    need(16)
    views = torch.randint(0, 256, (4, 224, 224, 3), dtype=torch.uint8)
    torch.manual_seed(0)
    half = random_encoder(name, teacher(name), torch.device("cuda"))
    torch.manual_seed(0)
    full = random_encoder(name, teacher(name, precision="fp32"), torch.device("cuda"))
    ours, theirs = (torch.nn.functional.normalize(e(views)["summary"], dim=-1) for e in (half, full))
    worst = float((ours * theirs).sum(-1).min())
    print(f"{name}: cosine of {ROWS[name].precision} and fp32 summaries at least {worst:.5f}")
    assert worst > 0.99


def test_tune_finds_a_batch_size_within_half_the_card() -> None:
    need(16)
    budget = torch.cuda.mem_get_info()[0] / 2**21
    tuned = tune("uni2_h", teacher("uni2_h"), 224, "cuda", budget, seconds=1)
    for probe in tuned.probes:
        print(f"uni2_h {probe.batch_size:>4}: {probe.views_per_s:.0f} tiles/s, {probe.memory_mib:.0f} MiB")
    assert tuned.best.memory_mib <= budget and tuned.best.batch_size >= 8
