"""The exported folder: a student that plain timm loads, and everything one has to know to use it, check it and cite it.

    config.json, model.safetensors      what timm reads: `timm.create_model("local-dir:<folder>", pretrained=True)`
    pathryoshka.json                    model id, widths, teachers and licences, resolved config, scores; written last
    golden/0.png ..., golden.safetensors  eight tiles and their vectors: any runtime can be checked against them
    heads.safetensors, standardisers.safetensors  back to the teachers' features
    seen.parquet, README.md             what distillation saw; the model card
    tools/                              ready files for kaiko-eva, THUNDER, slide2vec, HEST and others
    formats/                            ONNX, int8, torch.export, a page for browsers: once `formats` has written them

The model id is the SHA-256 of model.safetensors, so `sha256sum` says whether two folders hold one model.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pathryoshka import config, storage
from pathryoshka.export.card import model_card
from pathryoshka.export.facts import FACTS, FORMAT
from pathryoshka.export.record import FOLDER as FORMATS
from pathryoshka.export.record import RECORD
from pathryoshka.export.seen import Seen, seen_to_bytes
from pathryoshka.export.tools import write_tools
from pathryoshka.export.verify import TOLERANCE
from pathryoshka.student.encoder import StudentEncoder
from pathryoshka.student.heads import Heads
from pathryoshka.teachers import standardize

if TYPE_CHECKING:
    from pathryoshka.evaluate.scores import Scores

NUM_GOLDEN = 8


class ExportError(ValueError):
    """A student that cannot be exported as it is, or a folder that is no export; says what to do."""


def write_export(
    student: StudentEncoder,
    heads: Heads,
    standardisers: Mapping[tuple[str, str], standardize.Standardiser],
    run: config.Run,
    teachers: Mapping[str, Mapping[str, Any]],
    scores: Scores | None,
    golden: np.ndarray,
    seen: Seen,
    to: str,
    cfg: config.Storage,
) -> str:
    """Writes the folder `to` (local or URI) and returns the model id. Readers see no half of it.

    Args:
        standardisers: (teacher, kind) -> what its features were trained in.
        teachers: name -> facts: `licence`, `terms`, `num_params`, `summary_dim`, `token_dim`, `fingerprint`.
        golden: uint8 [8, size, size, 3], views of real tiles that may be given away.

    Raises:
        ExportError: golden tiles of another shape, or a student that timm does not build again from what is written.
    """
    size = student.size
    if golden.shape != (NUM_GOLDEN, size, size, 3) or golden.dtype != np.uint8:
        raise ExportError(
            f"golden tiles must be uint8 {(NUM_GOLDEN, size, size, 3)}; got {golden.dtype} {golden.shape}"
        )
    student = copy.deepcopy(student).cpu().float().eval()
    with tempfile.TemporaryDirectory(prefix="pathryoshka-export-") as name:
        folder = Path(name)
        tensors = {key: value.detach().contiguous() for key, value in student.timm_model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        write_text(folder / "config.json", timm_config(student))
        model_id = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        with torch.inference_mode():
            vectors = student(student.normalise(torch.from_numpy(golden)))[0]
        refuse_other_model(folder, student, golden, vectors)
        write_golden(folder, golden, vectors)
        save_file(folded_heads(heads, standardisers), folder / "heads.safetensors", metadata={"format": "pt"})
        standardize.save(dict(standardisers), folder / "standardisers.safetensors")
        (folder / "seen.parquet").write_bytes(seen_to_bytes(seen))
        facts = describe(student, heads, standardisers, run, teachers, scores, model_id)
        (folder / "README.md").write_text(model_card(facts, scores, seen))
        write_tools(folder, facts)
        # The facts make the folder an export: gone before anything changes, there again when all of it is.
        storage.delete(storage.join(to, FACTS), cfg)
        if storage.exists(storage.join(to, FORMATS, RECORD), cfg):  # of another student, or not in the new card
            storage.delete(storage.join(to, FORMATS), cfg)
        storage.upload_folder(folder, to, cfg)
        storage.write_json(storage.join(to, FACTS), facts, cfg)
    return model_id


def timm_config(student: StudentEncoder) -> dict[str, Any]:
    """What `timm.create_model("local-dir:...")` and `"hf-hub:..."` read to build the network and its transform.

    The transform is the identity view of our evaluation: shorter side to `size`, centre crop, bilinear.
    """
    known: dict[str, Any] = student.timm_model.pretrained_cfg  # type: ignore[assignment]
    return {
        "architecture": student.name.partition(".")[0],
        "num_classes": 0,
        "num_features": student.width,
        "global_pool": getattr(student.timm_model, "global_pool", None) if student.num_prefix else "avg",
        "model_args": student.timm_args,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, student.size, student.size],
            "fixed_input_size": bool(known.get("fixed_input_size", False)),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(student.mean),
            "std": list(student.std),
            "pool_size": None,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
            "custom_load": False,
        },
    }


def refuse_other_model(folder: Path, student: StudentEncoder, golden: np.ndarray, want: torch.Tensor) -> None:
    try:
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.inference_mode():
            got = again(student.normalise(torch.from_numpy(golden)))
    except Exception as error:
        raise ExportError(
            f"timm {timm.__version__} cannot load what was exported of {student.name}: {error}"
        ) from error
    if got.shape != want.shape or worst(got, want) > TOLERANCE:
        raise ExportError(
            f"timm {timm.__version__} builds another network from the exported config than the one trained; "
            f"set every argument of {student.name} that differs from timm's in student.model_args"
        )


def worst(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference, in units of the largest number wanted where that is above 1."""
    return float((got - want).abs().max() / want.abs().max().clamp_min(1))


def write_golden(folder: Path, golden: np.ndarray, vectors: torch.Tensor) -> None:
    (folder / "golden").mkdir()
    for i, view in enumerate(golden):
        Image.fromarray(view).save(folder / "golden" / f"{i}.png")
    save_file({"vectors": vectors.contiguous()}, folder / "golden.safetensors")


def folded_heads(
    heads: Heads, standardisers: Mapping[tuple[str, str], standardize.Standardiser]
) -> dict[str, torch.Tensor]:
    """Weights of heads that give raw teacher features: the inverse of the standardiser is in the last linear layer."""
    heads = copy.deepcopy(heads).cpu().float()
    with torch.no_grad():
        for teacher, kind, _, last in heads.final_linears():
            weight, bias = standardize.fold(last.weight, last.bias, standardisers[teacher, kind])
            last.weight.copy_(weight)
            last.bias.copy_(bias)
    return {key: value.detach().contiguous() for key, value in heads.layers.state_dict().items()}


def describe(
    student: StudentEncoder,
    heads: Heads,
    standardisers: Mapping[tuple[str, str], standardize.Standardiser],
    run: config.Run,
    teachers: Mapping[str, Mapping[str, Any]],
    scores: Scores | None,
    model_id: str,
) -> dict[str, Any]:
    """`pathryoshka.json`."""
    return {
        "format": FORMAT,
        "model_id": model_id,
        "architecture": student.name,
        "num_params": student.num_params,
        "gflop": round(student.gflops(), 4),
        "size": student.size,
        "width": student.width,
        "token_width": student.token_width,
        "grid": list(student.grid),
        "num_prefix": student.num_prefix,
        "mean": list(student.mean),
        "std": list(student.std),
        "widths": list(run.student.widths),
        "licence": run.export.licence,
        "teachers": {name: public_facts(facts) for name, facts in teachers.items()},
        "heads": {"kind": run.student.heads.kind, "hidden": run.student.heads.hidden, "dims": heads.dims},
        "standardisers": {f"{teacher}.{kind}": s.kind for (teacher, kind), s in standardisers.items()},
        "run": run.model_dump(mode="json"),
        "scores": json.loads(scores.model_dump_json()) if scores else None,
        "made_with": {"timm": timm.__version__, "torch": torch.__version__},
    }


def public_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of a teacher, what concerns those who use the student; not the node or process it ran on."""
    kept = ("licence", "terms", "num_params", "summary_dim", "token_dim", "fingerprint")
    return {key: facts[key] for key in kept if key in facts}


def write_text(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
