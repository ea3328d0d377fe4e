"""`verify`: an exported folder against its golden tiles, here and in a process without this package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pathryoshka import storage
from pathryoshka.export import verify as verifying
from pathryoshka.export.verify import VerifyError, verify, verify_plain_timm
from tests.exports import CFG, export, golden, student_of, z_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("vit") / "export"
    export(to)
    return to


def test_plain_timm_in_a_process_of_its_own_gives_the_students_vectors(folder: Path) -> None:
    found = verify(folder)
    assert found.worst < 1e-5 and found.worst_plain < 1e-5 and found.num_tiles == 8
    assert found.model_id == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert f"model id {found.model_id[:16]}" in str(found) and timm.__version__ in str(found)
    want = load_file(folder / "golden.safetensors")["vectors"]
    torch.testing.assert_close(want, z_of(student_of("vit")[0], golden()), atol=1e-5, rtol=0)


def damaged(folder: Path, to: Path) -> Path:
    storage.upload_folder(folder, str(to), CFG)
    return to


def test_other_weights_under_the_same_name_are_found(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(damaged(folder, tmp_path) / "model.safetensors")
    tensors["norm.weight"] = tensors["norm.weight"] * 1.01
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerifyError, match="model.safetensors of .* is .*, not"):
        verify(tmp_path)


def test_other_golden_vectors_are_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = load_file(damaged(folder, tmp_path) / "golden.safetensors")["vectors"]
    vectors[3, 7] += 1e-2
    save_file({"vectors": vectors}, tmp_path / "golden.safetensors")
    monkeypatch.setattr(verifying, "verify_plain_timm", lambda folder: (0.0, 8, "1"))
    with pytest.raises(VerifyError, match="golden tiles of .* differ from their vectors by .*e-0[23] here"):
        verify(tmp_path)


def test_a_lost_file_is_named(folder: Path, tmp_path: Path) -> None:
    (damaged(folder, tmp_path) / "golden.safetensors").unlink()
    with pytest.raises(VerifyError, match="lacks golden.safetensors"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise RuntimeError('Unknown model')", "plain timm cannot load .*: RuntimeError: Unknown model"),
        ("import sys; sys.exit(7)", "exit code 7"),
        ('print(\'{"worst": 0, "timm": "1", "tiles": 8, "ours": ["ray"]}\')', "without this package imported ray"),
    ],
)
def test_what_the_other_process_says_is_passed_on(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "PLAIN", script)
    with pytest.raises(VerifyError, match=said):
        verify_plain_timm(tmp_path)


def test_vectors_that_only_plain_timm_misses_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "verify_plain_timm", lambda folder: (2e-4, 8, "0.9"))
    with pytest.raises(VerifyError, match="2.0e-04 with plain timm 0.9"):
        verify(folder)
