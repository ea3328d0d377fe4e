"""DeepSpeed, and nothing else of the project knows it: build an engine, save it, load it at any world size."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import distribute_bn
from torch import nn

from pathryoshka import config

TAG = "engine"


class EngineError(RuntimeError):
    """An engine that cannot be built or restored, and what to do."""


def import_deepspeed() -> Any:
    """DeepSpeed without its C++ operator for CPU collectives, so that no machine needs a compiler.

    On a CPU, DeepSpeed would compile `deepspeed_shm_comm` (95 s) before the first step to speed up collectives within
    a node; gloo does the same work without it. GPU runs use NCCL and never reach that code.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with silent(everything=True):  # its import tries compilers and linkers, which complain on the terminal
        import deepspeed
        import deepspeed.ops
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(run: config.Run, world_size: int, universal: bool, num_params: int) -> dict[str, Any]:
    train = run.train
    zero: dict[str, Any] = {"stage": train.zero_stage, "stage3_param_persistence_threshold": 0}
    if train.zero_stage in (1, 2):
        # a buffer of this size is taken at each step: DeepSpeed's 2 GB is page faults for a small student
        zero["reduce_bucket_size"] = min(num_params, 500_000_000)
    if train.offload and train.zero_stage:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": train.global_batch // (train.micro_batch * world_size),
        "gradient_clipping": run.optim.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": train.precision == "bf16"},
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**9,
    }


def build_engine(module: nn.Module, run: config.Run, world_size: int, *, universal: bool = False) -> Any:
    """A DeepSpeed engine around `module` with AdamW.

    Torch's AdamW, not DeepSpeed's: the latter compiles a C++ operator at first use. Weights with fewer than two
    dimensions (norms, biases) are not decayed, except under ZeRO-3: DeepSpeed 0.19 restores the optimizer states of
    several groups wrongly when a ZeRO-3 checkpoint is converted for another world size (seen: the loss drifts from the
    second step on; with one group it agrees to 1e-7), so there is one group.
    """
    deepspeed = import_deepspeed()
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": run.optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if run.train.zero_stage == 3:
        groups = [{"params": trained, "weight_decay": run.optim.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=run.optim.lr, betas=run.optim.betas)
    with silent():
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_config(run, world_size, universal, sum(p.numel() for p in trained)),
        )
    return engine


def set_lr(engine: Any, lr: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def save(engine: Any, to: Path) -> None:
    """Writes this rank's share; every rank must call it."""
    share_statistics(engine.module)
    with silent():
        engine.save_checkpoint(str(to), tag=TAG, save_latest=False)


def share_statistics(module: nn.Module) -> None:
    """Running statistics of batch norms, averaged over ranks in place: each saw only its own views, and rank 0's would
    be saved for all."""
    if dist.is_initialized():
        distribute_bn(module, dist.get_world_size(), reduce=True)


def restore(engine: Any, at: Path, *, universal: bool) -> None:
    """Loads weights and optimizer; every rank must call it.

    Raises:
        EngineError: DeepSpeed found nothing to load, which it would otherwise only warn about.
    """
    with silent():
        path, _ = engine.load_checkpoint(str(at), tag=f"{TAG}_universal" if universal else TAG)
    if path is None:
        raise EngineError(f"DeepSpeed found no checkpoint under {at}")


def to_universal(at: Path, zero_stage: int) -> None:
    """Converts a fetched ZeRO checkpoint in place, so that another number of workers can load it."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(at / TAG), "--output_folder", str(at / f"{TAG}_universal")]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    command += ["--inject_missing_state"] if zero_stage < 3 else []
    env = os.environ if torch.cuda.is_available() else {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"the checkpoint could not be converted for another number of workers: {done.stderr[-800:]}")


def full_weights(at: Path, zero_stage: int) -> dict[str, torch.Tensor]:
    """The module's weights in fp32 from a fetched checkpoint of any stage and world size."""
    if zero_stage == 0:
        states = torch.load(at / TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
        return {name: value.float() for name, value in states["module"].items()}
    import_deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with silent():
        return dict(get_fp32_state_dict_from_zero_checkpoint(str(at), tag=TAG))


@contextlib.contextmanager
def silent(everything: bool = False) -> Iterator[None]:
    """DeepSpeed prints whatever the log level; the run's own lines are what people should see.

    Args:
        everything: also what the processes it starts print.
    """
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        for number in (1, 2) if everything else ():
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(nowhere.fileno(), number)
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
