"""A DICOM slide, a folder of its instances, gives the tiles of the file that it was made from.

wsidicomizer makes it, without touching the JPEGs, from an environment of its own: `pip install wsidicomizer`, its
command on PATH or named by WSIDICOMIZER.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pathryoshka import config, storage
from pathryoshka.tiles import making
from pathryoshka.tiles.slides import cut_slides, read_slides
from tests.test_slides import CMU, rows_of

MAKER = os.environ.get("WSIDICOMIZER") or shutil.which("wsidicomizer")
pytestmark = pytest.mark.skipif(not MAKER, reason="SKIPPED: no wsidicomizer, so there is no DICOM slide to cut")
CFG = config.Storage(max_attempts=2)


@pytest.fixture(autouse=True)
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "run_tasks", lambda function, items: [function(item) for item in items])


def test_a_dicom_slide_is_cut_as_the_slide_it_was(tmp_path: Path, s3_storage: tuple[config.Storage, str]) -> None:
    (tmp_path / "in").mkdir()
    subprocess.run([str(MAKER), "-i", str(CMU), "-o", str(tmp_path / "in" / CMU.stem)], check=True, capture_output=True)
    assert len(list((tmp_path / "in" / CMU.stem).glob("*.dcm"))) > 1  # label and macro are instances, too
    cut_slides([CMU], str(tmp_path / "svs"), CFG)
    dicom = cut_slides([tmp_path / "in"], str(tmp_path / "dicom"), CFG)
    (row,) = read_slides(str(tmp_path / "dicom"), CFG)
    assert row["format"] == "dicom" and row["mpp"] == pytest.approx(0.499) and row["slide_id"] == CMU.stem
    assert rows_of(tmp_path / "dicom") == rows_of(tmp_path / "svs")
    s3, uri = s3_storage
    storage.upload_folder(tmp_path / "in", storage.join(uri, "slides"), s3)
    assert cut_slides([storage.join(uri, "slides")], storage.join(uri, "tiles"), s3).shards == dicom.shards
