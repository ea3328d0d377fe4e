"""`publish`: what would go, what licences forbid, and an upload to a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pathryoshka import config
from pathryoshka.export import publish as publishing
from pathryoshka.export.publish import PublishError, publish, refuse_by_licence
from pathryoshka.export.verify import Verified
from pathryoshka.teachers.licences import Terms
from tests.exports import TEACHERS, export
from tests.fake_uploads import TOKEN, UploadHub

RUN = config.make_run({"recipe": "debug", "name": "x"})
FREE = {"lite0": TEACHERS["lite0"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("free") / "export"
    export(to, teachers=FREE)
    return to


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the folder, which tests/test_verify.py tests, takes seconds."""
    monkeypatch.setattr(publishing, "verify", lambda folder: Verified("m", 8, 0.0, 0.0, "1"))


def terms(licence: str = "x", derivatives: bool | None = True, commercial: bool | None = True) -> Terms:
    return Terms(licence, derivatives, commercial, True, "its card")


# ---------------------------------------------------------------- licences


@pytest.mark.parametrize(
    ("policy", "licence", "teachers", "permissions", "said"),
    [
        ("any", "mit", {"a": terms()}, (), None),
        ("permissive", "mit", {"a": terms()}, (), None),
        ("any", "mit", {"a": terms(), "b": terms("nd", derivatives=False)}, (), r"of b \(nd, its card\) does not"),
        ("any", "mit", {"b": terms("nd", derivatives=False)}, ("b",), r"the licence of b \(nd"),
        ("any", "mit", {"a": terms(derivatives=None)}, (), "does not say .* ask its owner, then say --permission a"),
        ("any", "mit", {"a": terms(derivatives=None)}, ("a",), None),
        ("any", "mit", {"a": terms()}, ("b",), "--permission b: that is no teacher"),
        ("permissive", "mit", {"a": terms(derivatives=None)}, ("a",), "licence.policy=permissive does not admit a"),
        ("any", "mit", {"a": terms("nc", commercial=False)}, (), r"mit allows the commercial use that a \(nc\) forb"),
        ("any", "cc-by-nc-4.0", {"a": terms("nc", commercial=False)}, (), None),
        ("any", "other", {"a": terms("nc", commercial=False)}, (), None),
        ("permissive", "other", {"a": terms("nc", commercial=False)}, (), "does not admit a .*commercial use"),
    ],
)  # fmt: skip
def test_licences(policy: str, licence: str, teachers: Any, permissions: tuple[str, ...], said: str | None) -> None:
    if said is None:
        refuse_by_licence(policy, licence, teachers, permissions)
    else:
        with pytest.raises(PublishError, match=said):
            refuse_by_licence(policy, licence, teachers, permissions)


def test_terms_are_read_as_a_run_writes_them() -> None:
    from pathryoshka.teachers.licences import terms as terms_of_row
    from pathryoshka.teachers.zoo import row_by_name

    agreed = terms_of_row(row_by_name("efficientnet_lite0"))
    assert publishing.terms_of({"licence": agreed.licence, "terms": asdict(agreed)}) == agreed
    assert publishing.terms_of({}) == publishing.NOT_KNOWN


def test_what_a_teacher_forbids_is_refused_before_anything_is_sent(tmp_path: Path, verified: None) -> None:
    export(tmp_path)  # uni2_h: CC-BY-NC-ND
    lines: list[str] = []
    with pytest.raises(PublishError, match=r"uni2_h \(CC-BY-NC-ND-4.0, its card\) does not let students be passed on"):
        publish(str(tmp_path), "lab/student", RUN, upload=True, say=lines.append)
    assert any(
        line.startswith("licence of uni2_h: CC-BY-NC-ND-4.0; students of it may be passed on: NO") for line in lines
    )


def test_an_export_that_does_not_say_what_holds_is_not_taken_for_free(tmp_path: Path, verified: None) -> None:
    export(tmp_path, teachers={"mine": {}})
    with pytest.raises(PublishError, match="mine does not say"):
        publish(str(tmp_path), "lab/student", RUN, say=lambda line: None)


# ---------------------------------------------------------------- what goes


def test_a_dry_run_says_all_and_sends_nothing(
    folder: Path, tmp_path: Path, verified: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "send", lambda *_: pytest.fail("sent"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    lines: list[str] = []
    (folder / "secrets.env").write_text("x")
    try:
        assert publish(str(folder), "lab/student", RUN, say=lines.append) is None
    finally:
        (folder / "secrets.env").unlink()
    said = "\n".join(lines)
    size = (folder / "model.safetensors").stat().st_size / 1e3
    for text in (
        f"{size:,.1f} kB  model.safetensors",
        "tools/student.py",
        "golden/7.png",
        "to lab/student, private",
        "no part of an export: secrets.env",
        "licence of lite0: Apache-2.0; students of it may be passed on: yes",
        "licence.policy=any allow it",
        "dry run",
    ):
        assert text in said
    assert TOKEN not in said


def test_every_file_of_an_export_belongs_to_it(folder: Path) -> None:
    there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert publishing.parts_of(folder) == there


def test_places_of_the_run_are_told() -> None:
    tree = {
        "data": {"tiles": ["s3://hospital/tiles", "tiles"]},
        "storage": {"root": "/data/runs", "endpoint": None},
        "n": 3,
    }
    assert publishing.places_in(tree) == ["/data/runs", "s3://hospital/tiles"]


@pytest.mark.parametrize("repo", ["student", "a/b/c", "../x/y", "lab/", "lab/ student", "https://hub/lab/student"])
def test_what_is_no_repository_is_refused(folder: Path, repo: str) -> None:
    with pytest.raises(PublishError, match="is no name on the hub; write owner/name"):
        publish(str(folder), repo, RUN)


# ---------------------------------------------------------------- the upload, by the hub's own client


def upload_to(
    hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], **more: Any
) -> str | None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    publish(str(folder), "lab/student", RUN, upload=True, say=lines.append, **more)


def test_the_command_uploads_one_commit_of_the_same_bytes(folder: Path) -> None:
    with UploadHub() as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HOME": str(folder.parent / "hf"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        args = ["publish", str(folder), "--repo", "lab/student", "--yes"]
        done = subprocess.run([sys.executable, "-m", "pathryoshka.cli", *args], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hub.files == {name: (folder / name).read_bytes() for name in publishing.parts_of(folder)}
    assert hub.private is True
    facts = json.loads((folder / "pathryoshka.json").read_text())
    assert hub.message == f"Student {facts['model_id'][:16]} of lite0"
    assert f"published: {hub.endpoint}/lab/student/commit/" in done.stdout
    assert TOKEN not in done.stdout + done.stderr


def test_permissions_are_kept_in_the_commit_and_public_is_asked_for(
    tmp_path: Path, verified: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path, teachers={"mine": {}})
    with UploadHub() as hub:
        upload_to(hub, tmp_path, monkeypatch, [], public=True, permissions=("mine",))
    assert hub.private is False and hub.message.endswith("of mine; passed on by permission of the owners of mine")


def test_a_public_repository_is_not_written_to_by_accident(
    folder: Path, verified: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        UploadHub(public_already=True) as hub,
        pytest.raises(PublishError, match="lab/student is there and public; say --public"),
    ):
        upload_to(hub, folder, monkeypatch, [])
    assert not hub.files


@pytest.mark.parametrize("status", [401, 403, 500])
def test_the_hubs_refusal_is_a_sentence_without_the_token(
    folder: Path, verified: None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    with UploadHub(refuse=status) as hub, pytest.raises(PublishError, match=f"the hub refused: .*{status}") as refused:
        upload_to(hub, folder, monkeypatch, lines)
    assert TOKEN not in str(refused.value) + "".join(lines) and "\n" not in str(refused.value) and not hub.files


def test_a_hub_that_is_not_there_and_a_missing_token_are_sentences(
    folder: Path, verified: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with UploadHub() as hub:
        pass
    with pytest.raises(PublishError, match=f"the upload to {hub.endpoint} failed: "):
        upload_to(hub, folder, monkeypatch, [])
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(PublishError, match="wants a token that may write; set HF_TOKEN"):
        publish(str(folder), "lab/student", RUN, upload=True, say=lambda line: None)


def test_the_token_is_taken_out_of_whatever_the_hub_says() -> None:
    assert publishing.first_line(f"\n no rights for Bearer {TOKEN}\nmore", TOKEN) == "no rights for Bearer <token>"
