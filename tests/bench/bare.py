"""The bare loop that the pipeline is held against: the same views, teachers, student and losses in one process.

No Ray, no S3, no DeepSpeed: plain PyTorch over a local copy of the shards. Reads lines `<threads> <steps>` from stdin
and answers each with one JSON line {"cpu": seconds, "wall": seconds, "views": n}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pathryoshka import config
from pathryoshka.distill.model import Distiller, build_module
from pathryoshka.distill.step import train_step
from pathryoshka.distill.train import to_device
from pathryoshka.runs.inputs import make_stream, plan_of, tiles_of
from pathryoshka.teachers import standardize
from pathryoshka.teachers.encoder import Encoder, load_encoder, sample_tokens
from pathryoshka.tiles.ledger import Ledger
from pathryoshka.tiles.segments import segment_batches


class PlainEngine:
    """The engine interface on a plain module: gradients accumulate over the micro-batches of a step."""

    def __init__(self, module: Distiller, run: config.Run):
        self.module, self.run = module, run
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=run.optim.lr, betas=run.optim.betas)
        self.accumulate = run.train.global_batch // run.train.micro_batch
        self.done = 0

    def __call__(self, *args: object) -> object:
        return self.module(*args)

    def backward(self, loss: torch.Tensor) -> None:
        loss.div(self.accumulate).backward()

    def step(self) -> None:
        self.done += 1
        if self.done % self.accumulate == 0:
            if self.run.optim.clip:
                torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.run.optim.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()


def batches(run: config.Run, teachers: dict[str, Encoder], grid: tuple[int, int]) -> Iterator[dict[str, np.ndarray]]:
    """What the stream delivers, made here."""
    tiles = tiles_of(run)
    source = make_stream(run, tiles, plan_of(run, tiles), grid, {}).source
    for k in range(source.plan.num_segments):
        for made in segment_batches(source, source.plan.segment(k), Ledger()):
            out = {"views": made.views, "seq": made.seq, "weight": made.weight, "token_pos": made.token_pos}
            for name, encoder in teachers.items():
                features = encoder(made.views)
                pos = torch.from_numpy(made.token_pos.astype(np.int64))
                tokens = features["tokens"]
                if pos.shape[1] < tokens.shape[1]:
                    tokens = sample_tokens(tokens, pos)
                out[f"{name}.summary"] = features["summary"].half().numpy()
                out[f"{name}.tokens"] = tokens.half().numpy()
            yield out


def main(config_file: Path, standardisers: Path) -> None:
    run = config.make_run(json.loads(config_file.read_text()))
    fitted = standardize.load(standardisers)
    torch.manual_seed(0)
    names = run.teachers.models
    dims = {n: (len(fitted[n, "summary"].mean), len(fitted[n, "tokens"].mean)) for n in names}
    module = build_module(run, dims)
    teachers = {name: load_encoder(name, spec, module.student.grid, "cpu", run.storage) for name, spec in names.items()}
    engine, stream = PlainEngine(module, run), batches(run, teachers, module.student.grid)
    cpu = torch.device("cpu")
    step = 0
    for line in sys.stdin:
        threads, steps = (int(word) for word in line.split())
        torch.set_num_threads(threads)
        started, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            micro = [to_device(next(stream), cpu, run) for _ in range(engine.accumulate)]
            train_step(engine, micro, fitted, run, step, divided_by=engine.accumulate)
            step += 1
        answer = {"cpu": time.process_time() - used, "wall": time.perf_counter() - started}
        print(json.dumps(answer | {"views": steps * run.train.global_batch}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
