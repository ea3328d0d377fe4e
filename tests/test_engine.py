"""DeepSpeed agrees with plain PyTorch at every ZeRO stage, without a compiler, and restores at another world size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

WORKER = """
import json, os, sys
import numpy as np, torch, torch.distributed as dist
from pathlib import Path
from tests.gpu.test_spine_gpu import DIMS, batch, run_of, standardisers
from pathryoshka.distill import engine
from pathryoshka.distill.model import build_module
from pathryoshka.distill.step import reduce_metrics, train_step
from pathryoshka.distill.train import to_device

stage, begin, end, load, save = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
torch.set_num_threads(1)
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
if world > 1 or stage >= 0:
    dist.init_process_group("gloo")
run = run_of(device="cpu", num_workers=world, zero_stage=max(stage, 0), micro_batch=16)
run = run.model_copy(update={"loss": run.loss.model_copy(update={"token_widths_per_step": 1, "widths_per_step": 1})})
torch.manual_seed(0)
module, cpu = build_module(run, DIMS), torch.device("cpu")
if stage < 0:
    from tests.bench.bare import PlainEngine
    core, divided_by = PlainEngine(module, run), 64 // 16
else:
    saved_world = json.loads((Path(load) / "world.json").read_text()) if load != "-" else world
    universal = saved_world != world and stage > 0
    if universal and rank == 0:
        engine.to_universal(Path(load), stage)
    dist.barrier()
    core, divided_by = engine.build_engine(module, run, world, universal=universal), None
    if load != "-":
        engine.restore(core, Path(load), universal=universal)
    engine.set_lr(core, run.optim.lr)
fitted, losses = standardisers(), []
for step in range(begin, end):
    micro = [batch(run, 4 * step + i) for i in range(4)][rank * 4 // world : (rank + 1) * 4 // world]
    values = reduce_metrics([train_step(core, [to_device(m, cpu, run) for m in micro], fitted, run, step, divided_by)])
    losses.append(values["loss"])
if save != "-":
    engine.save(core, Path(save))
    (Path(save) / "world.json").write_text(str(world))
print("SAID", json.dumps(losses))
if dist.is_initialized():
    dist.destroy_process_group()
"""


STATISTICS = """
import json, os, torch, torch.distributed as dist
from pathryoshka.distill.engine import share_statistics
dist.init_process_group("gloo")
norm = torch.nn.BatchNorm1d(2, momentum=1.0)
norm(torch.tensor([[0.0, 1.0], [4.0, 3.0]]) * (1 + 2 * dist.get_rank()))
share_statistics(norm)
print("SAID", json.dumps([norm.running_mean.tolist(), norm.running_var.tolist()]))
dist.destroy_process_group()  # gloo's threads abort a process that ends while they run
"""


def ranks(world: int, program: str, *words: str) -> list[Any]:
    """What each rank of a program in processes of its own said last after the word SAID. No compiler is on PATH."""
    env = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env |= {"OMP_NUM_THREADS": "1", "PATH": "/nowhere", "DS_ACCELERATOR": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *words],
            env={**env, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(world)
    ]
    out = [process.communicate(timeout=280)[0] for process in started]
    assert all(process.returncode == 0 for process in started), out
    return [json.loads(text.rpartition("SAID")[2]) for text in out]


def losses(stage: int, world: int, steps: range, load: str = "-", save: str = "-") -> list[float]:
    """The loss curve of a run; stage -1 is plain PyTorch."""
    return ranks(world, WORKER, str(stage), str(steps.start), str(steps.stop), load, save)[0]


@pytest.fixture(scope="module")
def plain() -> list[float]:
    return losses(-1, 1, range(8))


def test_batch_norms_are_saved_with_the_statistics_of_all_ranks() -> None:
    # means 2, 2 and three times that; variances (unbiased) 8, 2 and nine times that
    assert ranks(2, STATISTICS) == [[[4.0, 4.0], [40.0, 10.0]]] * 2


def test_plain_pytorch_learns(plain: list[float]) -> None:
    assert plain[-1] < plain[0]


@pytest.mark.parametrize("stage", [1, pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow),
                                   pytest.param(3, marks=pytest.mark.slow)])  # fmt: skip
def test_zero_agrees_with_plain_pytorch_on_two_ranks(plain: list[float], stage: int) -> None:
    assert losses(stage, 2, range(8)) == pytest.approx(plain, rel=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "world"),
    [(3, 1), *(pytest.param(s, w, marks=pytest.mark.full) for s in (0, 1, 2, 3) for w in (1, 4) if (s, w) != (3, 1))],
)
def test_another_number_of_workers_goes_on_as_before(
    plain: list[float], tmp_path: Path, stage: int, world: int
) -> None:
    first = losses(stage, 2, range(4), save=str(tmp_path))
    rest = losses(stage, world, range(4, 8), load=str(tmp_path))
    assert first + rest == pytest.approx(plain, rel=5e-4)
