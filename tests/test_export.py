"""The exported folder: loaded by plain timm in another process, by `load`, checked against vectors made before."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from pathryoshka import config, storage
from pathryoshka.evaluate.scores import Scores
from pathryoshka.export.card import model_card
from pathryoshka.export.facts import LoadError
from pathryoshka.export.load import load
from pathryoshka.export.seen import read_seen
from pathryoshka.export.write import ExportError, folded_heads
from pathryoshka.teachers import standardize
from pathryoshka.tiles.views import identity_view
from tests.exports import (
    DIMS,
    MODELS,
    SIZE,
    TEACHERS,
    export,
    golden,
    heads_of,
    some_scores,
    standardisers,
    student_of,
    z_of,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("vit") / "export"
    export(to)
    return to


# ---------------------------------------------------------------- plain timm


@pytest.mark.parametrize("name", list(MODELS))
def test_timm_builds_the_same_network_from_a_local_folder_and_from_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path, name)
    student, _ = student_of(name)
    images = [Image.fromarray(view) for view in golden()]

    def download(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id == "lab/tiny"
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    for source in (f"local-dir:{tmp_path}", "hf-hub:lab/tiny"):
        model = timm.create_model(source, pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        x = torch.stack([transform(image) for image in images])
        with torch.inference_mode():
            torch.testing.assert_close(model(x), z_of(student, golden()), atol=1e-4, rtol=1e-5)


def test_timms_transform_is_the_identity_view(folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    data = timm.data.resolve_model_data_config(model)
    picture = np.random.default_rng(1).integers(0, 256, (70, 70, 3), dtype=np.uint8)
    theirs = timm.data.create_transform(**data)(Image.fromarray(picture))
    torch.testing.assert_close(theirs, load(folder).transform(picture), atol=1e-6, rtol=0)
    pixels = (theirs * torch.tensor(data["std"])[:, None, None] + torch.tensor(data["mean"])[:, None, None]) * 255
    np.testing.assert_allclose(pixels.permute(1, 2, 0), identity_view(picture, SIZE), atol=1e-3)


def test_config_json_says_what_timm_needs(folder: Path) -> None:
    facts = json.loads((folder / "config.json").read_text())
    assert (facts["architecture"], facts["num_classes"], facts["num_features"]) == ("vit_tiny_patch16_224", 0, 48)
    assert facts["global_pool"] == "token" and facts["model_args"]["img_size"] == SIZE
    assert facts["model_args"]["num_classes"] == 0
    assert facts["pretrained_cfg"]["input_size"] == [3, SIZE, SIZE] and facts["pretrained_cfg"]["crop_pct"] == 1.0


# ---------------------------------------------------------------- load()


@pytest.mark.parametrize("width", [16, 32, 48, None])
def test_loaded_students_are_cut_and_normalised(folder: Path, width: int | None) -> None:
    model = load(folder, width)
    z = z_of(student_of("vit")[0], golden()).double().numpy()[:, :width]
    want = z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed(golden()), want, atol=1e-5)
    np.testing.assert_allclose(model.embed(torch.from_numpy(golden())), want, atol=1e-5)
    assert model.widths == (16, 32, 48) and model.width == (width or 48)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", list(MODELS))
def test_tokens_are_the_students(name: str, tmp_path: Path) -> None:
    export(tmp_path, name)
    student, cfg = student_of(name)
    with torch.inference_mode():
        tokens = student.eval()(student.normalise(torch.from_numpy(golden())))[1]
    width = cfg.widths[0]
    torch.testing.assert_close(load(tmp_path, width).tokens(golden()), tokens[..., :width], atol=1e-4, rtol=1e-4)


def test_tiles_of_another_size_are_resized_and_batches_do_not_matter(folder: Path) -> None:
    model = load(folder, 32)
    large = np.random.default_rng(2).integers(0, 256, (70, 80, 96, 3), dtype=np.uint8)
    small = np.stack([identity_view(tile, SIZE) for tile in large])
    torch.testing.assert_close(model.embed(large), model.embed(small), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.embed(large)[3:5], model.embed(large[3:5]), atol=1e-5, rtol=0)


def test_loading_imports_neither_ray_nor_deepspeed(folder: Path) -> None:
    code = (
        "import sys, numpy as np, pathryoshka\n"
        f"model = pathryoshka.load({str(folder)!r}, width=16)\n"
        "e = model.embed(np.zeros((2, 40, 40, 3), np.uint8))\n"
        "assert e.shape == (2, 16) and abs(float(e.norm(dim=1)[0]) - 1) < 1e-5\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'ray', 'deepspeed'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_what_is_no_export_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=f"{tmp_path} is not a Pathryoshka export: it has no pathryoshka.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError, match="a timm folder: load it with timm.create_model"):
        load(tmp_path)
    with pytest.raises(LoadError, match="nowhere is not a Pathryoshka export"):
        load(tmp_path / "nowhere")
    with pytest.raises(LoadError, match="trained for widths 16, 32, 48; got width=20"):
        load(folder, 20)
    (tmp_path / "pathryoshka.json").write_text('{"format": 2}')
    with pytest.raises(LoadError, match="format 2; this version reads format 1"):
        load(tmp_path)


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_what_is_no_batch_of_tiles_is_refused(folder: Path, bad: np.ndarray) -> None:
    with pytest.raises(LoadError, match="tiles are uint8"):
        load(folder).embed(bad)


# ---------------------------------------------------------------- what else lies there


@pytest.mark.parametrize(("hidden", "kind"), [(0, "separate"), (20, "separate"), (0, "tied"), (20, "tied")])
def test_folded_heads_give_raw_features(hidden: int, kind: str) -> None:
    student, cfg = student_of("vit")
    heads, fitted = heads_of(student, cfg, hidden, kind).eval(), standardisers()
    raw = copy.deepcopy(heads)
    raw.layers.load_state_dict(folded_heads(heads, fitted))
    with torch.inference_mode():
        z, tokens = student.eval()(student.normalise(torch.from_numpy(golden())))
        before, after = heads(z, tokens, cfg.widths, cfg.widths), raw(z, tokens, cfg.widths, cfg.widths)
    for width in cfg.widths:
        for teacher, kinds in DIMS.items():
            for feature in kinds:
                s = fitted[teacher, feature]
                y = before[width][teacher][feature].double().numpy()
                want = (y * s.scale if s.inverse is None else y @ s.inverse.T) + s.mean
                np.testing.assert_allclose(after[width][teacher][feature], want, atol=1e-4, rtol=1e-4)


def test_heads_lie_there_under_readable_names(folder: Path) -> None:
    tensors = load_file(folder / "heads.safetensors")
    assert tensors["summary_32_uni2_h.weight"].shape == (12, 32)
    z = z_of(student_of("vit")[0], golden())
    student, cfg = student_of("vit")
    with torch.inference_mode():
        preds = heads_of(student, cfg)(z, torch.zeros(8, 4, 48), cfg.widths, cfg.widths)[32]["uni2_h"]["summary"]
    want = standardisers()["uni2_h", "summary"].invert(preds)
    got = z[:, :32] @ tensors["summary_32_uni2_h.weight"].T + tensors["summary_32_uni2_h.bias"]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_the_folder_tells_all_that_the_contract_asks(folder: Path) -> None:
    facts = json.loads((folder / "pathryoshka.json").read_text())
    assert facts["model_id"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (facts["widths"], facts["size"], facts["grid"], facts["licence"]) == ([16, 32, 48], SIZE, [2, 2], "mit")
    assert facts["teachers"]["uni2_h"]["licence"] == "CC-BY-NC-ND-4.0"
    assert "secret-host" not in (folder / "pathryoshka.json").read_text()
    assert config.make_run(facts["run"]).name == "tiny"
    assert Scores.model_validate(facts["scores"]) == some_scores()
    fitted = standardize.load(folder / "standardisers.safetensors")
    np.testing.assert_array_equal(fitted["lite0", "tokens"].mean, standardisers()["lite0", "tokens"].mean)
    assert read_seen(folder / "seen.parquet").num_tiles == 2
    pictures = [np.asarray(Image.open(folder / "golden" / f"{i}.png")) for i in range(8)]
    np.testing.assert_array_equal(pictures, golden())


def test_the_card_says_licences_widths_and_how_to_load(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for text in (
        "license: mit",
        "| uni2_h | 681.4 M | CC-BY-NC-ND-4.0 | **no** | **no** | yes | its card |",
        "| lite0 | 3.4 M | Apache-2.0 | yes | yes | yes | its page |",
        "the terms of uni2_h restrict use",
        "| student | 0.710 [0.66, 0.76] | 0.740 [0.69, 0.79] |",
        "PHANTOM",
        "mind this",
        'timm.create_model("local-dir:',
        "can be cut to 16, 32, 48",
    ):
        assert text in card
    facts = json.loads((folder / "pathryoshka.json").read_text())
    facts["teachers"] = {"lite0": TEACHERS["lite0"], "mine": {}}
    other = model_card(facts, None, read_seen(folder / "seen.parquet"))
    assert "restrict use" not in other and "students of mine may be passed on is not known" in other
    assert facts["teachers"]["lite0"]["terms"]["source"] == "its page"
    assert "Not evaluated. Nothing here says what this student is worth" in other and "What an encoder" not in other


def test_the_five_lines_of_the_card_run(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("<this folder>", str(folder))
    names: dict[str, Any] = {"image": Image.fromarray(golden()[0])}
    exec(code, names)
    torch.testing.assert_close(names["e"].detach(), load(folder, 16).embed(golden()[:1]), atol=1e-5, rtol=0)


def test_the_same_student_gives_the_same_files_and_another_another_id(folder: Path, tmp_path: Path) -> None:
    again = export(tmp_path / "again")
    facts = json.loads((folder / "pathryoshka.json").read_text())
    assert again == facts["model_id"]
    for file in folder.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "again" / file.relative_to(folder)).read_bytes(), file.name
    assert export(tmp_path / "other", student=student_of("vit", seed=5)[0]) != again


def test_a_torn_upload_is_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path)

    def fail(*_: Any) -> None:
        raise storage.StorageError("the disk is full")

    monkeypatch.setattr(storage, "upload_folder", fail)
    with pytest.raises(storage.StorageError):
        export(tmp_path)
    with pytest.raises(LoadError, match="is not a Pathryoshka export"):
        load(tmp_path)


def test_a_student_that_its_config_does_not_describe_is_refused(tmp_path: Path) -> None:
    student, _ = student_of("vit")
    student.timm_args = {**student.timm_args, "num_heads": 4}
    with pytest.raises(ExportError, match="builds another network from the exported config"):
        export(tmp_path, student=student)
    student.timm_args = {**student.timm_args, "depth": 3}
    with pytest.raises(ExportError, match="cannot load what was exported"):
        export(tmp_path, student=student)
    assert not list(tmp_path.iterdir())


def test_golden_tiles_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"golden tiles must be uint8 \(8, 32, 32, 3\)"):
        export(tmp_path, golden=golden()[:5])
