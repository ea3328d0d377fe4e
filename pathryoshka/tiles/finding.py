"""Which slides are meant: files, globs, folders, prefixes and CSVs become `Slide`s; and one of them as a local file."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pathryoshka import config, storage
from pathryoshka.tiles.cutting import Slide
from pathryoshka.tiles.sources import ImportRefused, hidden, positive, read_csv, stem
from pathryoshka.tiles.tiff import SlideError

COLUMNS = ("slide", "mask", "patient", "site", "label", "mpp", "split")
SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".dcm")
COPIED_AT_ONCE = 16 * 2**20
STAGED = "pathryoshka-slide-"
Row = Mapping[str, str | None]


def find_slides(
    places: Sequence[str | Path],
    cfg: config.Storage,
    *,
    csv: str | Path | None,
    split: str | None,
    secret: Callable[[str, str], str],
) -> list[Slide]:
    """Every slide that `places` name, by slide id.

    Raises:
        ImportRefused: none, two of one name, a place where nothing is, a CSV that says what it cannot.
    """
    known = read_csv(storage.absolute(str(csv)), cfg, COLUMNS) if csv else {}
    rows: dict[str, tuple[Row, str]] = {}
    for place in map(str, places):
        if place.lower().endswith(".csv"):
            where = storage.absolute(place)
            base = where.rpartition("/")[0]
            found = {storage.resolved(name, base): (row, where) for name, row in read_csv(where, cfg, COLUMNS).items()}
        else:
            found = {uri: (known.get(named(uri), {}), str(csv)) for uri in expanded(storage.absolute(place), cfg)}
        rows |= found
    slides = [as_slide(uri, row, where, split, secret) for uri, (row, where) in rows.items()]
    slides.sort(key=lambda slide: slide.slide_id)
    for one, other in itertools.pairwise(slides):
        if one.slide_id == other.slide_id:
            raise ImportRefused(f"{one.uri} and {other.uri} are both slide {named(one.uri)!r}; rename one of them")
    if not slides:
        raise ImportRefused("no slide to cut; name at least one file")
    # one that is missing among others is that slide's failure; where no name leads anywhere, it is the command's
    if len(slides) <= len(places) and not any(storage.exists(slide.uri, cfg) for slide in slides):
        raise ImportRefused(f"nothing is at {', '.join(slide.uri for slide in slides[:3])}")
    return slides


def expanded(place: str, cfg: config.Storage) -> list[str]:
    """The slides at a place: itself, those below it when it is a folder, or those that match when it is a glob."""
    if Path(place).is_file():
        return [place]
    wild = glob.has_magic(place) and not storage.exists(place, cfg)
    base, pattern = place, re.compile("")
    if wild:
        parts = place.split("/")
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        base, pattern = "/".join(parts[:first]), as_regex("/".join(parts[first:]))
    below = [path for path in storage.list_files(base, cfg) if not hidden(path)]
    if not below and not wild:
        return [place]  # in object storage, or missing, which is this slide's failure
    chosen = [p for p in below if (pattern.fullmatch(p) if wild else p.lower().endswith(SUFFIXES))]
    if not chosen:
        raise ImportRefused(f"no slide at {place}; expected files ending in {', '.join(SUFFIXES)}")
    # the files of one folder are the levels of one DICOM slide; any of them opens it
    series = {posixpath.dirname(p): p for p in sorted(chosen, reverse=True) if p.lower().endswith(".dcm")}
    single = [p for p in chosen if not p.lower().endswith(".dcm")]
    return [storage.join(base, p) for p in sorted([*single, *series.values()])]


def as_regex(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay inside a folder, `**` does not."""
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])", pattern)
    return re.compile(
        "".join(known.get(p, p if p.startswith("[") and p.endswith("]") else re.escape(p)) for p in parts)
    )


def named(uri: str) -> str:
    """The name of a slide: of its file, or of the folder of a DICOM slide."""
    return posixpath.basename(posixpath.dirname(uri)) if uri.lower().endswith(".dcm") else stem(uri)


def as_slide(uri: str, row: Row, where: str, split: str | None, secret: Callable[[str, str], str]) -> Slide:
    name = named(uri)
    mpp = positive(row.get("mpp"), f"{where}, slide {name}")
    site, patient, mask = row.get("site"), row.get("patient") or name, row.get("mask")
    return Slide(
        uri=uri,
        slide_id=secret("slide", name),
        patient_id=secret("patient", patient),
        site=secret("site", site) if site else "unknown",
        label=row.get("label"),
        split=row.get("split") or split,
        mpp=mpp,
        mask=storage.resolved(mask, storage.absolute(where).rpartition("/")[0]) if mask else None,
    )


# ---- as a local file


@contextlib.contextmanager
def local_file(uri: str, cfg: config.Storage, most_bytes: float) -> Iterator[str]:
    """The slide as a local file, for readers open no other; a copy from object storage lasts while it is open.

    Raises:
        SlideError: there is no such slide, or it is larger than `most_bytes`.
        StorageError: it cannot be read.
    """
    if Path(uri).exists():
        yield uri
        return
    files = companions(uri, cfg)
    total = sum(files.values())
    if not files:
        raise SlideError("no such file")
    if total > most_bytes:
        raise SlideError(
            f"it has {total / 1e9:.3g} GB and its share of the cache is {most_bytes / 1e9:.3g}; raise cache_gb"
        )
    base, _, name = uri.rpartition("/")
    with tempfile.TemporaryDirectory(prefix=f"{STAGED}{os.getpid()}-") as folder:
        for path, size in files.items():
            copy = Path(folder, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with copy.open("wb") as target:
                for start in range(0, size, COPIED_AT_ONCE):
                    part = storage.read_range(storage.join(base, path), start, min(COPIED_AT_ONCE, size - start), cfg)
                    target.write(part)
        yield str(Path(folder, name))


def companions(uri: str, cfg: config.Storage) -> dict[str, int]:
    """The files of a slide, beside each other, with their bytes: MIRAX keeps its pixels in a folder of its name, DICOM
    its levels in files beside each other; nothing when the slide itself is missing."""
    base, _, name = uri.rpartition("/")
    there = storage.list_files(base or "/", cfg)
    if name not in there:
        return {}
    suffix, own = posixpath.splitext(name)[1].lower(), {name: there[name]}
    if suffix == ".mrxs":
        return own | {path: size for path, size in there.items() if path.startswith(f"{stem(name)}/")}
    if suffix == ".dcm":
        return {path: size for path, size in there.items() if "/" not in path and path.lower().endswith(".dcm")}
    return own


def remove_stale() -> None:
    """Copies of slides that a killed worker of this machine has left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{STAGED}*"):
        pid = folder.name.removeprefix(STAGED).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)
