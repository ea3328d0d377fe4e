"""Pieces of work side by side on a real Ray: the bytes of one process, and failures that stay apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pathryoshka import config, session, storage
from pathryoshka.tiles import making
from pathryoshka.tiles.importing import import_images
from pathryoshka.tiles.making import run_tasks
from pathryoshka.tiles.shards import ShardError
from pathryoshka.tiles.sources import ImportRefused

CFG = config.Storage(max_attempts=2)
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with session.ray_session(4):
        yield


def contents(uri: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(uri.iterdir())}


@pytest.mark.usefixtures("ray_session")
def test_an_import_on_ray_writes_the_bytes_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for path in sorted((DATA / "crc7k").glob("*.jpg"))[:9]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    options: dict[str, Any] = {"seed": 4, "rows_per_shard": 2}
    import_images(folder, str(tmp_path / "ray"), CFG, max_failed_share=0.1, **options)
    with pytest.raises(ImportRefused, match="1 of 10 cannot be read"):
        import_images(folder, str(tmp_path / "none"), CFG, max_failed_share=0.05, **options)
    assert not storage.list_files(str(tmp_path / "none"), CFG)

    def in_a_row(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [function(item) for item in items]

    monkeypatch.setattr(making, "run_tasks", in_a_row)
    import_images(folder, str(tmp_path / "row"), CFG, max_failed_share=0.1, **options)
    assert contents(tmp_path / "ray") == contents(tmp_path / "row") and len(contents(tmp_path / "ray")) == 7


@pytest.mark.usefixtures("ray_session")
def test_slides_are_cut_on_ray_while_one_fails(tmp_path: Path) -> None:
    pytest.importorskip("openslide", reason="SKIPPED: openslide is not installed, no slide was cut")
    from pathryoshka.tiles.slides import cut_slides, read_slides

    bad = tmp_path / "bad.svs"
    bad.write_text("no slide")
    manifest = cut_slides(
        [bad, DATA / "slides" / "CMU-1-Small-Region.svs"], str(tmp_path / "to"), CFG, mpp=2.0, max_failed_share=0.5
    )
    assert set(manifest.counts["slide"]) == {"CMU-1-Small-Region"} and manifest.rows >= 1
    fates = {row["slide_id"]: row["reason"] for row in read_slides(str(tmp_path / "to"), CFG)}
    assert fates == {"bad": "no reader knows this format; convert it to a pyramidal TIFF", "CMU-1-Small-Region": None}


@pytest.mark.usefixtures("ray_session")
def test_what_a_piece_raises_takes_its_place() -> None:
    def task(i: int) -> int:
        if i == 3:
            raise ShardError(f"number {i}")
        return i * i

    results = run_tasks(task, range(6))
    assert [result for result in results if isinstance(result, int)] == [0, 1, 4, 16, 25]
    assert isinstance(results[3], ShardError) and str(results[3]) == "number 3"
    assert run_tasks(task, []) == []
