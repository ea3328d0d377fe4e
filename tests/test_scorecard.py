"""Any encoders on any labelled tiles: exports beside others, what an export has seen, a lab's own CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pathryoshka import config
from pathryoshka.cli import cli
from pathryoshka.evaluate.record import read_predictions, read_profiles
from pathryoshka.evaluate.scores import Scores
from pathryoshka.export.seen import Seen, SeenError, keyed
from pathryoshka.scorecard import named_spec, score_encoders
from tests.blotches import CFG, COLOURS, rows, tile, write
from tests.exports import export


def run_on(uri: str, **over: object) -> config.Run:
    return config.make_run({"evaluate": {"tiles": [uri], "folds": 3, **over}, "views": {"size": 32}})


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("exports")
    for name in ("vit", "conv"):
        export(folder / name, name)
    return {name: str(folder / name) for name in ("vit", "conv")}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "blots", rows(48))


def test_exports_are_scored_side_by_side_each_at_its_widths(
    students: dict[str, str], tiles: str, tmp_path: Path
) -> None:
    specs = [f"a={students['vit']}", f"b={students['conv']}", "efficientnet_lite0"]
    said: list[str] = []
    scores = score_encoders(specs, run_on(tiles), str(tmp_path), say=said.append)
    widths = {e: sorted({r.width for r in scores.rows if r.encoder == e}) for e in ("a", "b", "efficientnet_lite0")}
    assert widths == {"a": [16, 32, 48], "b": [64, 1024], "efficientnet_lite0": [1280]}
    assert {r.kind for r in scores.rows if r.encoder == "efficientnet_lite0"} == {"other"}
    against = {(d.encoder, d.width, d.other) for d in scores.differences if d.protocol == "linear"}
    assert {("a", 16, "a"), ("a", 48, "efficientnet_lite0"), ("b", 64, "b")} <= against
    assert Scores.model_validate(json.loads((tmp_path / "scores.json").read_text())) == scores
    with (tmp_path / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(scores.rows) and float(lines[0]["score"]) == pytest.approx(scores.rows[0].score)
    html = (tmp_path / "report.html").read_text()
    assert "A closer look" in html and "Worst tiles of" in html
    assert len(read_profiles(str(tmp_path), CFG)) == len(scores.rows)
    assert set(read_predictions(str(tmp_path), CFG)["encoder"].to_pylist()) == set(widths)


def test_what_an_export_has_seen_is_refused_unless_asked_for(tiles: str, tmp_path: Path) -> None:
    salt = b"k" * 32
    seen = Seen(salt, frozenset({keyed(salt, "patient at site", "north\x1fp3")}), np.array([5], np.uint64), 1)
    where = str(tmp_path / "seen")
    export(where, "vit", seen=seen)
    with pytest.raises(SeenError, match="distillation saw 1 of 8 patients"):
        score_encoders([where], run_on(tiles), str(tmp_path / "out"))
    scores = score_encoders([where], run_on(tiles, allow_seen=True), str(tmp_path / "out"), say=lambda line: None)
    assert all(row.seen for row in scores.rows) and scores.datasets[0].seen
    assert any(note.startswith("SEEN") for note in scores.notes)


def test_encoders_without_a_student_are_compared_too(tiles: str, tmp_path: Path) -> None:
    run = run_on(tiles, protocols=[])
    scores = score_encoders(["a=efficientnet_lite0", "b=efficientnet_lite1"], run, str(tmp_path), say=lambda line: None)
    assert {r.encoder for r in scores.rows} >= {"a", "b"} and not scores.names("student")
    assert "2 encoders side by side on 1 data set" in (tmp_path / "report.html").read_text()


def test_names_of_encoders() -> None:
    assert named_spec("mine=out/export") == ("mine", "out/export")
    assert named_spec("out/runs/a/export/") == ("export", "out/runs/a/export/")
    assert named_spec("timm:resnet18") == ("resnet18", "timm:resnet18")
    with pytest.raises(config.ConfigError, match="two encoders have the same name"):
        score_encoders(["a/x", "b/x"], run_on("t"), "out")


def test_a_labs_own_labels_from_the_command_line(students: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    lines = ["tile,label,patient"]
    for i in range(36):
        label = list(COLOURS)[i % 3]
        Image.fromarray(tile(label, i)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{label},p{i // 4}")
    (folder / "mine.csv").write_text("\n".join(lines) + "\n")
    args = [
        "evaluate",
        "--encoder",
        students["vit"],
        "--tiles",
        str(folder / "mine.csv"),
        "--to",
        str(tmp_path / "out"),
    ]
    for _ in range(2):  # the second time takes the tiles that it imported
        done = CliRunner().invoke(cli, args, catch_exceptions=False)
        assert done.exit_code == 0 and "linear" in done.output
    assert "36 tiles of 9 patients" in done.output
    done = CliRunner().invoke(cli, ["evaluate", "compare", f"a={tmp_path}/out", f"b={tmp_path}/out"])
    assert done.exit_code == 0 and "+0.0 [+0.0, +0.0] unclear" in done.output
