"""Who takes part in a comparison: an encoder as a function of views, with what it costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathryoshka.evaluate.embed import Encode
from pathryoshka.evaluate.scores import Kind


@dataclass(frozen=True)
class Contender:
    """An encoder that takes part.

    Attributes:
        num_params: without classifier.
        gflop: of one view, a multiply-add as two; counted where None.
        key: digest of all that its vectors depend on beside the pixels, so that they can be kept; "" keeps nothing.
        widths: that a nested embedding is cut to, ascending; () = those of the evaluation.
    """

    name: str
    kind: Kind
    encode: Encode
    num_params: int
    gflop: float | None = None
    key: str = ""
    widths: tuple[int, ...] = ()


def lazily(load: Callable[[], Encode]) -> Encode:
    """An encoder that is loaded when it is first asked, and never where all its vectors are known."""
    loaded: list[Encode] = []
    lock = threading.Lock()

    def encode(views: np.ndarray) -> Mapping[str, Any] | Any:
        with lock:
            if not loaded:
                loaded.append(load())
        return loaded[0](views)

    return encode
