"""Environments of other people's tools, kept in a cache folder so that a second run starts at once."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest

CACHE = "PATHRYOSHKA_JUDGES"
"""Names the folder that keeps the environments; without it each test run makes its own."""


def environment(name: str, *requirements: str, scratch: Path) -> Path:
    """The Python of an environment with `requirements`; torch and what else fits is taken from the one that runs.

    That saves gigabytes, and pip still installs another version into it where a requirement asks for one.
    """
    home = Path(os.environ.get(CACHE) or scratch) / name
    python = home / "bin" / "python"
    done = home / "installed.txt"
    if done.is_file() and done.read_text() == "\n".join(requirements):
        return python
    began = time.monotonic()
    venv.create(home, with_pip=True)
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    (Path(site) / "host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install: list[str | Path] = [python, "-m", "pip", "install", "-q", *requirements]
    result = subprocess.run(install, capture_output=True, text=True, timeout=3600)
    if result.returncode:
        pytest.skip(f"SKIPPED: {name} does not install here: {result.stderr.strip().splitlines()[-1]}")
    done.write_text("\n".join(requirements))
    print(f"{name}: installed in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return python


def call(command: list[str | Path], cwd: Path, timeout: float = 3600, **env: object) -> str:
    """What it printed; the test fails with the end of it where the command does."""
    full = {**os.environ, **{key: str(value) for key, value in env.items()}, "CUDA_VISIBLE_DEVICES": ""}
    full.pop("PYTHONHOME", None)
    result = subprocess.run(command, cwd=cwd, env=full, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout
