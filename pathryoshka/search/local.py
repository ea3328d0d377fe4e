"""Segments of an index in object storage, copied once to where they can be mapped: they never change.

Below `PATHRYOSHKA_CACHE` or `~/.cache/pathryoshka`, by the segment's own name. Delete it whenever you like. What lies
there is compared with the manifest like everything else.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from pathryoshka import config, storage
from pathryoshka.search.manifest import Segment


def local_segment(uri: str, segment: Segment, cfg: config.Storage) -> Path:
    """The folder of a segment on this machine."""
    bucket, path = storage.split(uri)
    if not bucket:
        return Path(path, segment.name)
    there = cache() / segment.name
    if not whole(there, segment):
        there.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="part-", dir=there.parent) as part:
            storage.download_folder(storage.join(uri, segment.name), Path(part, "it"), cfg)
            shutil.rmtree(there, ignore_errors=True)
            try:
                os.replace(Path(part, "it"), there)
            except OSError:
                if not whole(there, segment):  # else another process was sooner
                    raise
    return there


def cache() -> Path:
    home = os.environ.get("PATHRYOSHKA_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "pathryoshka")
    return Path(home, "index")


def whole(folder: Path, segment: Segment) -> bool:
    """By sizes; bytes are compared when the segment is opened."""
    try:
        return all((folder / name).stat().st_size == file.bytes for name, file in segment.files.items())
    except OSError:
        return False
