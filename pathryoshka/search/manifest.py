"""The manifest: what makes a folder an index. Written last and at once, so an index is its last whole state.

Segments are folders of files that never change; rows go by being named in a list of deleted rows. A manifest names its
files by SHA-256, and carries its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from pydantic import ValidationError

from pathryoshka import config, storage
from pathryoshka.tiles.stats import Frozen

FORMAT = 1
NAME = "index.json"
SHORT = 64
"""Numbers that a short-list is made by."""
DTYPES = ("float16", "float32")


class SearchError(ValueError):
    """An index, a table or a query that cannot be used; the sentence names what differs and says what to do."""


class File(Frozen):
    """One file as it was written."""

    bytes: int
    sha256: str


class Segment(Frozen):
    """Rows that were added together.

    Attributes:
        name: its folder. files: by name.
        centre, scale: a row's code is (first numbers of length 1 - centre) / scale, in whole numbers from -127 to 127.
    """

    name: str
    rows: int
    files: dict[str, File]
    centre: tuple[float, ...]
    scale: float


class Deleted(Frozen):
    """The list of deleted rows: a Parquet file of segment and row."""

    name: str
    rows: int
    file: File


class Manifest(Frozen):
    """Everything known of an index without opening a segment.

    Attributes:
        generation: grows by one with every change.
        model_id: of the student whose vectors these are. width: numbers a row. dtype: of the numbers on disk.
        student, tiles: where student and tile data sets were, for those who search without naming them.
    """

    format: int = FORMAT
    generation: int = 0
    model_id: str
    width: int
    dtype: str = DTYPES[0]
    student: str | None = None
    tiles: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    deleted: Deleted | None = None

    @property
    def rows(self) -> int:
        """That can be found."""
        return sum(segment.rows for segment in self.segments) - (self.deleted.rows if self.deleted else 0)

    def named(self) -> set[str]:
        """Every file of the index but its manifest, relative to it."""
        files = {f"{segment.name}/{name}" for segment in self.segments for name in segment.files}
        return files | ({self.deleted.name} if self.deleted else set())


def digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_manifest(uri: str, manifest: Manifest, cfg: config.Storage) -> None:
    """Replaces the manifest: the moment at which a change is made."""
    tree = manifest.model_dump(mode="json")
    storage.write_json(storage.join(uri, NAME), {"index": tree, "sha256": digest(tree)}, cfg)


def read_manifest(uri: str, cfg: config.Storage) -> Manifest:
    """The state of the index at `uri`.

    Raises:
        SearchError: no index there, a damaged manifest, or one of another format.
    """
    where = storage.join(uri, NAME)
    try:
        said = json.loads(storage.read_bytes(where, cfg))
        tree, its_digest = said["index"], said["sha256"]
        found = int(tree["format"])
    except storage.NotFound:
        raise SearchError(
            f"no index at {uri}: {NAME} is missing; make one with `pathryoshka index build TABLE --to {uri}`"
        ) from None
    except storage.StorageError:
        if os.path.isfile(uri):
            raise SearchError(
                f"{uri} is a file, not an index; make one of it with `pathryoshka index build {uri} --to FOLDER`"
            ) from None
        raise
    except (ValueError, KeyError, TypeError):
        raise SearchError(f"{where} is damaged or is no manifest of an index; build the index again") from None
    if found != FORMAT:
        raise SearchError(f"the index at {uri} has format {found} and this program reads {FORMAT}; build it again")
    if digest(tree) != its_digest:
        raise SearchError(f"{where} is damaged: it is not what was written; build the index again")
    try:
        return Manifest.model_validate(tree)
    except ValidationError:
        raise SearchError(f"{where} is damaged or is no manifest of an index; build the index again") from None


def refuse_foreign(where: str, manifest: Manifest, what: str, model_id: str | None, width: int) -> None:
    """SearchError unless vectors of `model_id` with `width` numbers can be compared with those of this index."""
    if model_id != manifest.model_id:
        raise SearchError(
            f"{what} is of model {short_id(model_id)} and the index at {where} of model {short_id(manifest.model_id)}; "
            "vectors of two models cannot be compared: embed the tiles again with one of them"
        )
    if width != manifest.width:
        raise SearchError(
            f"{what} has {width} numbers a vector and the index at {where} has {manifest.width}; "
            "embed with the same width"
        )


def short_id(model_id: str | None) -> str:
    return model_id[:12] if model_id else "unknown"
