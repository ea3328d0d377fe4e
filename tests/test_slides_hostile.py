"""Damaged slides end as failed ones, each by itself; a killed cut resumes to the bytes of an unbroken one."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pathryoshka import config
from pathryoshka.tiles import making
from pathryoshka.tiles.child import in_child
from pathryoshka.tiles.slides import cut_slides, read_slides
from pathryoshka.tiles.sources import ImportRefused
from pathryoshka.tiles.tiff import SlideError
from pathryoshka.tiles.verify import verify
from tests.test_slides import SMOOTH, write_slide

CFG = config.Storage(max_attempts=2)
CMU = Path(__file__).parent / "data" / "slides" / "CMU-1-Small-Region.svs"


@pytest.fixture
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "run_tasks", lambda function, items: [function(item) for item in items])


def mutated(data: bytes, how: int, rng: np.random.Generator) -> bytes:
    """One damaged copy: cut short, bytes flipped, zeros, tags changed in the directory, or an enormous size claimed."""
    out = bytearray(data)
    start = struct.unpack_from("<I", out, 4)[0]
    if how == 0:
        return bytes(out[: rng.integers(1, len(out))])
    if how == 1:
        for i in rng.integers(0, len(out), 200):
            out[i] ^= int(rng.integers(1, 256))
    elif how == 2:
        at = int(rng.integers(0, len(out) - 4096))
        out[at : at + 4096] = bytes(4096)
    elif how == 3 and start + 2 < len(out):
        entries = struct.unpack_from("<H", out, start)[0]
        for i in rng.integers(0, min(entries, (len(out) - start - 2) // 12), 3):
            out[start + 2 + 12 * i + int(rng.integers(0, 12))] = int(rng.integers(0, 256))
    else:  # width and height, or those of a tile
        enormous = ((256, 257), (322, 323))[int(rng.integers(2))]
        for i in range(struct.unpack_from("<H", out, start)[0]):
            tag = struct.unpack_from("<H", out, start + 2 + 12 * i)[0]
            if tag in enormous:
                struct.pack_into("<HII", out, start + 4 + 12 * i, 4, 1, int(rng.integers(2**20, 2**31)))
    return bytes(out)


def fuzz(folder: Path, num: int) -> None:
    small = write_slide(folder / "small.tif", 512, 512).read_bytes()
    (folder / "small.tif").unlink()
    data, rng = CMU.read_bytes(), np.random.default_rng(0)
    for i in range(num):
        source = small if i % 2 else data
        suffix = ".tif" if i % 2 else ".svs"
        (folder / f"{i:03d}{suffix}").write_bytes(mutated(source, i // 2 % 5, rng))


@pytest.mark.parametrize("num", [20, pytest.param(300, marks=pytest.mark.full)])
def test_every_damaged_slide_is_accounted_for(tmp_path: Path, in_a_row: None, num: int) -> None:
    (tmp_path / "in").mkdir()
    fuzz(tmp_path / "in", num)
    started = time.monotonic()
    cut_slides(
        [tmp_path / "in"],
        str(tmp_path / "to"),
        CFG,
        size=112,
        mpp=1.0,
        max_failed_share=1,
        time_limit_s=20,
        keep=SMOOTH,
    )
    rows = read_slides(str(tmp_path / "to"), CFG)
    fates = [row["status"] for row in rows]
    print({fate: fates.count(fate) for fate in set(fates)}, f"{time.monotonic() - started:.0f} s")
    print({row["reason"] for row in rows})
    assert [row["slide_id"] for row in rows] == [f"{i:03d}" for i in range(num)]
    assert all(row["reason"] for row in rows if row["status"] != "done")
    assert not any(str(tmp_path) in (row["reason"] or "") for row in rows)
    claimed = [row for i, row in enumerate(rows) if i // 2 % 5 == 4]
    assert {row["status"] for row in claimed} == {"failed"}
    assert fates.count("failed") > num / 4 and "done" in fates and verify(str(tmp_path / "to"), CFG) == []


def test_a_child_that_hangs_or_crashes_is_replaced() -> None:
    with pytest.raises(SlideError, match="longer than 1 s"):
        in_child(time.sleep, 60, limit_s=1)
    with pytest.raises(SlideError, match="crashed on it .SIGABRT"):
        in_child(os.abort, limit_s=30)
    with pytest.raises(ZeroDivisionError):
        in_child(divmod, 1, 0, limit_s=30)
    assert in_child(divmod, 7, 2, limit_s=30) == (3, 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_command_does_what_is_missing_or_failed_and_more(tmp_path: Path, in_a_row: None) -> None:
    to, slides = str(tmp_path / "to"), tmp_path / "in"
    one, two = (write_slide(slides / f"{name}.tif", 512, 512) for name in ("one", "two"))
    whole = two.read_bytes()
    two.write_bytes(whole[:4000])
    with pytest.raises(ImportRefused, match="no cut at .* to resume"):
        cut_slides([slides], to, CFG, keep=SMOOTH, resume=True)
    with pytest.raises(ImportRefused, match="1 of 2 slides failed"):
        cut_slides([slides], to, CFG, keep=SMOOTH)
    before = contents(tmp_path / "to")
    assert "one-000.parquet" in before and "_manifest.json" not in before
    two.write_bytes(whole)
    one.rename(tmp_path / "elsewhere.tif")  # it is done: nobody opens it again
    (slides / "one.tif").write_bytes(b"")
    cut_slides([slides], to, CFG, keep=SMOOTH, resume=True)
    write_slide(slides / "three.tif", 512, 512)
    cut_slides([slides / "three.tif"], to, CFG, keep=SMOOTH)
    (tmp_path / "elsewhere.tif").replace(one)
    cut_slides([slides], str(tmp_path / "once"), CFG, keep=SMOOTH)
    assert contents(tmp_path / "to") == contents(tmp_path / "once")
    with pytest.raises(ImportRefused, match="other size"):
        cut_slides([slides], to, CFG, keep=SMOOTH, size=112)
    with pytest.raises(ImportRefused, match="slide one of .* was cut with other"):
        cut_slides([one], to, CFG, keep=SMOOTH, split="test")


@pytest.mark.slow
def test_a_killed_cut_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(12):
        os.link(CMU, tmp_path / "in" / f"slide{i}.svs") if os.stat(CMU).st_dev == os.stat(tmp_path).st_dev else (
            tmp_path / "in" / f"slide{i}.svs"
        ).write_bytes(CMU.read_bytes())
    options = ["--mpp", "0.5", "--mpp", "1", "--stride", "56", "--seed", "3"]

    def start(to: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pathryoshka.cli", "tiles", "cut", str(tmp_path / "in"), str(tmp_path / to)]
        return subprocess.Popen([*command, *options])

    broken = start("broken")
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "broken").glob("_slides/slide*.json"))) < 3:
        assert time.monotonic() < deadline and broken.poll() is None
        time.sleep(0.02)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    time.sleep(5)  # what Ray had started ends by itself
    done = len(list((tmp_path / "broken").glob("_slides/slide*.json")))
    assert 3 <= done < 12 and not (tmp_path / "broken" / "_manifest.json").exists()
    assert start("broken").wait(300) == 0 and start("whole").wait(300) == 0
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert verify(str(tmp_path / "whole"), CFG) == []
