"""What every measurement shares: a record in results.jsonl, a last line `NAME RATIO (goal GOAL)`, and the exit code."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import psutil

RESULTS = Path(__file__).parent / "results.jsonl"


def machine() -> str:
    facts = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    model = facts[0][1].strip() if facts else platform.processor()
    return f"{os.cpu_count()} cores of {model}, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def finish(name: str, values: Sequence[float], goal: float, *, below: bool = False, **facts: object) -> NoReturn:
    """Appends the record, prints the last line and exits: 0 where the median reaches the goal, else 1.

    Args:
        values: the ratio of each repeat.
        below: whether smaller is better.
        facts: whatever else was measured, as JSON.
    """
    middle = statistics.median(values)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    record = {
        "name": name, "value": middle, "goal": goal, "repeats": len(values), "spread": [min(values), max(values)],
        "machine": machine(), "date": datetime.date.today().isoformat(), "commit": commit, **facts,
    }  # fmt: skip
    with RESULTS.open("a") as out:
        out.write(json.dumps(record, sort_keys=True) + "\n")
    print(f"{name} {middle:.3f} (goal {'<= ' if below else '>= '}{goal})")
    sys.stdout.flush()
    sys.exit(0 if (middle <= goal if below else middle >= goal) else 1)


def cpu_seconds(root: psutil.Process | None = None) -> float:
    """User and system time of a process and all that live below it so far."""
    root = root or psutil.Process()
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total
