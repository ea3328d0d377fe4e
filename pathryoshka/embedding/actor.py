"""A student in an actor of Ray: a row with views becomes a row with vectors.

A room of its own, because an actor starts once it has imported it: what readers and the driver need stays outside.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np


class Embed:
    """Calls `student(**arguments).embed` on the views of a row."""

    def __init__(self, student: type[Any], arguments: dict[str, Any]) -> None:
        self.student = student(**arguments)

    def __call__(self, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        about = json.loads(row["about"][0].tobytes())
        vectors = np.zeros((1, 1), np.float32)  # of a row without tiles, which says something of its piece
        if "number" in about:
            vectors = self.student.embed(row["views"][0])
        about["student_s"] = time.perf_counter() - started
        return {"about": as_column(json.dumps(about).encode()), "facts": row["facts"], "vectors": vectors[None]}


def as_column(data: bytes) -> np.ndarray:
    """Bytes as the only row of a column: uint8 [1, n], which keeps trailing zeros as numpy's strings do not."""
    return np.frombuffer(data, np.uint8)[None]
