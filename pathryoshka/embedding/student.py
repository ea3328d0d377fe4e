"""The student at work: an export, loaded and made quick, views in and vectors out.

On a CPU one thread a replica and a replica a core beat one replica with all threads: nobody waits at the end of each
layer. Maps lie channels last, freed memory is kept, batch norms are folded (`teachers/fuse.py`, `memory.py`); what that
costs in precision is checked when it is made: 1e-4 or the model as it was. CPU time of the demo's student, one thread,
128 px (28 November): 6.2 ms a view as timm makes it, 3.5 channels last, 1.9 with its memory kept, 1.7 folded; ONNX
Runtime 1.3, which `engine.py` prefers. A ViT is matrix products and gains nothing from any of these.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn

from pathryoshka import config
from pathryoshka.export.load import Embedder, load
from pathryoshka.memory import keep_freed_memory
from pathryoshka.teachers.fuse import quicken

CPU_PASS = 16
"""Views of one forward pass on a CPU: their maps stay in its caches."""


class Alone(nn.Module):
    """A model with one output as a trunk with a tuple of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor]:
        return (self.model(x_BCHW),)


class Student:
    """An exported student on a device.

    Args:
        path: of the export. width: numbers that are kept.
        precision: of `embed`: float32, or bfloat16 for tensor cores.

    Raises:
        LoadError: it is no export, or was not trained for that width.
    """

    def __init__(
        self,
        path: str,
        storage: config.Storage,
        *,
        width: int,
        device: str,
        precision: str = "float32",
        num_threads: int = 1,
    ) -> None:
        # blocks of Ray are; nothing here writes to them
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        keep_freed_memory()
        torch.set_num_threads(num_threads)
        self.device, self.dtype = device, getattr(torch, precision)
        self.model = load(path, width, storage=storage)
        with torch.inference_mode():
            on_cpu = device == "cpu"
            self.trunk = quicken(Alone(self.model.timm_model), self.model.size, on_cpu, precision == "float32")
        self.trunk = self.trunk.to(device, self.dtype)
        self.width = width
        self.scale, self.shift = (t.to(device) for t in folded(self.model))
        self.each = CPU_PASS if on_cpu else 0

    @torch.inference_mode()
    def embed(self, views: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3] -> fp32 [N, width], rows of length 1."""
        each = self.each or max(1, len(views))
        parts = [self.forward(views[start : start + each]) for start in range(0, len(views), each)]
        return torch.cat(parts).cpu().numpy() if parts else np.zeros((0, self.width), np.float32)

    def tokens(self, views: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3] -> fp32 [N, tokens, width], row by row over the grid, not normalised."""
        return self.model.tokens(views).numpy()

    def forward(self, views: np.ndarray) -> Tensor:
        x_BHWC = torch.from_numpy(views).to(self.device, non_blocking=True)
        x_BCHW = x_BHWC.permute(0, 3, 1, 2).float()  # channels last as it stands
        x_BCHW = x_BCHW.mul_(self.scale).add_(self.shift).to(self.dtype)
        (z_BD,) = self.trunk(x_BCHW)
        return nn.functional.normalize(z_BD[:, : self.width].float(), dim=-1)


def folded(model: Embedder) -> tuple[Tensor, Tensor]:
    """Factor and summand, [3, 1, 1], that make bytes of a view what the student was trained on."""
    return 1 / (255 * model.std), -model.mean / model.std
