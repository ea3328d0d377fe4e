"""Weights from the Hugging Face hub: fetched once, resumed where a download broke off, and known again by their digest.

The hub answers "no" in several ways that look alike in a traceback; here each is one sentence that says what to do.
Token, cache, endpoint and offline mode are those of `huggingface_hub` (HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pathryoshka.teachers.row import EncoderError, Row

FILES = ("model.safetensors", "pytorch_model.bin")
RECORD = ".fetched.json"


@dataclass(frozen=True)
class Fetched:
    """What is written beside a fetched file: where it came from and what it was."""

    repository: str
    revision: str
    file: str
    size: int
    sha256: str


def fetch(row: Row, to: Path | None = None) -> tuple[Path, Fetched]:
    """Brings a row's weights here and records their SHA-256 beside them; weights that are here are only looked at.

    Args:
        to: folder; None = one beside the hub's own cache, where every later load looks first.

    Raises:
        EncoderError: the hub does not give them, cannot be reached, or sent something else than it announced.
    """
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    repository = row.source.removeprefix("hf:")
    if to is None:
        with contextlib.suppress(EncoderError):
            path = from_hub(row, download=False)
            return path, Fetched(repository, "", path.name, path.stat().st_size, checked_sha256(path))
    folder = to or fetched_to(repository)
    for name in names(row):
        with words(row, repository):
            try:
                announced = get_hf_file_metadata(hf_hub_url(repository, name), token=get_token())
            except RemoteEntryNotFoundError:
                continue
            part = download(repository, name, announced.etag or "", announced.size, folder)
        digest = sha256(part)
        if re.fullmatch("[0-9a-f]{64}", announced.etag or "") and announced.etag != digest:
            part.unlink()  # of large files the hub announces the SHA-256
            raise EncoderError(
                f"what came of {row.name} is not what the hub announced, and was deleted; fetch it again"
            )
        path = folder / name
        fetched = Fetched(repository, announced.commit_hash or "", name, part.stat().st_size, digest)
        Path(f"{path}{RECORD}").write_text(json.dumps(asdict(fetched), indent=1) + "\n")
        part.replace(path)
        return path, fetched
    raise no_such_file(row, repository)


def download(repository: str, name: str, etag: str, size: int | None, folder: Path) -> Path:
    """A whole file under a name of its own, from where an earlier download of the same version stopped.

    `hf_hub_download` goes on after an interruption only within one process; that is too little for 5 GB.
    """
    from huggingface_hub import get_token, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    version = hashlib.sha256(etag.encode()).hexdigest()[:12]
    part = folder / f"{name}.{version}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    headers = {**build_hf_headers(token=get_token()), "Accept-Encoding": "identity"}
    with part.open("ab") as file:
        url, begun = hf_hub_url(repository, name), file.tell()
        http_get(url, file, resume_size=begun, headers=headers, expected_size=size, displayed_filename=name)
    return part


def from_hub(row: Row, download: bool) -> Path:
    """A row's weights as they were fetched, in the hub's cache, or from the hub if `download`.

    Raises:
        EncoderError: as `fetch`, or they are not here and must not be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    repository = row.source.removeprefix("hf:")
    for name in names(row):
        if (fetched_to(repository) / name).is_file():
            return fetched_to(repository) / name
    for name in names(row):
        with words(row, repository):
            try:
                return Path(hf_hub_download(repository, name, local_files_only=not download))
            except RemoteEntryNotFoundError:
                continue
            except LocalEntryNotFoundError:
                if download:
                    raise
    raise no_such_file(row, repository) if download else not_here(row, repository)


def fetched_to(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "pathryoshka" / repository


def names(row: Row) -> list[str]:
    return list(dict.fromkeys((row.file or FILES[0], *FILES)))


@contextlib.contextmanager
def words(row: Row, repository: str) -> Iterator[None]:
    """Errors of the hub inside the block become one sentence each."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except Exception as error:
        # the library says "not in the cache" also where the hub answered; what it answered is the cause
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            raise refused(row, repository, cause.response.status_code) from None
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            what = f"{cause.strerror}: {cause.filename}" if cause.filename else cause.strerror
            raise EncoderError(
                f"{row.name} cannot be written here ({what}); name another folder or free some"
            ) from None
        raise not_here(row, repository) from None


def refused(row: Row, repository: str, status: int) -> EncoderError:
    from huggingface_hub import constants, get_token

    page = f"{constants.ENDPOINT}/{repository}"
    if status == 401:
        token = "refuses the token it was sent" if get_token() else "gives nothing without a token"
        do = f"ask for access at {page}, then set HF_TOKEN or run `hf auth login` with a token of that account"
        return EncoderError(f"the hub {token} for {row.name} (401); {do}")
    if status == 403:
        do = f"ask for it at {page} with the account of your token, and run the same command when it is granted"
        return EncoderError(f"this account has no access to {row.name} (403); {do}")
    if status == 404:
        do = "name a local file or folder in the teacher's `weights`"
        return EncoderError(f"{page} does not exist, or not for this account (404); {do}")
    if status == 429:
        do = "wait some minutes and run the same command: it goes on where it stopped; with a token the limit is higher"
        return EncoderError(f"{page} was asked too often (429); {do}")
    return EncoderError(f"{page} answered {status}; try again later, or name a local file in the teacher's `weights`")


def not_here(row: Row, repository: str) -> EncoderError:
    from huggingface_hub import constants

    return EncoderError(
        f"the weights of {row.name} are not on this machine and {constants.ENDPOINT}/{repository} cannot be reached; "
        f"where there is a network run `pathryoshka teachers fetch {row.name} --to <folder>`, and name that folder in "
        "the teacher's `weights`"
    )


def no_such_file(row: Row, repository: str) -> EncoderError:
    from huggingface_hub import constants

    return EncoderError(
        f"{constants.ENDPOINT}/{repository} holds neither {' nor '.join(names(row))}; "
        "name a local file in the teacher's `weights`"
    )


def checked_sha256(path: Path) -> str:
    """The SHA-256 of a file of weights, which is the one recorded when it was fetched, if it was.

    Raises:
        EncoderError: the file changed since.
    """
    digest, record = sha256(path), Path(f"{path}{RECORD}")
    if record.is_file():
        try:
            known = Fetched(**json.loads(record.read_text()))
        except (ValueError, TypeError):
            raise EncoderError(f"{record} is no record of a download; delete it or fetch the weights again") from None
        if known.sha256 != digest:
            raise EncoderError(
                f"{path} is not the file that was fetched from {known.repository} (SHA-256 {digest[:12]}, not "
                f"{known.sha256[:12]}); fetch it again, or delete {record.name} beside it if that is meant"
            )
    return digest


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
