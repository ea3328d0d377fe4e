"""The student in ONNX Runtime: a process that has no torch and no timm to import, on a CPU.

Same views, same vectors to 1e-5; `formats` has compared the graph with PyTorch on the golden tiles.
"""

from __future__ import annotations

import numpy as np

from pathryoshka.export.record import EMBEDDING, TILES, TOKENS
from pathryoshka.export.runtimes import open_session

PASS = 16
"""Views of one forward pass: their maps stay in the caches of a core (1.49 ms a view; of 64, 1.62)."""


class OnnxStudent:
    """A student whose graph is at hand.

    Args:
        graph: the ONNX file. width: numbers that are kept.
    """

    def __init__(self, graph: bytes, width: int, num_threads: int = 1) -> None:
        self.session, self.width = open_session(graph, num_threads), width

    def embed(self, views: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3] -> fp32 [N, width], rows of length 1."""
        parts = [self.run(EMBEDDING, views[start : start + PASS]) for start in range(0, len(views), PASS)]
        z_ND = np.concatenate([np.zeros((0, self.width), np.float32), *(part[:, : self.width] for part in parts)])
        return z_ND / np.maximum(np.linalg.norm(z_ND, axis=1, keepdims=True), 1e-12)

    def tokens(self, views: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3] -> fp32 [N, tokens, width], row by row over the grid, not normalised."""
        return self.run(TOKENS, views)[:, :, : self.width]

    def run(self, output: str, views: np.ndarray) -> np.ndarray:
        return self.session.run([output], {TILES: views})[0]
