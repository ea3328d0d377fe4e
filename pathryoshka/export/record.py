"""`formats/formats.json` of an exported folder, read without torch: which formats there are, and of which student."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER, RECORD = "formats", "formats.json"
TILES, EMBEDDING, TOKENS = "tiles", "embedding", "tokens"
"""What goes into the ONNX file and what comes out of it, by name."""
FILES = {"onnx": "model.onnx", "int8": "model.int8.onnx", "torch-export": "model.pt2"}
NOTE = "uint8 tiles in, whole embedding out; a width is normalize(out[:, :width]); ONNX files give tokens, too"


class FormatsError(ValueError):
    """A format that does not give the student's vectors, or files that are not what they say; names the file."""


@dataclass(frozen=True)
class Format:
    """One file. `cosine`: width -> smallest over the golden tiles, against PyTorch. `made`: how it was made."""

    sha256: str
    num_bytes: int
    cosine: dict[int, float]
    made: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Formats:
    """`formats.json`.

    Attributes:
        files: name -> what it is. page: file below `browser/` -> SHA-256.
        scores: a row for each data set, runtime and width: probe score with its interval.
    """

    model_id: str
    size: int
    widths: tuple[int, ...]
    files: dict[str, Format]
    page: dict[str, str] = field(default_factory=dict)
    scores: tuple[dict[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        shape = {"input": ["batch", self.size, self.size, 3], "output": ["batch", max(self.widths)]}
        return {"note": NOTE, **shape, **asdict(self)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Formats:
        files = {
            name: Format(**{**one, "cosine": {int(width): value for width, value in one["cosine"].items()}})
            for name, one in tree["files"].items()
        }
        known = {key: tree[key] for key in ("model_id", "size", "page")}
        return cls(widths=tuple(tree["widths"]), files=files, scores=tuple(tree["scores"]), **known)


def read_formats(folder: Path) -> Formats:
    """`formats.json` of an exported folder.

    Raises:
        FormatsError: it is missing or damaged.
    """
    try:
        return parsed((folder / FOLDER / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatsError(f"{FOLDER}/ has no {RECORD}; write it again with `pathryoshka formats`") from None


def parsed(text: str | bytes) -> Formats:
    """The text of a `formats.json`.

    Raises:
        FormatsError: it is damaged.
    """
    try:
        return Formats.from_json(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatsError(
            f"{FOLDER}/{RECORD} is damaged ({error}); write it again with `pathryoshka formats`"
        ) from None
