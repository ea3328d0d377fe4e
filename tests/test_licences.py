"""What licences say, and the policy that refuses before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pathryoshka import config, recipes
from pathryoshka.runs import job
from pathryoshka.teachers.licences import LICENCES, ledger, refuse_by_policy, terms
from pathryoshka.teachers.row import EncoderError
from pathryoshka.teachers.zoo import ROWS

PERMISSIVE = {"virchow", "h_optimus_0", "gigapath_flash", "hibou_b", "hibou_l", "midnight_12k", "openmidnight"}


def test_every_teacher_of_pathology_has_a_licence_that_was_read() -> None:
    unread = {row.name for row in ROWS.values() if row.licence not in LICENCES}
    assert unread <= {"pathryoshka_b", "distillpath_ks16", "distillpath_is16"}  # whose pages name none


def test_the_letters_of_creative_commons_mean_what_they_say() -> None:
    for name, licence in LICENCES.items():
        if name.startswith("cc-by"):
            parts = name.split("-")
            assert licence.commercial == ("nc" not in parts) and licence.derivatives == ("nd" not in parts)


def test_a_row_goes_before_its_licence() -> None:
    row = ROWS["hibou_b"]
    assert terms(row).derivatives is True
    assert terms(replace(row, derivatives=False)).derivatives is False
    assert terms(replace(row, derivatives=None, licence="cc-by-nc-nd-4.0")).derivatives is False
    assert terms(replace(row, derivatives=None, licence="of a lab")).derivatives is None
    assert row.licence_source in terms(row).source


def test_the_permissive_teachers_are_those_that_are_known_to_be() -> None:
    admitted = set()
    for row in ROWS.values():
        try:
            refuse_by_policy("permissive", {row.name: terms(row)})
        except EncoderError as error:
            assert row.name in str(error) and "\n" not in str(error)
        else:
            admitted.add(row.name)
        refuse_by_policy("any", {row.name: terms(row)})
    assert admitted == PERMISSIVE | {"efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "mock"}


def test_a_permissive_run_refuses_by_name_before_it_writes_anything(tmp_path: Path) -> None:
    over = {"licence": {"policy": "permissive"}, "storage": {"root": str(tmp_path / "runs")}}
    with pytest.raises(EncoderError, match="does not admit virchow2 .*; uni2_h .*; h_optimus_1 .*leave them out"):
        job.distill(config.make_run(config.overlay(recipes.paper_b().model_dump(), over)))
    assert not (tmp_path / "runs").exists()


def test_the_ledger_answers_three_questions_a_teacher() -> None:
    (line,) = ledger({"v": terms(ROWS["virchow2"])})
    assert line.startswith("licence of v: cc-by-nc-nd-4.0; students of it may be passed on: NO, commercial use: NO, ")
    assert "https://huggingface.co/paige-ai/Virchow2" in line
    (line,) = ledger({"k": terms(ROWS["kaiko_b8"])})
    assert "students of it may be passed on: not said, commercial use: NO" in line
