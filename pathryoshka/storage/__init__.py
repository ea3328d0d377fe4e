"""The only room that knows s3:// : files and folders, in object storage or on a local disk.

Everybody else holds URIs as opaque strings (`s3://bucket/prefix` or a folder) and passes them back here. Whole objects
go through boto3: one request each, and a short body is noticed. Random access goes through `filesystem`, pyarrow's;
wrap what is read through it in `retrying`. A write is atomic: one PUT, or a file renamed into place; a folder is not,
so whoever writes several files writes the one that makes them valid last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.fs
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from pathryoshka import config
from pathryoshka.storage.clients import NUM_THREADS, client, s3_files
from pathryoshka.storage.retry import NOT_S3, NotFound, StorageError, retrying

__all__ = ["NotFound", "StorageError", "retrying"]  # beside the functions below: what callers catch and wrap with

PART_BYTES = 16 << 20  # of a large file, moved in one request
PARTS = TransferConfig(multipart_threshold=4 * PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=2)
PAGE_KEYS = 1000  # listed or deleted in one request
PARTIAL = ".partial"  # end of the name of a local file that is still being written
SETTLE_S = 2.0  # until the last of racing writes has arrived, in a store without conditional writes


# ---- addresses


def split(uri: str) -> tuple[str, str]:
    """(bucket, key) of an s3:// URI, or ("", absolute path) of a local one.

    Raises:
        StorageError: neither of the two, or credentials inside.
    """
    scheme, sep, rest = uri.partition("://")
    if not sep or scheme == "file":
        if not uri or uri.startswith("s3:"):
            raise StorageError(f"{uri!r} is not a place; write s3://bucket/prefix or the path of a folder")
        return "", os.path.abspath(os.path.expanduser(rest if sep else uri))
    bucket, _, key = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise StorageError("credentials and hosts do not belong into a URI; write s3://bucket/prefix")
    if scheme != "s3" or not bucket:
        raise StorageError(f"{uri!r} is not a place; write s3://bucket/prefix or the path of a folder")
    return bucket, key.strip("/")


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts below it."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def absolute(uri: str) -> str:
    """The same place seen from any working directory: what a driver hands to workers."""
    bucket, path = split(uri)
    return uri.rstrip("/") if bucket else path


def resolved(place: str, base: str) -> str:
    """`place` as seen from the folder `base`: itself where it is a URI or an absolute path."""
    return absolute(place if "://" in place or os.path.isabs(os.path.expanduser(place)) else join(base, place))


def filesystem(uri: str, cfg: config.Storage) -> tuple[pyarrow.fs.FileSystem, str]:
    """pyarrow's filesystem (cached per process, pickled without credentials) and the path of `uri` inside it."""
    bucket, path = split(uri)
    if not bucket:
        return pyarrow.fs.LocalFileSystem(), path
    return s3_files(cfg), f"{bucket}/{path}".rstrip("/")


# ---- files


def read_bytes(uri: str, cfg: config.Storage) -> bytes:
    """The whole file.

    Raises:
        NotFound, StorageError: one sentence (as everywhere below).
    """
    bucket, path = split(uri)
    if not bucket:
        return retrying(lambda: Path(path).read_bytes(), cfg, f"read {uri}")
    return retrying(lambda: fetch(cfg, bucket, path), cfg, f"read {uri}")


def read_range(uri: str, start: int, num_bytes: int, cfg: config.Storage) -> bytes:
    """`num_bytes` > 0 bytes from `start`, in one request.

    Raises:
        StorageError: also when the file ends before.
    """
    bucket, path = split(uri)

    def read() -> bytes:
        if bucket:
            return fetch(cfg, bucket, path, Range=f"bytes={start}-{start + num_bytes - 1}")
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(num_bytes)

    data = retrying(read, cfg, f"read {uri}")
    if len(data) != num_bytes:
        raise StorageError(f"cannot read {uri}: it ends before byte {start + num_bytes}; it was cut short or replaced")
    return data


def fetch(cfg: config.Storage, bucket: str, key: str, **options: str) -> bytes:
    answer = client(cfg).get_object(Bucket=bucket, Key=key, **options)
    if "ContentLength" not in answer:  # headers that were cut off: without a length any body would look whole
        raise ConnectionError("an answer without a length")
    return answer["Body"].read()


def write_bytes(uri: str, data: bytes, cfg: config.Storage) -> None:
    """The whole file at once: a reader sees the old content or the new, never a part."""
    bucket, path = split(uri)
    if bucket:
        retrying(lambda: client(cfg).put_object(Bucket=bucket, Key=path, Body=data), cfg, f"write {uri}")
    else:
        retrying(lambda: replace_file(path, lambda partial: write_synced(partial, data)), cfg, f"write {uri}")


def read_json(uri: str, cfg: config.Storage) -> Any:
    """Any JSON value."""
    try:
        return json.loads(read_bytes(uri, cfg))
    except ValueError:
        raise StorageError(f"cannot read {uri}: it is not JSON; it was damaged or is another file") from None


def write_json(uri: str, value: Any, cfg: config.Storage) -> None:
    """Stable bytes for equal values: keys sorted, indent 1."""
    write_bytes(uri, json.dumps(value, sort_keys=True, indent=1).encode(), cfg)


def put_if_absent(uri: str, data: bytes, cfg: config.Storage) -> bool:
    """Writes a new file unless there is one; True if what is there afterwards is `data`, which must be unique.

    Of several callers at the same moment one gets True. A local file is created exclusively. S3 is asked with
    `If-None-Match: *`; as a store may ignore that, the winner asks again, which must be refused. Where it is not, the
    last of the racing writes stands, and who wrote it is seen by reading it back a little later.
    """
    bucket, path = split(uri)
    if not bucket:
        return retrying(lambda: create_file(path, data), cfg, f"create {uri}")

    def put() -> bool:
        try:
            client(cfg).put_object(Bucket=bucket, Key=path, Body=data, IfNoneMatch="*")
            return True
        except ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "412"):
                return False
            raise

    if retrying(put, cfg, f"create {uri}") and retrying(put, cfg, f"create {uri}"):
        time.sleep(SETTLE_S)
    return read_bytes(uri, cfg) == data  # a refused PUT may be the repetition of one whose answer was lost


def exists(uri: str, cfg: config.Storage) -> bool:
    """Whether there is a file of this name, or any file below it."""
    bucket, path = split(uri)
    if not bucket:
        return os.path.exists(path)

    def look() -> bool:
        below = client(cfg).list_objects_v2(Bucket=bucket, Prefix=path and path + "/", MaxKeys=1)
        if below.get("Contents"):
            return True
        try:
            return bool(path) and bool(client(cfg).head_object(Bucket=bucket, Key=path))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise

    return retrying(look, cfg, f"look for {uri}")


# ---- folders


def list_files(uri: str, cfg: config.Storage) -> dict[str, int]:
    """Relative path -> bytes of every file below `uri`, sorted by path; empty if nothing is there."""
    bucket, path = split(uri)
    find = (lambda: list_s3(cfg, bucket, path)) if bucket else (lambda: list_local(path))
    return dict(sorted(retrying(find, cfg, f"list {uri}")))


def list_s3(cfg: config.Storage, bucket: str, key: str) -> list[tuple[str, int]]:
    prefix = key and key + "/"
    pager = client(cfg).get_paginator("list_objects_v2")
    pages = pager.paginate(Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": PAGE_KEYS})
    entries = (entry for page in pages for entry in page.get("Contents", ()))
    return [(e["Key"][len(prefix) :], e["Size"]) for e in entries if not e["Key"].endswith("/")]


def delete(uri: str, cfg: config.Storage) -> None:
    """Removes a file, or everything below a prefix; nothing there is no error.

    Raises:
        StorageError: also for a whole bucket or the root of a disk.
    """
    bucket, path = split(uri)
    if not path.strip("/"):
        raise StorageError(f"cannot delete {uri}: that is everything there; name a prefix inside it")
    if not bucket:
        remove = shutil.rmtree if os.path.isdir(path) and not os.path.islink(path) else os.unlink
        with contextlib.suppress(NotFound):
            retrying(lambda: remove(path), cfg, f"delete {uri}")
        return
    keys = [path, *(f"{path}/{name}" for name in list_files(uri, cfg))]
    for start in range(0, len(keys), PAGE_KEYS):
        batch = {"Objects": [{"Key": key} for key in keys[start : start + PAGE_KEYS]], "Quiet": True}

        def remove_batch(batch: dict[str, Any] = batch) -> None:
            answer = client(cfg).delete_objects(Bucket=bucket, Delete=batch)
            if errors := answer.get("Errors"):
                raise ClientError({"Error": errors[0]}, "DeleteObjects")

        retrying(remove_batch, cfg, f"delete {uri}")


def upload_folder(local: Path, uri: str, cfg: config.Storage) -> None:
    """Every file below `local`, to the same relative path below `uri`; each file is atomic, the folder is not."""
    bucket, path = split(uri)

    def upload(name: str) -> None:
        source, target = local / name, f"{path}/{name}"

        def put() -> None:
            if not bucket:
                return replace_file(target, lambda partial: copy_synced(source, partial))
            with open(source, "rb") as file:
                client(cfg).upload_fileobj(file, bucket, target.lstrip("/"), Config=PARTS)

        retrying(put, cfg, f"write {join(uri, name)}")

    if not local.is_dir():
        raise NotFound(f"cannot upload {local}: it is not a folder")
    in_parallel(upload, [name for name, _ in sorted(list_local(str(local)))])


def download_folder(uri: str, local: Path, cfg: config.Storage) -> None:
    """Every file below `uri`, to the same relative path below `local`; large files in parts.

    Raises:
        NotFound: nothing is there.
    """
    bucket, path = split(uri)
    files = list_files(uri, cfg)
    if not files:
        raise NotFound(f"cannot download {uri}: nothing is there")

    def download(name: str) -> None:
        target, size = local / name, files[name]
        if not target.resolve().is_relative_to(local.resolve()):
            raise StorageError(f"cannot download {uri}: {name} would be written outside of {local}")

        def fill(partial: str) -> None:
            if not bucket:
                return copy_synced(Path(path, name), partial)
            with open(partial, "wb") as file:
                for start in range(0, size, PART_BYTES):
                    file.write(read_range(join(uri, name), start, min(PART_BYTES, size - start), cfg))

        retrying(lambda: replace_file(str(target), fill), cfg, f"download {join(uri, name)} to {target}")

    in_parallel(download, files)


def in_parallel(fn: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for done in [pool.submit(fn, name) for name in names]:
            done.result()


def ensure_root(uri: str, cfg: config.Storage) -> None:
    """Checks, by doing it, that files can be written, read back, listed and deleted below `uri`.

    A local folder is made; a bucket is not, because where and for whom it is made is the owner's decision.

    Raises:
        StorageError: one sentence within seconds: no such bucket, no permission, nothing at the endpoint, expired ...
    """
    quick = cfg.model_copy(update={"max_attempts": min(2, cfg.max_attempts)})
    bucket, path = split(uri)
    if not bucket:
        retrying(lambda: os.makedirs(path, exist_ok=True), quick, f"make {uri}")
    name = f".probe-{uuid.uuid4().hex}"
    probe = join(uri, name)
    try:
        write_bytes(probe, name.encode(), quick)
        if read_bytes(probe, quick) != name.encode() or not exists(uri, quick):
            raise StorageError(f"cannot use {uri}: what was written there does not come back; use another store")
        delete(probe, quick)
    except NotFound:
        raise StorageError(f"cannot use {uri}: {NOT_S3}") from None
    except StorageError as error:
        raise StorageError(str(error).replace(probe, uri)) from None


# ---- local disk


def list_local(path: str) -> Iterator[tuple[str, int]]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, _, names in os.walk(path, onerror=refuse):
        for name in names:
            file = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):  # deleted since the folder was read
                if not name.endswith(PARTIAL):
                    yield file.relative_to(path).as_posix(), file.stat().st_size


def replace_file(path: str, fill: Callable[[str], None]) -> None:
    """Fills a file beside `path` and renames it into place; nothing of it stays if that fails."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    partial = os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        fill(partial)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def write_synced(path: str, data: bytes, mode: str = "wb") -> None:
    with open(path, mode) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_synced(source: Path, path: str) -> None:
    shutil.copyfile(source, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def create_file(path: str, data: bytes) -> bool:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        write_synced(path, data, "xb")
        return True
    except FileExistsError:
        return False
