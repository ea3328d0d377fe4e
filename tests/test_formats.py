"""`formats/` of an export: each file run by its own runtime, without our code, against arithmetic done here."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

pytest.importorskip("onnxruntime", reason="needs onnxruntime (pip install 'pathryoshka[onnx]')")
import onnx
import onnxruntime

from pathryoshka import cli, config, deploy, storage
from pathryoshka.export.card import with_formats
from pathryoshka.export.formats import check_formats, write_formats
from pathryoshka.export.int8 import turned
from pathryoshka.export.load import load
from pathryoshka.export.record import FormatsError
from pathryoshka.export.runtimes import MissingPackage, least_cosines, needs
from pathryoshka.export.verify import verify, worst_golden
from tests.exports import CFG, SIZE, export, golden, student_of, z_of

NAMES = ("model.onnx", "model.int8.onnx", "model.pt2")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The export of a tiny student by name, with its formats; made once."""

    @functools.cache
    def make(name: str) -> Path:
        to = tmp_path_factory.mktemp(name) / "export"
        export(to, name)
        write_formats(to)
        return to

    return make


@pytest.fixture(params=["vit", "conv"])
def folder(request: pytest.FixtureRequest, exported: Callable[[str], Path]) -> Path:
    return exported(request.param)


@pytest.fixture
def copy(exported: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported("vit"), tmp_path / "copy"))


def run_onnx(file: Path, tiles: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {"tiles": tiles})[0]


def name_of(folder: Path) -> str:
    return "vit" if "vit" in str(folder) else "conv"


def tiles_of(num: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, SIZE, SIZE, 3), dtype=np.uint8)


def cosine(got: np.ndarray, want: np.ndarray) -> float:
    """Smallest of the rows, in double precision."""
    g, w = got.astype(np.float64), want.astype(np.float64)
    return float(min(a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(g, w, strict=True)))


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "formats" / "formats.json").read_text())


def check(folder: Path) -> dict[str, float | str]:
    """What `verify` does with formats, without its process of plain timm."""
    return check_formats(folder, json.loads((folder / "pathryoshka.json").read_text())["model_id"])


# ---------------------------------------------------------------- what the files give


@pytest.mark.parametrize("num", [1, 3, 8])
def test_onnx_gives_the_whole_vector_of_the_trained_student_for_any_batch(folder: Path, num: int) -> None:
    tiles = tiles_of(num)
    got, want = run_onnx(folder / "formats" / "model.onnx", tiles), z_of(student_of(name_of(folder))[0], tiles).numpy()
    assert got.dtype == np.float32 and got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))


def test_onnx_gives_the_tokens_of_the_same_pass(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / "formats" / "model.onnx", providers=["CPUExecutionProvider"])
    embedding, tokens = session.run(None, {"tiles": golden()})
    want = load(folder).tokens(golden()).numpy()
    np.testing.assert_allclose(tokens, want, atol=1e-4 * max(1, np.abs(want).max()))
    np.testing.assert_array_equal(embedding, run_onnx(folder / "formats" / "model.onnx", golden()))


@pytest.mark.parametrize("num", [1, 5])
def test_torch_export_gives_it_too(folder: Path, num: int) -> None:
    tiles = torch.from_numpy(tiles_of(num))
    with torch.inference_mode():
        got = torch.export.load(folder / "formats" / "model.pt2").module()(tiles)
    torch.testing.assert_close(got, z_of(student_of(name_of(folder))[0], tiles.numpy()), atol=1e-4, rtol=1e-4)


def test_every_width_comes_from_one_file_by_cutting_first(folder: Path) -> None:
    z = run_onnx(folder / "formats" / "model.onnx", golden())
    for width in load(folder).widths:
        want = load(folder, width).embed(golden()).numpy()
        got = z[:, :width] / np.linalg.norm(z[:, :width], axis=1, keepdims=True)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_onnx_file_says_what_it_takes_and_is_valid_and_whole(folder: Path) -> None:
    model = onnx.load(folder / "formats" / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert next(o.version for o in model.opset_import if o.domain == "") >= 18
    (tiles,), (embedding, tokens) = model.graph.input, model.graph.output
    assert (tiles.name, tiles.type.tensor_type.elem_type) == ("tiles", onnx.TensorProto.UINT8)
    shape = [d.dim_param or d.dim_value for d in tiles.type.tensor_type.shape.dim]
    assert isinstance(shape[0], str) and shape[1:] == [SIZE, SIZE, 3]
    assert (embedding.name, tokens.name) == ("embedding", "tokens") and not any(
        t.external_data for t in model.graph.initializer
    )


def test_no_file_names_a_folder_of_this_machine(folder: Path) -> None:
    here = {str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), os.path.expanduser("~")} - {"/"}
    for name in NAMES:
        data = (folder / "formats" / name).read_bytes()
        assert not [place for place in here if place.encode() in data], name


def test_the_same_student_gives_the_same_onnx_bytes(copy: Path, tmp_path: Path) -> None:
    export(tmp_path / "again")
    write_formats(tmp_path / "again", ["onnx"])
    assert (tmp_path / "again/formats/model.onnx").read_bytes() == (copy / "formats/model.onnx").read_bytes()


def test_the_record_says_what_the_files_are(folder: Path) -> None:
    found = record(folder)
    assert found["model_id"] == json.loads((folder / "pathryoshka.json").read_text())["model_id"]
    assert set(found["files"]) == set(NAMES) and found["input"] == ["batch", SIZE, SIZE, 3]
    want = load_file(folder / "golden.safetensors")["vectors"]
    for name, one in found["files"].items():
        data = (folder / "formats" / name).read_bytes()
        assert (one["sha256"], one["num_bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        if name.endswith(".onnx"):
            z = run_onnx(folder / "formats" / name, golden())
            for width, value in one["cosine"].items():
                # int8 rounds activations by the range of a batch, so the last digits depend on the batch
                assert cosine(z[:, : int(width)], want[:, : int(width)]) == pytest.approx(value, abs=1e-4)


def test_int8_is_int8_smaller_and_its_loss_is_written(folder: Path) -> None:
    model = onnx.load(folder / "formats" / "model.int8.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert kinds & {"QuantizeLinear", "DynamicQuantizeLinear"}
    assert any(t.data_type == onnx.TensorProto.INT8 for t in model.graph.initializer)
    one = record(folder)["files"]["model.int8.onnx"]
    tried = one["made"]["tried"]
    assert set(tried) == {"static", "dynamic"} and tried[one["made"]["way"]] >= max(tried.values()) - 1e-3
    assert min(one["cosine"].values()) == pytest.approx(tried[one["made"]["way"]], abs=1e-6)
    assert all(0.9 < value < 1 for value in one["cosine"].values())
    assert one["num_bytes"] < (folder / "formats" / "model.onnx").stat().st_size


def test_calibration_never_sees_the_golden_tiles_as_they_are_judged() -> None:
    tiles = tiles_of(2)
    seen = turned(tiles)
    assert seen.shape == (14, SIZE, SIZE, 3)
    assert not any(np.array_equal(a, b) for a in seen for b in tiles)
    assert {a.sum() for a in seen} == {a.sum() for a in tiles}


def test_least_cosines() -> None:
    want = np.array([[1, 0, 0], [0, 3, 4]], np.float32)
    got = np.array([[2, 0, 2], [0, 1, 0]], np.float32)
    found = least_cosines(got, want, (2, 3))
    assert found == pytest.approx({2: 1.0, 3: 0.6})
    assert least_cosines(got[:, :2], want, (2,)) == {2: -1.0}
    assert least_cosines(got * np.nan, want, (2,)) == {2: -1.0}


# ---------------------------------------------------------------- what is refused


def test_a_format_that_gives_other_vectors_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path)
    from pathryoshka.export import graph

    init = graph.Graph.__init__

    def other_mean(self: graph.Graph, embedder: Any) -> None:
        init(self, embedder)
        self.mean += 20

    monkeypatch.setattr(graph.Graph, "__init__", other_mean)
    for kind, name in (("onnx", "model.onnx"), ("torch-export", "model.pt2")):
        with pytest.raises(FormatsError, match=f"{name} does not give the student's vectors: cosine .* nothing was"):
            write_formats(tmp_path, [kind])
    assert not (tmp_path / "formats").exists() and "Without our code" not in (tmp_path / "README.md").read_text()


def test_verify_runs_every_format_here(copy: Path) -> None:
    found = verify(copy)
    assert set(found.formats) == set(NAMES)
    assert all(isinstance(value, float) and value > 0.9 for value in found.formats.values())
    assert found.formats["model.onnx"] > 0.99999 and "model.pt2 runs here: cosine 1.0000" in str(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_a_flipped_bit_is_named(copy: Path, name: str) -> None:
    file = copy / "formats" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    with pytest.raises(FormatsError, match=f"formats/{name} is .*, not .*: damaged or foreign"):
        check(copy)


def test_lost_foreign_and_other_students_files_are_named(copy: Path, tmp_path: Path) -> None:
    (copy / "formats" / "notes.txt").write_text("hello")
    with pytest.raises(FormatsError, match="formats/notes.txt is not listed"):
        check(copy)
    (copy / "formats" / "notes.txt").unlink()
    (copy / "formats" / "model.pt2").rename(tmp_path / "away")
    with pytest.raises(FormatsError, match="formats/model.pt2 is missing"):
        check(copy)
    (tmp_path / "away").rename(copy / "formats" / "model.pt2")
    found = record(copy)
    (copy / "formats" / "formats.json").write_text(json.dumps(found | {"model_id": "f" * 64}))
    with pytest.raises(FormatsError, match="formats/ belongs to model ffffffffffffffff, this export is"):
        check(copy)
    for bad in ("{", "[]", '{"files": 3}'):
        (copy / "formats" / "formats.json").write_text(bad)
        with pytest.raises(FormatsError, match="formats/formats.json is damaged"):
            check(copy)
    (copy / "formats" / "formats.json").unlink()
    with pytest.raises(FormatsError, match="formats/ has no formats.json"):
        check(copy)


def rewrite(folder: Path, name: str, change: Any) -> None:
    """Changes the weights of an ONNX file and makes its checksum right again: a file that lies."""
    file = folder / "formats" / name
    model = onnx.load(file)
    change(model)
    onnx.save(model, file)
    found = record(folder)
    found["files"][name]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "formats" / "formats.json").write_text(json.dumps(found))


def test_right_checksums_do_not_save_wrong_vectors(copy: Path) -> None:
    def scale(model: onnx.ModelProto) -> None:
        tensor = max((t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1),
                     key=lambda t: int(np.prod(t.dims)))  # fmt: skip
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[: len(values) // 2] *= 0.5
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    rewrite(copy, "model.onnx", scale)
    with pytest.raises(FormatsError, match="formats/model.onnx gives other vectors on this machine: cosine 0.9"):
        check(copy)


def test_int8_that_holds_less_than_was_written_is_refused(copy: Path) -> None:
    found = record(copy)
    cosines = found["files"]["model.int8.onnx"]["cosine"]
    found["files"]["model.int8.onnx"]["cosine"] = {width: 1.0 + 0.0101 for width in cosines}
    (copy / "formats" / "formats.json").write_text(json.dumps(found))
    with pytest.raises(FormatsError, match="formats/model.int8.onnx gives other vectors on this machine"):
        check(copy)


def test_without_onnxruntime_checksums_are_still_looked_at(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"onnx is not installed; pip install 'pathryoshka\[onnx\]'"):
        write_formats(copy, ["onnx"])
    found = check(copy)
    assert str(found["model.onnx"]).startswith("not run here: onnxruntime is not installed")
    (copy / "formats" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(FormatsError, match="formats/model.onnx is"):
        check(copy)
    with pytest.raises(MissingPackage, match="onnx is not"):
        needs("onnx")


def test_loading_imports_nothing_of_onnx(copy: Path) -> None:
    code = f"import sys, pathryoshka\npathryoshka.load({str(copy)!r})\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # torch itself has modules named torch.onnx and a stub of onnxscript
    assert not {"onnx", "onnxruntime", "onnxscript", "ray", "deepspeed"} & set(done.stdout.split())


# ---------------------------------------------------------------- the folder around them


def test_formats_of_one_kind_leave_the_others_and_the_export_as_they_were(copy: Path) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name not in ("formats.json", "README.md")}
    write_formats(copy, ["torch-export"])
    assert set(record(copy)["files"]) == set(NAMES)
    for path, data in before.items():
        assert path.read_bytes() == data, path
    assert worst_golden(load(copy), copy) < 1e-4


def test_another_students_formats_go_when_it_is_exported_over_them(copy: Path) -> None:
    export(copy, student=student_of("vit", seed=3)[0])
    assert not (copy / "formats").exists()
    verify(copy)


def test_a_folder_named_formats_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "thesis.doc").write_text("years of work")
    export(tmp_path)
    assert (tmp_path / "formats" / "thesis.doc").read_text() == "years of work"


def test_the_lines_of_the_card_run_without_our_code(folder: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(9).integers(0, 256, (50, 71, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "tile.png")
    card = (folder / "README.md").read_text()
    code = card.split("## Without our code")[1].split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) == 10
    code = code.replace("<this folder>", str(folder)) + "\nimport sys\nnp.save('e.npy', e)\n"
    code += "assert not {'pathryoshka', 'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    got = np.load(tmp_path / "e.npy")
    want = load(folder, got.shape[1]).embed(picture[None]).numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_card_has_the_part_once_with_every_file_and_width(copy: Path) -> None:
    write_formats(copy, ["torch-export"])
    card = (copy / "README.md").read_text()
    assert card.count("## Without our code") == 1 == card.count("## What each width is worth")
    for name in NAMES:
        assert f"| `{name}` |" in card
    assert card.startswith("---\n") and "## Teachers and their licences" in card
    rows = [{"dataset": "glands", "runtime": "model.onnx", "width": w, "score": w / 100} for w in (16, 48)]
    tree = {"files": {"model.onnx": {"cosine": {16: 1.0, 48: 1.0}, "num_bytes": 9000}}, "widths": [16, 48], "size": 32}
    assert "| model.onnx | 0.160 | 0.480 |" in with_formats(card, tree | {"scores": rows})
    without = with_formats(card, {**tree, "files": {}, "scores": []})
    assert "Without our code" not in without and with_formats(without, tree | {"scores": rows}).count("## Without") == 1


def test_probe_scores_of_each_format_are_written_beside_pytorchs(copy: Path, tmp_path: Path) -> None:
    from pathryoshka.tiles.phantom import write_phantom

    write_phantom(str(tmp_path / "tiles"), CFG, num_tiles=40, num_patients=10, num_sites=2, size=SIZE)
    run = config.make_run({"recipe": "debug", "name": "x"})
    made = deploy.make_formats(str(copy), ("torch-export",), run, data=[str(tmp_path / "tiles")])
    found = {(row["runtime"], row["width"]): row["score"] for row in made.scores}
    assert {name for name, _ in found} == {"PyTorch", "model.pt2"} and len(made.scores) == len(found)
    assert all(0 <= score <= 1 for score in found.values())
    for width in (16, 32, 48):
        assert found["model.pt2", width] == pytest.approx(found["PyTorch", width], abs=0.02)
    assert "Balanced accuracy of a linear probe on tiles" in (copy / "README.md").read_text()


def test_the_command_writes_to_storage_and_says_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["formats", f"file://{tmp_path}", "--only", "torch-export"])
    assert not ended.value.code and "model.pt2: " in capsys.readouterr().out
    assert storage.exists(storage.join(str(tmp_path), "formats", "model.pt2"), CFG)
    with pytest.raises(SystemExit) as ended:
        cli.main(["formats", str(tmp_path), "--only", "coreml"])
    assert ended.value.code == 2 and "there are onnx, int8, torch-export" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["formats", str(tmp_path / "formats")])
    assert ended.value.code == 1 and "is not a Pathryoshka export" in capsys.readouterr().err
