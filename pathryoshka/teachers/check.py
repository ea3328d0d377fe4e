"""One teacher looked at before a run does: its features on some tiles, how fast, and how much memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pathryoshka.teachers.encoder import Encoder


@dataclass(frozen=True)
class Check:
    """What a teacher answered. Norms are of single vectors: mean and spread over views, of tokens over all tokens."""

    device: str
    precision: str
    num_views: int
    summary_shape: tuple[int, ...]
    token_shape: tuple[int, ...]
    own_grid: tuple[int, int]
    summary_norm: tuple[float, float]
    token_norm: tuple[float, float]
    views_per_s: float
    memory_mib: float
    finite: bool


def check(encoder: Encoder, views_u8: np.ndarray, seconds: float = 3.0) -> Check:
    """Embeds views uint8 [B, H, W, 3], then again for about `seconds` to see how fast it is."""
    features = encoder(views_u8)
    summary, tokens = features["summary"], features["tokens"]
    rate = views_per_second(encoder, views_u8, seconds)
    return Check(
        device=device_name(encoder.device),
        precision=str(encoder.fingerprint["precision"]),
        num_views=len(views_u8),
        summary_shape=tuple(summary.shape),
        token_shape=tuple(tokens.shape),
        own_grid=encoder.own_grid,
        summary_norm=mean_and_spread(summary),
        token_norm=mean_and_spread(tokens),
        views_per_s=rate,
        memory_mib=peak_memory_bytes(encoder.device) / 2**20,
        finite=bool(summary.isfinite().all() and tokens.isfinite().all()),
    )


def mean_and_spread(x: torch.Tensor) -> tuple[float, float]:
    norms = x.norm(dim=-1)
    return float(norms.mean()), float(norms.std(correction=0))


def views_per_second(encoder: Encoder, views_u8: np.ndarray, seconds: float, least: int = 2) -> float:
    """Rate of the fastest pass over the views among those that fit into about `seconds`, at least `least` after one
    that warms up; the device is waited for."""
    best, spent, passes = float("inf"), 0.0, -1
    while passes < least or spent < seconds:
        started = time.perf_counter()
        encoder(views_u8)
        if encoder.device.type == "cuda":
            torch.cuda.synchronize(encoder.device)
        took = time.perf_counter() - started
        if passes >= 0:
            best, spent = min(best, took), spent + took
        passes += 1
    return len(views_u8) / best


def peak_memory_bytes(device: torch.device) -> int:
    """Most that was held so far: on CUDA by torch on that device; on the CPU by this process, since it was started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.exists():  # not `ru_maxrss`: a process inherits that of the one it was started by
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def check_lines(name: str, c: Check) -> list[str]:
    shape, tokens = "x".join(map(str, c.summary_shape)), "x".join(map(str, c.token_shape))
    return [
        f"{name}: every tensor of the file is in its place",
        f"device      {c.device}, {c.precision}",
        f"summary     [{shape}], norm {c.summary_norm[0]:.3f} +- {c.summary_norm[1]:.3f}",
        f"tokens      [{tokens}] from its own {c.own_grid[0]} x {c.own_grid[1]}, "
        f"norm {c.token_norm[0]:.3f} +- {c.token_norm[1]:.3f}",
        f"speed       {c.views_per_s:.1f} tiles/s, fastest pass over {c.num_views}",
        f"memory      {c.memory_mib:.0f} MiB at most",
        *([] if c.finite else ["VALUES THAT ARE NOT FINITE: set its precision to bf16 or fp32"]),
    ]
