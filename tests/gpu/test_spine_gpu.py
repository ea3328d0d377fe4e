"""The spine on real GPUs: NCCL, bf16 ZeRO 1-3, pinned transfer, each teacher on its own device, a step without syncs.

Run where there is one (`make test-full` or `pytest tests/gpu`); skipped, loudly, where there is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pathryoshka import config
from pathryoshka.distill import engine
from pathryoshka.distill.model import build_module
from pathryoshka.distill.step import reduce_metrics, train_step
from pathryoshka.distill.train import to_device
from pathryoshka.recipes import recipe_by_name
from pathryoshka.teachers.standardize import Moments, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU HERE: the GPU half of the spine was not tested"),
]
DIMS = {"a": (96, 80), "b": (64, 64)}


def run_of(**train: Any) -> config.Run:
    tree = config.overlay(
        recipe_by_name("debug").model_dump(),
        {
            "student": {"model_args": {"embed_dim": 192, "num_heads": 3}, "widths": [48, 192]},
            "train": {"device": "cuda", "num_workers": 1, "global_batch": 64, "micro_batch": 32, **train},
        },
    )
    tree["teachers"]["models"] = {"a": {"model": "mock"}, "b": {"model": "mock"}}
    return config.make_run(tree)


def batch(run: config.Run, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    b, n = run.train.micro_batch, (run.views.size // 8) ** 2
    out: dict[str, np.ndarray] = {
        "views": rng.integers(0, 255, (b, run.views.size, run.views.size, 3), np.uint8),
        "seq": np.arange(b) + seed * b,
        "weight": np.ones(b, np.float32),
        "token_pos": np.tile(np.arange(n, dtype=np.int32), (b, 1)),
    }
    for name, (ds, dt) in DIMS.items():
        out[f"{name}.summary"] = rng.normal(size=(b, ds)).astype(np.float16)
        out[f"{name}.tokens"] = rng.normal(size=(b, n, dt)).astype(np.float16)
    return out


def standardisers() -> dict[tuple[str, str], Any]:
    out = {}
    for name, dims in DIMS.items():
        for kind, d in zip(("summary", "tokens"), dims, strict=True):
            x = np.random.default_rng(0).normal(size=(500, d))
            moments = Moments(d)
            moments.update(x)
            out[name, kind] = fit(moments, "phi_s", x.astype(np.float32))
    return out


@pytest.fixture(scope="module")
def group() -> Any:
    """A process group of one rank on NCCL."""
    import torch.distributed as dist

    dist.init_process_group("nccl", init_method="tcp://127.0.0.1:29577", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bf16_zero_trains_saves_and_restores(group: Any, tmp_path: Path, zero_stage: int) -> None:
    run = run_of(precision="bf16", zero_stage=zero_stage)
    device = torch.device("cuda", 0)
    core = engine.build_engine(build_module(run, DIMS).to(device), run, 1)
    fixed = [to_device(batch(run, i), device, run) for i in range(2)]
    losses = []
    for step in range(20):
        losses.append(reduce_metrics([train_step(core, fixed, standardisers(), run, step)])["loss"])
    assert losses[-1] < 0.9 * losses[0]
    engine.save(core, tmp_path)
    other = engine.build_engine(build_module(run, DIMS).to(device), run, 1)
    engine.restore(other, tmp_path, universal=False)
    again = reduce_metrics([train_step(other, fixed, standardisers(), run, 20)])["loss"]
    assert abs(again - losses[-1]) < 0.1 * losses[-1]


def test_the_step_does_not_wait_for_the_device(group: Any) -> None:
    run = run_of(zero_stage=0)
    device = torch.device("cuda", 0)
    core = engine.build_engine(build_module(run, DIMS).to(device), run, 1)
    fixed, fitted = [to_device(batch(run, i), device, run) for i in range(2)], standardisers()
    train_step(core, fixed, fitted, run, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = core(fixed[0]["views"], fixed[0]["token_pos"], (192,), (192,))
        assert loss is not None
        train_step(core, fixed, fitted, run, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_transfer_is_pinned_and_exact() -> None:
    run = run_of()
    made = batch(run, 3)
    moved = to_device(made, torch.device("cuda", 0), run)
    for name, value in moved.items():
        np.testing.assert_array_equal(value.cpu().numpy(), made[name])


def test_each_teacher_on_its_own_device(tmp_path: Path) -> None:
    import ray

    from pathryoshka.session import ray_session
    from pathryoshka.teachers.pool import TeacherPool

    share = 1.0 if torch.cuda.device_count() > 1 else 0.5
    lite = {"device": "cuda", "num_gpus": share, "batch_size": 32}
    teachers = config.Teachers(
        models={f"lite{n}": config.Teacher.model_validate({"model": f"efficientnet_lite{n}", **lite}) for n in range(2)}
    )
    with ray_session(4), TeacherPool("gpu", teachers, (4, 4), 128, config.Storage()) as pool:
        facts = pool.wait_ready()
        assert all(f.device == "cuda" and f.memory_mib > 0 for f in facts.values())
        views = np.zeros((4, 128, 128, 3), np.uint8)
        pos = np.tile(np.arange(16, dtype=np.int32), (4, 1))
        for member in pool.members:
            summary, tokens, _ = ray.get(member.actor.embed.remote(views, pos))
            assert summary.shape == (4, 1280) and tokens.shape == (4, 16, 1280) and np.isfinite(summary).all()
