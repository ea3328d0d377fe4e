"""Downloads of what needs no form, resumed where they broke off; for the rest, words."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request

from pathryoshka.benchmarks.layouts import BenchmarkError
from pathryoshka.benchmarks.row import Benchmark

BLOCK = 2**20
TRIES = 5
TIMEOUT_S = 60


def fetch(row: Benchmark, to: Path, *, say: Callable[[str], None] = print) -> list[Path]:
    """Downloads the files of a benchmark into the folder `to`; the same call again goes on where it stood.

    Raises:
        BenchmarkError: a form stands before it, no network, a file that is not there or stays incomplete.
    """
    if not row.urls:
        form = "needs a form or an account" if row.form else "has no plain download"
        raise BenchmarkError(f"{row.name} {form}: see {row.source}; then {row.get}")
    to.mkdir(parents=True, exist_ok=True)
    say(f"{row.title}, {row.licence}; cite {row.citation}")
    return [download(url, to / name_of(url), say) for url in row.urls]


def name_of(url: str) -> str:
    return url.partition("?")[0].rsplit("/", 1)[1]


def download(url: str, path: Path, say: Callable[[str], None]) -> Path:
    """The file, whole: `<name>.part` until then."""
    if path.exists():
        say(f"{path.name}: there already")
        return path
    part = path.with_name(f"{path.name}.part")
    for attempt in range(TRIES):
        try:
            if continued(url, part, say):
                shutil.move(part, path)
                return path
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise BenchmarkError(
                    f"{url} answers {error.code} {error.reason}; look at its page for a new place"
                ) from None
            part.unlink()  # what is there is no part of it
        except OSError as error:
            if attempt == TRIES - 1:
                why = getattr(error, "reason", error)
                raise BenchmarkError(f"{url} cannot be reached ({why}); the same command goes on once it can") from None
    raise BenchmarkError(f"{url} broke off {TRIES} times; the same command goes on from {part}")


def continued(url: str, part: Path, say: Callable[[str], None]) -> bool:
    """Appends what is missing; whether the file is whole now. A server that knows no ranges starts anew."""
    start = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        start = start if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        done = said = start
        with part.open("ab" if start else "wb") as out:
            while block := answer.read(BLOCK):
                out.write(block)
                done += len(block)
                if done - said >= 256 * BLOCK:
                    say(f"{part.stem}: {done / 1e9:.2f} of {total / 1e9:.2f} GB" if total else f"{done / 1e9:.2f} GB")
                    said = done
    return total is None or done == total
