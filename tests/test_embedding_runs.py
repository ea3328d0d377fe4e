"""Embedding on Ray: from S3 to S3, a slide beside a broken one; killed and gone on; told to end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray

from pathryoshka import config, load, storage
from pathryoshka.embedding.job import embed
from pathryoshka.embedding.rows import VECTOR
from pathryoshka.embedding.state import STATES, read_manifest, read_states
from pathryoshka.embedding.table import read_table
from pathryoshka.features.table import as_matrix
from pathryoshka.session import ray_session
from pathryoshka.tiles.grid import Cut
from pathryoshka.tiles.phantom import write_phantom
from pathryoshka.tiles.shards import iter_tiles
from pathryoshka.tiles.views import decode
from tests.exports import export
from tests.runs import Driver, short_tmp

CFG = config.Storage()
CMU = Path(__file__).parent / "data" / "slides" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(short_tmp()))
        with ray_session(5):
            yield


def equal_to_the_plain_loop(to: str, tiles: str, student: str, cfg: config.Storage) -> None:
    """Every tile once, with the vector that the export gives it, one tile after the other."""
    model = load(student, width=16)
    rows = pa.concat_tables(iter_tiles(tiles, cfg)).to_pylist()
    wanted = {row["tile_id"]: model.embed(decode(row["image"])[None]).numpy()[0] for row in rows}
    table = read_table(to, cfg)
    ids = table["tile_id"].to_pylist()
    assert sorted(ids) == sorted(wanted)
    np.testing.assert_allclose(as_matrix(table[VECTOR]), np.stack([wanted[i] for i in ids]), atol=1e-5)


@pytest.mark.timeout(600)
def test_from_object_storage_to_object_storage(
    session: None, s3_storage: tuple[config.Storage, str], tmp_path: Path
) -> None:
    cfg, uri = s3_storage
    export(tmp_path / "student")
    storage.upload_folder(tmp_path / "student", f"{uri}/student", cfg)
    write_phantom(f"{uri}/tiles", cfg, num_tiles=120, num_patients=3, num_sites=1, size=48)
    said: list[str] = []
    given = {"width": 16, "device": "cpu", "replicas": 1, "batch_size": 16, "say": said.append}
    manifest = embed([f"{uri}/tiles"], f"{uri}/student", f"{uri}/table", cfg, **given)
    assert manifest.rows == 120 and manifest == read_manifest(f"{uri}/table", cfg)
    equal_to_the_plain_loop(f"{uri}/table", f"{uri}/tiles", str(tmp_path / "student"), cfg)
    assert any("120 tiles of 3 shards" in line and "tiles/s" in line for line in said)


@pytest.mark.timeout(600)
def test_slides_and_a_broken_one(session: None, tmp_path: Path) -> None:
    pytest.importorskip("openslide", reason="SKIPPED: openslide is not installed, no slide was embedded")
    export(tmp_path / "student")
    torn = tmp_path / "torn.svs"
    torn.write_bytes(CMU.read_bytes()[:900_000])
    places = [str(CMU), str(torn), str(tmp_path / "none.svs")]
    manifest = embed(
        places, str(tmp_path / "student"), str(tmp_path / "to"), CFG, device="cpu", replicas=1, cut=Cut(mpp=(1.0,)),
        say=lambda line: None,
    )  # fmt: skip
    by_name = {state.name: state for state in manifest.states}
    assert [by_name[name].status for name in (CMU.stem, "torn", "none")] == ["done", "failed", "failed"]
    assert by_name["none"].reason == "no such file" and manifest.rows > 5
    assert len(set(read_table(str(tmp_path / "to"), CFG)["tile_id"].to_pylist())) == manifest.rows


@pytest.mark.timeout(600)
def test_an_interrupt_leaves_no_actor(session: None, tmp_path: Path) -> None:
    export(tmp_path / "student")
    write_phantom(str(tmp_path / "tiles"), CFG, num_tiles=400, num_patients=10, num_sites=1, size=48)

    def interrupt(line: str) -> None:
        if "students on" in line:
            signal.setitimer(signal.ITIMER_REAL, 4.0)

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            embed(
                [str(tmp_path / "tiles")], str(tmp_path / "student"), str(tmp_path / "to"), CFG, device="cpu",
                replicas=1, batch_size=1, say=interrupt,
            )  # fmt: skip
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    deadline = time.monotonic() + 60
    while working() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not working()


def working() -> list[str]:
    """Processes of this session that read or embed."""
    below = psutil.Process().children(recursive=True)
    titles = []
    for process in below:
        try:
            titles.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return [title for title in titles if "MapBatches" in title]


class Runs:
    """The real command, to be killed."""

    def __init__(self, folder: Path) -> None:
        self.tiles, self.student, self.to = (str(folder / name) for name in ("tiles", "student", "to"))
        export(self.student)
        write_phantom(self.tiles, CFG, num_tiles=480, num_patients=24, num_sites=1, size=48)
        self.folder = folder

    def start(self, name: str) -> Driver:
        words = ("embed", self.tiles, "--student", self.student, "--width", "16", "--to", self.to)
        tree = {"storage": {"lease_ttl_s": 4}}
        return Driver(tree, self.folder / name, {}, (*words, "--batch-size", "8")).start()

    def wait_for_states(self, driver: Driver, num: int) -> None:
        deadline = time.monotonic() + 180
        while len(list(Path(self.to, STATES).glob("*.json"))) < num:
            assert driver.process.poll() is None and time.monotonic() < deadline, driver.text()[-3000:]
            time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    first = runs.start("first")
    runs.wait_for_states(first, 3)
    first.kill()
    done = len(read_states(runs.to, CFG))
    assert 3 <= done < 24
    again = runs.start("again")
    assert again.wait() == 0, again.text()[-3000:]
    assert f"24 shards, {done} of them done before" in again.text()
    equal_to_the_plain_loop(runs.to, runs.tiles, runs.student, CFG)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    driver = runs.start("told")
    runs.wait_for_states(driver, 3)
    below = psutil.Process(driver.process.pid).children(recursive=True)
    os.kill(driver.process.pid, signal.SIGTERM)
    assert driver.wait() == 143, driver.text()[-3000:]
    assert not psutil.wait_procs(below, timeout=60)[1]
    assert not [path for path in Path(runs.to).rglob("*") if path.name.endswith(".partial")]
    states = read_states(runs.to, CFG)
    parts = {state.part.path for state in states.values() if state.part}
    written = {f"parts/{path.name}" for path in Path(runs.to, "parts").iterdir()}
    assert parts <= written and len(written - parts) <= 4  # a part whose state was not written yet is made anew
    assert not ray.is_initialized() or not working()
