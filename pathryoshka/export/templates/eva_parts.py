"""For kaiko-eva: tiles in class folders as a data set, and embeddings cut to a width."""

from pathlib import Path

import torch
from eva.vision.data.datasets import vision
from eva.vision.utils import io

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}


class Cut(torch.nn.Module):
    """The first `width` numbers of an embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        return embedding[: self.width]


class ClassFolders(vision.VisionDataset):
    """`root/<split>/<class>/...`: class numbers are those of the sorted class names of `root/train`."""

    def __init__(self, root: str, split: str, transforms=None) -> None:
        super().__init__(transforms=transforms)
        self._root, self._split = Path(root), split
        self._samples: list[tuple[Path, int]] = []

    @property
    def classes(self) -> list[str]:
        return sorted(folder.name for folder in (self._root / "train").iterdir() if folder.is_dir())

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def filename(self, index: int) -> str:
        return str(self._samples[index][0].relative_to(self._root))

    def configure(self) -> None:
        self._samples = [
            (path, number)
            for name, number in self.class_to_idx.items()
            for path in sorted((self._root / self._split / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES
        ]

    def validate(self) -> None:
        if not self._samples:
            raise ValueError(f"no tiles in {self._root / self._split}; put them in one folder a class")

    def load_data(self, index: int):
        return io.read_image_as_tensor(str(self._samples[index][0]))

    def load_target(self, index: int) -> torch.Tensor:
        return torch.tensor(self._samples[index][1])

    def __len__(self) -> int:
        return len(self._samples)
