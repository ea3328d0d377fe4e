"""The batch size of a teacher that is quickest under a memory budget.

Each teacher is tried in a process of its own, with random weights of its true architecture (neither speed nor memory
depends on what they hold), on batches of 1, 2, 4, ... views: whatever a probe takes is gone when it ends, and one that
the system kills has already said what it knew. A size whose memory can be foreseen to exceed the budget is not tried.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pathryoshka import config
from pathryoshka.teachers.row import EncoderError

if TYPE_CHECKING:
    import torch

    from pathryoshka.teachers.encoder import Encoder

LARGEST = 1024
NEAR = 0.97  # a size within 3 % of the quickest is as good, and the smallest of them leaves most room
SLOWER = 0.8
MIB = 2**20


@dataclass(frozen=True)
class Probe:
    """What one batch size took: views a second, and the peak memory of the process or the device's allocator."""

    batch_size: int
    views_per_s: float
    memory_mib: float


@dataclass(frozen=True)
class Tuned:
    """The probes of one teacher, and the batch size that is best among them."""

    teacher: str
    probes: tuple[Probe, ...]
    best: Probe
    budget_mib: float


def tune(name: str, cfg: config.Teacher, size: int, device: str, memory_mib: float | None, seconds: float) -> Tuned:
    """Probes one teacher on views of `size` px.

    Args:
        device: "cpu" or "cuda".
        memory_mib: budget; None, on CUDA only = nine tenths of what is free on the device.
        seconds: about as long as each batch size is run.

    Raises:
        EncoderError: no such teacher, or not even one view fits the budget.
    """
    task = {"name": name, "teacher": cfg.model_dump(), "size": size, "device": device, "seconds": seconds}
    command = [sys.executable, "-m", "pathryoshka.teachers.tune", json.dumps({**task, "memory_mib": memory_mib})]
    done = subprocess.run(command, capture_output=True, text=True)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    probes = tuple(Probe(**line) for line in said if "batch_size" in line)
    for line in said:
        if "error" in line:
            raise EncoderError(line["error"])
    budget = next((line["budget_mib"] for line in said if "budget_mib" in line), memory_mib)
    if budget is None:
        raise EncoderError(f"teacher {name} could not be probed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return Tuned(name, probes, best_of(name, probes, budget), budget)


def best_of(name: str, probes: Sequence[Probe], budget_mib: float) -> Probe:
    """The smallest size that is nearly as quick as the quickest, among those within the budget."""
    fit = [p for p in probes if p.memory_mib <= budget_mib]
    if not fit:
        needs = f"one view takes {probes[0].memory_mib:.0f} MiB" if probes else "the probe was ended by the system"
        raise EncoderError(f"teacher {name} does not fit into {budget_mib:.0f} MiB: {needs}; raise --memory")
    quickest = max(p.views_per_s for p in fit)
    return next(p for p in fit if p.views_per_s >= NEAR * quickest)


def goes_on(probes: Sequence[Probe], budget_mib: float) -> bool:
    """Whether twice the last size is worth trying: it will fit if memory grows as it did, and speed has not fallen."""
    last = probes[-1]
    if last.memory_mib > budget_mib or last.views_per_s < SLOWER * max(p.views_per_s for p in probes):
        return False
    if len(probes) < 2:
        return True
    return last.memory_mib + 2 * max(0.0, last.memory_mib - probes[-2].memory_mib) <= budget_mib


def probe(task: dict[str, object]) -> Iterator[dict[str, object]]:
    """What the process of one teacher says, line by line."""
    import numpy as np
    import torch

    from pathryoshka.teachers.check import peak_memory_bytes, views_per_second

    device = torch.device(str(task["device"]))
    cfg = config.Teacher.model_validate(task["teacher"])
    budget = task["memory_mib"]
    if budget is None:
        budget = 0.9 * torch.cuda.mem_get_info(device)[0] / MIB
    assert isinstance(budget, float | int)
    yield {"budget_mib": budget}
    encoder = random_encoder(str(task["name"]), cfg, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rng, size = np.random.default_rng(0), int(str(task["size"]))
    probes: list[Probe] = []
    while True:
        encoder.batch_size = 2 * encoder.batch_size if probes else 1
        views = rng.integers(0, 256, (encoder.batch_size, size, size, 3), np.uint8)
        try:
            rate = views_per_second(encoder, views, float(str(task["seconds"])))
        except EncoderError:  # it does not fit the device
            return
        probes.append(Probe(encoder.batch_size, rate, peak_memory_bytes(device) / MIB))
        yield asdict(probes[-1])
        if encoder.batch_size >= LARGEST or not goes_on(probes, float(budget)):
            return


def random_encoder(name: str, cfg: config.Teacher, device: torch.device) -> Encoder:
    """A teacher of the true architecture with random weights; answers on its own grid."""
    from pathryoshka.teachers import own
    from pathryoshka.teachers.encoder import encoder_around, load_encoder
    from pathryoshka.teachers.trunk import network
    from pathryoshka.teachers.zoo import row_by_name

    row = row_by_name(cfg.model)
    size = cfg.input_size or row.input_size
    if own.is_own(cfg.model) or row.architecture == "mock":
        return load_encoder(name, cfg, (1, 1), device.type)
    side = max(1, round(size / row.stride))
    return encoder_around(name, row, network(row, str(device)), cfg, (side, side), device, "random")


def main() -> None:
    """The process of one teacher: a task as JSON in, a JSON line for each finding out."""
    try:
        for line in probe(json.loads(sys.argv[1])):
            print(json.dumps(line), flush=True)
    except EncoderError as error:
        print(json.dumps({"error": str(error)}), flush=True)


if __name__ == "__main__":
    main()
