"""The part of a model card on what a student is worth: beside an evaluation, in an export, in what is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pathryoshka import config
from pathryoshka.evaluate.model_card import HEADING, Saw, model_card_section
from pathryoshka.evaluate.scores import DataSet, Difference, Scores
from pathryoshka.export import publish as publishing
from pathryoshka.export.card import TEACHERS, with_scores
from pathryoshka.export.publish import PublishError, publish
from pathryoshka.scorecard import score_encoders
from tests.blotches import rows, write
from tests.exports import TEACHERS as FACTS
from tests.exports import export, some_scores


def compared() -> Scores:
    scores = some_scores()
    d = Difference(dataset="glands", protocol="linear", encoder="student", width=48, other="lite0", other_width=16,
                   value=-0.06, low=-0.1, high=-0.02, error=0.02, freedom=9, p=0.0123)  # fmt: skip
    datasets = tuple(one.model_copy(update={"licence": "CC-BY-4.0"}) for one in scores.datasets)
    return scores.model_copy(update={"differences": (d,), "datasets": datasets})


def test_it_says_widths_scores_data_licences_and_what_was_seen() -> None:
    text = model_card_section(compared(), [Saw(1200, 34)], {"student": "MIT"})
    for part in (
        "Widths 16, 48: the first numbers",
        "### glands (PHANTOM tissue, drawn by a program)",
        "90 tiles of 30 patients, 2 classes; 5-fold cross-validation split by patient. Chance is 0.50.",
        "Licence of the data: CC-BY-4.0.",
        "| student | 0.710 [0.66, 0.76] | 0.740 [0.69, 0.79] |",
        "| student 48 | lite0 16 | -6.0 [-10.0, -2.0] | .012 |",
        "| student | 48 | 0.00 M | 0.1 | MIT |",
        "1,200 tiles; `seen.parquet` of the export holds keyed hashes of their 34 slides and patients",
        "- mind this",
    ):
        assert part in text, part
    assert text.count(HEADING) == 1 and text.startswith(HEADING)


def test_what_is_not_known_is_said() -> None:
    assert "Not evaluated. Nothing here says what this student is worth on any tissue" in model_card_section(None)
    text = model_card_section(some_scores())
    assert "### What distillation saw\n\nNot known" in text
    assert "Licence of the data: not recorded." in text and "| not recorded |" in text


def test_seen_data_and_other_tasks_are_marked() -> None:
    seen = some_scores().datasets[0].model_copy(update={"seen": True})
    assert "SEEN in distillation: flatters" in model_card_section(
        some_scores().model_copy(update={"datasets": (seen,)})
    )
    facts = {"name": "idc", "labels": {"IDC": 9}, "unit": "slide", "num_tiles": 9, "num_groups": 3, "num_folds": 3}
    other = DataSet(**facts, num_scored=9, num_unlabelled=0, num_failed=0, task="regression")  # type: ignore[arg-type]
    row = some_scores().rows[0].model_copy(update={"dataset": "idc", "protocol": "expression"})
    text = model_card_section(some_scores().model_copy(update={"datasets": (other,), "rows": (row,)}))
    assert "9 tiles of 3 slides, IDC; the data set's own 3 folds, 9 tiles scored." in text and "Chance" not in text
    assert "Gene expression: Pearson's correlation" in text


def test_a_card_is_given_other_scores_and_keeps_the_rest(tmp_path: Path) -> None:
    export(tmp_path, scores=None)
    card = (tmp_path / "README.md").read_text()
    assert "Not evaluated." in card
    other = with_scores(card, model_card_section(compared()))
    assert "Not evaluated." not in other and other.count(HEADING) == 1 == other.count(TEACHERS)
    assert other.split(TEACHERS)[1] == card.split(TEACHERS)[1] and other.split(HEADING)[0] == card.split(HEADING)[0]
    assert with_scores(other, model_card_section(None)) == with_scores(card, model_card_section(None))


def test_an_evaluation_made_later_goes_into_the_card_that_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, out = tmp_path / "student", tmp_path / "out"
    export(where, scores=None, teachers={"lite0": FACTS["lite0"]})
    tiles = write(tmp_path / "blots", rows(48), {"kind": "test", "licence": "CC0-1.0"})
    run = config.make_run({"evaluate": {"tiles": [tiles], "folds": 3, "protocols": []}, "views": {"size": 32}})
    score_encoders([f"mine={where}"], run, str(out), say=lambda line: None)
    section = (out / "model_card.md").read_text()
    assert "| mine | " in section and "Licence of the data: CC0-1.0." in section and "| mit |" in section
    sent: dict[str, str] = {}

    def send(folder: Path, *_: object) -> str:
        sent.update({name: (folder / name).read_text() for name in ("README.md", "pathryoshka.json")})
        return "there"

    monkeypatch.setattr(publishing, "send", send)
    monkeypatch.setattr(publishing, "verify", lambda folder: "verified")
    before = (where / "README.md").read_text()
    assert publish(str(where), "lab/student", run, upload=True, evaluation=str(out), say=lambda line: None) == "there"
    assert section in sent["README.md"] and before.split(HEADING)[0] == sent["README.md"].split(HEADING)[0]
    assert json.loads(sent["pathryoshka.json"])["scores"]["widths"] == [16, 32, 48]
    assert (where / "README.md").read_text() == before  # the export itself stays as it is
    with pytest.raises(PublishError, match="there is no evaluation at"):
        publish(str(where), "lab/student", run, evaluation=str(tmp_path), say=lambda line: None)
    export(tmp_path / "other", "conv", teachers={"lite0": FACTS["lite0"]})
    with pytest.raises(PublishError, match="is of another student than"):
        publish(str(tmp_path / "other"), "lab/student", run, evaluation=str(out), say=lambda line: None)
