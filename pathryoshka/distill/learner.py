"""One student of a train worker: its module, engine, records and checkpoints.

A worker usually holds one. In lock-step it holds several, which differ in heads, losses or learning rates and see the
same micro-batches: reading, views and teachers are paid for once.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint, engine
from pathryoshka.distill.checkpoint import Ref, Uploader
from pathryoshka.distill.measure import Metrics
from pathryoshka.distill.metrics import RunLog
from pathryoshka.distill.model import Ema, build_module
from pathryoshka.distill.step import reduce_metrics, train_step
from pathryoshka.teachers.standardize import load as load_standardisers
from pathryoshka.tiles.ledger import Ledger

T = TypeVar("T")


@dataclass(frozen=True)
class Entrant:
    """A run that takes part in a job, where it is kept, and the token of its attempt, which is its lease's."""

    run: config.Run
    run_uri: str
    token: int


class Learner:
    """Use as a context manager: leaving it waits for checkpoints that are under way.

    Args:
        dims: teacher -> (summary width, token width).
        ref: the checkpoint to continue from, none = from the start.
        say: takes rank 0's lines.
        show: takes rank 0's figures to Prometheus.
    """

    def __init__(
        self,
        entrant: Entrant,
        dims: dict[str, tuple[int, int]],
        ref: Ref | None,
        device: torch.device,
        rank: int,
        world_size: int,
        scratch: Path,
        say: Callable[[str], None],
        show: Callable[[dict[str, float]], None],
    ):
        self.entrant, self.run, self.rank, self.world_size = entrant, entrant.run, rank, world_size
        self.scratch = scratch / entrant.run.name
        self.scratch.mkdir()
        torch.manual_seed(self.run.train.seed)  # the same weights on every rank; nothing in the loop draws from it
        self.module = build_module(self.run, dims).to(device)
        if self.run.train.activation_checkpointing:
            self.module.student.timm_model.set_grad_checkpointing(True)  # type: ignore[operator]
        self.ema = Ema(self.module, self.run.student.ema) if self.run.student.ema else None
        self.core = self.restore(ref)
        self.standardisers = load_standardisers(self.fetch_file("standardisers.safetensors"))
        self.log = (
            RunLog(self.run, entrant.run_uri, self.scratch, entrant.token, ref.step if ref else 0, say)
            if rank == 0
            else None
        )
        self.show = show if rank == 0 else lambda values: None
        self.metrics: list[Metrics] = []

    def __enter__(self) -> Learner:
        group = agree(uuid.uuid4().hex)
        self.uploader = Uploader(self.entrant.run_uri, self.rank, self.world_size, group, self.run.storage)
        return self

    def __exit__(self, *error: Any) -> None:
        self.uploader.__exit__(*error)

    def restore(self, ref: Ref | None) -> Any:
        """An engine at the state of `ref`, converted first when it was saved by another number of workers."""
        if ref is None:
            return engine.build_engine(self.module, self.run, self.world_size)
        at, uri, cfg = self.scratch / "restore", self.entrant.run_uri, self.run.storage
        checkpoint.fetch(uri, ref, at, cfg)
        state = checkpoint.read_state(uri, ref, cfg)
        universal = state["world_size"] != self.world_size and state["zero_stage"] > 0
        if universal:
            engine.to_universal(at, state["zero_stage"])
        core = engine.build_engine(self.module, self.run, self.world_size, universal=universal)
        engine.restore(core, at, universal=universal)
        if self.ema:
            self.ema.load(at / "ema.safetensors")
        shutil.rmtree(at)
        return core

    def fetch_file(self, name: str) -> Path:
        path = self.scratch / name
        path.write_bytes(storage.read_bytes(storage.join(self.entrant.run_uri, name), self.run.storage))
        return path

    def step(self, micro: list[dict[str, torch.Tensor]], presented: int, step: int) -> None:
        """One optimizer step."""
        engine.set_lr(self.core, learning_rate(self.run, presented))
        self.metrics.append(train_step(self.core, micro, self.standardisers, self.run, step))
        if self.ema:
            self.ema.update(self.module)

    def read(self, presented: int) -> dict[str, float]:
        """Means since the last call, one device read and one all-reduce; and the learning rate."""
        values = reduce_metrics(self.metrics) | {"lr": learning_rate(self.run, presented)}
        self.metrics = []
        return values

    def save(self, step: int, ledger: Ledger, loss: float) -> None:
        """A checkpoint, uploaded in the background."""
        here = Ref(step, self.entrant.token)
        local = self.scratch / here.name
        engine.save(self.core, local)
        if self.rank == 0:
            self.write_state(local, step, ledger)
        self.uploader.submit(here, local, partial(self.tidy, here, loss) if self.rank == 0 else None)

    def write_state(self, local: Path, step: int, ledger: Ledger) -> None:
        """Rank 0's part of a checkpoint beside the engine's: where the run stands, and what it is."""
        state: dict[str, Any] = {"step": step, "world_size": self.world_size, "zero_stage": self.run.train.zero_stage}
        state |= {"ledger": ledger.to_json(), "run": self.run.model_dump(mode="json")}
        (local / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True))
        if self.ema:
            self.ema.save(local / "ema.safetensors")

    def tidy(self, here: Ref, loss: float) -> None:
        """After rank 0 has uploaded: publish the records, note the best checkpoint of the run, drop the old ones."""
        if self.log:
            self.log.flush()
        self.show({"checkpoint_at": time.time()})
        best = checkpoint.best(self.entrant.run_uri, self.run.storage)
        if not self.run.evaluate.during.every and (best is None or loss < best["loss"]):
            best = {"checkpoint": here.name, "loss": loss}
            checkpoint.write_best(self.entrant.run_uri, best, self.run.storage)
        kept = Ref.parse(best["checkpoint"]) if best else None
        checkpoint.prune(self.entrant.run_uri, self.run.train.keep, kept, self.run.storage)


def learning_rate(run: config.Run, presented: int) -> float:
    """Linear warm-up, then cosine down to `min_lr_share`, in presented views."""
    total, optim = run.plan.num_views, run.optim
    warm = optim.warmup_share * total
    if presented < warm:
        return optim.lr * (presented + run.train.global_batch) / (warm + run.train.global_batch)
    progress = (presented - warm) / max(1, total - warm)
    low = optim.min_lr_share
    return optim.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def agree(value: T) -> T:
    """Rank 0's value on every rank."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]
