"""Whole runs for tests: a small data set on a real S3 server, the real command in a process of its own, and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.tiles.ledger import Ledger


def settings(root: str, tiles: str, **over: Any) -> dict[str, Any]:
    """A run of 3 epochs over 400 tiles with two mock teachers, in the shape of a config file."""
    mock = {"model": "mock", "device": "mock", "batch_size": 16, "mock_seconds": 0.002}
    tree: dict[str, Any] = {
        "recipe": "debug",
        "data": {"tiles": [tiles]},
        "views": {"size": 32},
        "plan": {"num_views": 1200, "window": 2},
        "teachers": {"models": {"mock0": mock, "mock1": mock}, "max_in_flight": 4},
        "standardise": {"num_views": 128},
        "train": {"num_workers": 2, "global_batch": 48, "micro_batch": 8, "checkpoint_every": 5, "log_every": 5},
        "storage": {"root": root, "lease_ttl_s": 6},
    }
    return config.overlay(tree, over)


@dataclass
class Driver:
    """`pathryoshka distill` as its own process, its output in a file."""

    tree: dict[str, Any]
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    verb: tuple[str, ...] = ("distill",)

    def start(self) -> Driver:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "run.yaml"
        file.write_text(yaml.safe_dump(self.tree))
        self.log = self.folder / "log.txt"
        env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(short_tmp()), **self.env}
        with self.log.open("a") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pathryoshka.cli", *self.verb, "--config", str(file)],
                stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True,
            )  # fmt: skip
        return self

    def wait(self, timeout: float = 300) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end after {timeout:.0f} s:\n{self.text()[-3000:]}") from None

    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, words: str, timeout: float = 180) -> None:
        deadline = time.monotonic() + timeout
        while words not in self.text():
            assert self.process.poll() is None, self.text()[-3000:]
            assert time.monotonic() < deadline, f"{words!r} did not come:\n{self.text()[-3000:]}"
            time.sleep(0.2)

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes below the driver whose command line starts with `title`."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in below if p.is_running() and " ".join(safe(p.cmdline)).startswith(title)]

    def kill(self) -> None:
        """SIGKILL to the driver and to everything that its session started."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for p in below:
            if p.is_running():
                p.kill()


def safe(call: Callable[[], list[str]]) -> list[str]:
    try:
        return call()
    except psutil.Error:
        return []


def short_tmp() -> Path:
    """Ray's socket paths must be short."""
    path = Path("/tmp") / f"pry-{os.getpid()}"
    path.mkdir(exist_ok=True)
    return path


def outcome(tree: dict[str, Any], name: str = "debug") -> tuple[Ledger, str]:
    """Ledger and weights digest of a run's last checkpoint."""
    cfg = config.Storage(**tree["storage"])
    uri = storage.join(cfg.root, tree.get("name", name))
    ref = checkpoint.choose(uri, cfg)
    assert ref is not None
    state = checkpoint.read_state(uri, ref, cfg)
    return Ledger.from_json(state["ledger"]), ref.name
