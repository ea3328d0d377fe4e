"""What a process does with the memory it was given: keep it for the next layer, and say how much it was at most."""

from __future__ import annotations

import contextlib
import ctypes
import resource

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Lets glibc keep what a layer frees for the next one. Otherwise large activations go back to the kernel and are
    faulted in again, layer by layer: 130 instead of 180 views/s of a teacher (EfficientNet-Lite1, 128 px, batches of
    32, one core), 3 of 12.5 CPU ms a view in training (the demo's student). In small pages training would fragment:
    `ray_session` asks PyTorch for huge ones."""
    with contextlib.suppress(OSError, AttributeError):  # another libc has no mallopt, or no such fault
        libc = ctypes.CDLL(None)
        for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(threshold, 1 << 30)


def peak_memory_mib(device: str) -> float:
    """The most that the process (on a CPU) or its tensors (on CUDA) have held at once."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
