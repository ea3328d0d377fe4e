"""An index of the vectors in `tests.indices`, built once for the tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pathryoshka.search import index as index_room
from tests.indices import NUM, index_of, vectors


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return index_of(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="session")
def table(made: tuple[str, Path]) -> str:
    return made[0]


@pytest.fixture(scope="session")
def built(made: tuple[str, Path]) -> Path:
    """Not to be changed: the tests of this folder share it."""
    return made[1]


@pytest.fixture(scope="session")
def x_ND() -> np.ndarray:
    return vectors(NUM)


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(built, tmp_path / "index"))


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short-lists in an index so small that it would be searched exactly."""
    monkeypatch.setattr(index_room, "FEW", 0)
    monkeypatch.setattr("pathryoshka.search.scan.PART_ROWS", 500)
