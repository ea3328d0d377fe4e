"""What a tree of processes uses over time: CPU seconds and private memory by role, and Ray's object store."""

from __future__ import annotations

import bisect
import contextlib
import re
import threading
import time
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import numpy as np
import psutil
import ray
from ray._private.internal_api import node_stats

PERIOD_S = 0.5


class Sampler:
    """A context manager; samples this process and all below it, but those named.

    Attributes:
        times: of the samples, seconds since 1970.
        cpu: role -> [user, system] seconds so far, processes that ended included.
        memory: role -> MiB of private memory of the processes that live.
        store: bytes in Ray's object store of this node.
    """

    def __init__(self, without: Collection[int] = ()):
        self.without = set(without)
        self.times: list[float] = []
        self.cpu: list[dict[str, np.ndarray]] = []
        self.memory: list[dict[str, float]] = []
        self.store: list[int] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)

    def __enter__(self) -> Sampler:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def work(self) -> None:
        roles: dict[int, str] = {}
        used: dict[int, np.ndarray] = {}
        while not self.stop.wait(PERIOD_S):
            memory: dict[str, float] = defaultdict(float)
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    if process.pid not in self.without:
                        roles[process.pid] = role = role_of(process, roles.get(process.pid))
                        times, size = process.cpu_times(), process.memory_info()
                        used[process.pid] = np.array([times.user, times.system])
                        memory[role] += (size.rss - size.shared) / 2**20
            cpu: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
            for pid, seconds in used.items():
                cpu[roles[pid]] += seconds
            self.store.append(store_bytes())
            self.cpu.append(cpu)
            self.memory.append(memory)
            self.times.append(time.time())

    def between(self, start: float, end: float) -> dict[str, np.ndarray]:
        """[user, system] CPU seconds by role, from the samples nearest to the moments, scaled to the time between."""
        i, j = (min(bisect.bisect(self.times, t), len(self.times) - 1) for t in (start, end))
        scale = (end - start) / (self.times[j] - self.times[i])
        return {role: scale * (self.cpu[j][role] - self.cpu[i][role]) for role in self.cpu[j]}


def role_of(process: psutil.Process, before: str | None) -> str:
    """`Replica`, `RayTrainWorker`, ... of Ray's workers, whose title is `ray::Class.method`; else the program's name.

    A worker between two tasks is `ray::IDLE`: it keeps the role it had.
    """
    title = (process.cmdline() or [process.name()])[0]
    match = re.match(r"ray::_?(?:MapWorker\(MapBatches\()?(\w+)", title)
    if match and match[1] == "IDLE" and before:
        return before
    return match[1] if match else Path(title).name


def store_bytes() -> int:
    """Bytes in this node's object store, 0 without a session."""
    if not ray.is_initialized():
        return 0
    with contextlib.suppress(Exception):  # a session that is just ending
        node = ray.nodes()[0]
        return int(node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats.object_store_bytes_used)
    return 0


def slope(xs: Collection[float], ys: Collection[float]) -> float:
    """Of the least-squares line."""
    return float(np.polyfit(np.array(xs), np.array(ys), 1)[0])
