from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from pathryoshka import config, storage
from pathryoshka.storage import NotFound, StorageError, retry
from pathryoshka.storage.server import S3Server
from tests.faulty_proxy import FaultyProxy

Place = tuple[config.Storage, str]


# ---- errors in one sentence


class Refusing(BaseHTTPRequestHandler):
    """An S3 server that always gives the answer that its class was made for."""

    protocol_version = "HTTP/1.1"
    status, code, asked = 403, "AccessDenied", 0

    def answer(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>no</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def refusing(s3: S3Server) -> Iterator[Callable[[int, str], tuple[config.Storage, type[Refusing]]]]:
    servers = []

    def serve(status: int, code: str) -> tuple[config.Storage, type[Refusing]]:
        handler = type("Handler", (Refusing,), {"status": status, "code": code})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return config.Storage(endpoint=f"http://127.0.0.1:{server.server_address[1]}", max_attempts=5), handler

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "AccessDenied", "no permission; let the bucket's policy"),
        (403, "SignatureDoesNotMatch", "does not accept these credentials"),
        (400, "ExpiredToken", "expired or are malformed; renew them"),
        (403, "RequestTimeTooSkewed", "set the clock"),
        (507, "XMinioStorageFull", "no space is left"),
        (404, "NoSuchBucket", "there is no bucket b; make it with `aws s3 mb s3://b`"),
        (405, "MethodNotAllowed", "the S3 server refuses with 405 MethodNotAllowed"),
    ],
)
def test_what_waiting_cannot_help_is_said_at_once(refusing: Any, status: int, code: str, says: str) -> None:
    cfg, handler = refusing(status, code)
    begun = time.monotonic()
    for verb in (lambda: storage.read_bytes("s3://b/x", cfg), lambda: storage.ensure_root("s3://b/x", cfg)):
        with pytest.raises(StorageError, match="^cannot (read|write) s3://b/x: ") as caught:
            verb()
        assert says in str(caught.value) and "\n" not in str(caught.value) and ".probe" not in str(caught.value)
    assert time.monotonic() - begun < 15  # without waits; machines may be busy
    assert handler.asked == 2 or code == "XMinioStorageFull"  # a 5xx, which the client repeats by itself


def test_a_bucket_elsewhere_is_said() -> None:
    """Not over the wire: boto3 asks for the region again and again if it is redirected without being told where."""
    for code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 301}}
        with pytest.raises(StorageError, match="set storage.region"):
            storage.retrying(Flaky(ClientError(answer, "PutObject")), config.Storage(), "write x")


def test_pyarrow_refusals_get_the_same_sentences(refusing: Any, s3_storage: Place) -> None:
    for status, code, says in [
        (403, "AccessDenied", "no permission"),
        (400, "ExpiredToken", "expired or are malformed"),
    ]:
        cfg, _ = refusing(status, code)
        filesystem, path = storage.filesystem("s3://b/x", cfg)
        with pytest.raises(StorageError, match=says):
            storage.retrying(partial(filesystem.open_input_file, path), cfg, "read s3://b/x")
    cfg, uri = s3_storage
    filesystem, path = storage.filesystem(f"{uri}/nothing", cfg)
    with pytest.raises(NotFound, match="does not exist"):
        storage.retrying(lambda: filesystem.open_input_file(path), cfg, "read it")
    with pytest.raises(StorageError, match="there is no bucket absent;"):
        storage.retrying(
            lambda: filesystem.open_output_stream("absent/x").close(), cfg, "write s3://absent/x"
        )  # fmt: skip


def test_the_real_server_refuses_in_one_sentence(s3: S3Server, s3_storage: Place, monkeypatch: Any) -> None:
    cfg, uri = s3_storage
    with pytest.raises(NotFound, match="cannot read .*: it does not exist$"):
        storage.read_bytes(f"{uri}/x", cfg)
    with pytest.raises(StorageError, match=r"there is no bucket absent; make it with `aws s3 mb s3://absent`"):
        storage.ensure_root("s3://absent/x", cfg)
    with pytest.raises(StorageError, match="there is no bucket absent"):
        storage.exists("s3://absent/x", cfg)
    storage.write_bytes(f"{uri}/short", b"abc", cfg)
    with pytest.raises(StorageError, match="ends before byte 10"):
        storage.read_range(f"{uri}/short", 1, 9, cfg)
    with pytest.raises(StorageError, match="it is shorter than it should be"):
        storage.read_range(f"{uri}/short", 5, 9, cfg)
    with pytest.raises(StorageError, match="is not JSON"):
        storage.read_json(f"{uri}/short", cfg)
    storage.ensure_root(uri, cfg)
    assert list(storage.list_files(uri, cfg)) == ["short"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" * 8)
    with pytest.raises(StorageError, match="does not accept these credentials") as caught:
        storage.ensure_root(uri, cfg)
    assert "wrong" not in repr(caught.value) and s3.env["AWS_ACCESS_KEY_ID"] not in repr(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://127.0.0.1:9", "nothing answers at the endpoint; check storage.endpoint"),
        ("http://no-such-host.invalid", "nothing answers at the endpoint"),
        ("127.0.0.1:8333", "is not a URL; write http://host:port"),
        ("http://key:secret@127.0.0.1:8333", "credentials do not belong into storage.endpoint"),
    ],
)
def test_a_wrong_endpoint_is_said_within_seconds(s3: S3Server, endpoint: str, says: str) -> None:
    begun = time.monotonic()
    with pytest.raises(StorageError, match=says) as caught:
        storage.ensure_root("s3://tiles/x", config.Storage(endpoint=endpoint))
    assert time.monotonic() - begun < 20 and "secret" not in repr(caught.value)


def test_what_answers_but_is_not_s3_is_said(s3: S3Server) -> None:
    filer = json.loads((s3.folder / "ports.json").read_text())["filer"]  # SeaweedFS's own web server
    with pytest.raises(StorageError, match="not an S3 server; check storage.endpoint"):
        storage.ensure_root("s3://tiles/x", config.Storage(endpoint=f"http://127.0.0.1:{filer}"))
    with pytest.raises(StorageError, match="does not speak TLS"):
        storage.ensure_root("s3://tiles/x", config.Storage(endpoint=s3.endpoint.replace("http", "https")))


def test_missing_credentials_and_profiles_are_said(s3_storage: Place, tmp_path: Path, monkeypatch: Any) -> None:
    cfg, uri = s3_storage
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no AWS credentials were found; set AWS_ACCESS_KEY_ID"):
        storage.ensure_root(uri, cfg)
    with pytest.raises(StorageError, match="no AWS credentials were found"):
        storage.filesystem(uri, cfg)
    with pytest.raises(StorageError, match="there is no AWS profile absent; set storage.profile"):
        storage.ensure_root(uri, cfg.model_copy(update={"profile": "absent"}))


def test_local_folders_refuse_in_one_sentence(tmp_path: Path) -> None:
    cfg = config.Storage()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        storage.write_bytes(str(tmp_path / "file" / "x"), b"", cfg)
    with pytest.raises(StorageError, match="a folder, not a file"):
        storage.read_bytes(str(tmp_path), cfg)
    with pytest.raises(StorageError, match="no permission to write there|does not exist"):
        storage.ensure_root("/proc/nothing/here", cfg)
    storage.ensure_root(str(tmp_path / "new" / "root"), cfg)
    assert list((tmp_path / "new" / "root").iterdir()) == []


# ---- retries


def test_faulty_storage_gives_every_byte(s3: S3Server, s3_storage: Place) -> None:
    cfg, uri = s3_storage
    rng = np.random.default_rng(3)
    blobs = [rng.bytes(int(n)) for n in rng.integers(1, 200_000, 20)]
    table = pa.table({"image": [rng.bytes(2000) for _ in range(64)], "i": list(range(64))})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=16)
    for i, blob in enumerate(blobs):
        storage.write_bytes(f"{uri}/in/{i}", blob, cfg)
    storage.write_bytes(f"{uri}/t.parquet", sink.getvalue(), cfg)
    with FaultyProxy(s3.endpoint, fail_share=0.1, delay_s=0.01, seed=4) as proxy:
        cfg = cfg.model_copy(update={"endpoint": proxy.endpoint})
        filesystem, path = storage.filesystem(f"{uri}/t.parquet", cfg)

        def work(i: int) -> None:
            blob = blobs[i % 20]
            assert storage.read_bytes(f"{uri}/in/{i % 20}", cfg) == blob
            assert storage.read_range(f"{uri}/in/{i % 20}", 0, len(blob) // 2 + 1, cfg) == blob[: len(blob) // 2 + 1]
            storage.write_bytes(f"{uri}/out/{i}", blob, cfg)
            assert storage.exists(f"{uri}/in/{i % 20}", cfg)
            read = storage.retrying(
                lambda: pq.ParquetFile(path, filesystem=filesystem).read_row_group(i % 4), cfg, "read"
            )
            assert read.equals(table.slice(16 * (i % 4), 16))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(32)))
        assert storage.list_files(f"{uri}/in", cfg) == {str(i): len(blobs[i]) for i in sorted(range(20), key=str)}
        assert set(proxy.faults) == {"500", "503", "reset", "cut"} and sum(proxy.faults.values()) > 20
    clean, _ = s3_storage
    assert all(storage.read_bytes(f"{uri}/out/{i}", clean) == blobs[i % 20] for i in range(32))


def test_a_server_that_is_away_is_waited_for(s3: S3Server, s3_storage: Place) -> None:
    cfg, uri = s3_storage
    storage.write_bytes(f"{uri}/x", b"x", cfg)
    with FaultyProxy(s3.endpoint, fail_share=1.0, delay_s=0.0, kinds=("reset",)) as proxy:
        away = cfg.model_copy(update={"endpoint": proxy.endpoint, "max_attempts": 3})

        def come_back() -> None:
            time.sleep(2.5)
            proxy.fail_share = 0.0

        threading.Thread(target=come_back, daemon=True).start()
        assert storage.read_bytes(f"{uri}/x", away) == b"x"
        assert proxy.faults["reset"] >= 4
        proxy.fail_share = 1.0
        with pytest.raises(StorageError, match="the connection keeps breaking"):
            storage.read_bytes(f"{uri}/x", away.model_copy(update={"max_attempts": 1}))


class Flaky:
    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Upper ends of the waits, which then take no time."""
    ends: list[float] = []

    def note(low: float, high: float) -> float:
        ends.append(high)
        return low

    monkeypatch.setattr(retry.random, "uniform", note)
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    return ends


def test_waits_double_up_to_a_limit(waits: list[float]) -> None:
    cfg = config.Storage(max_attempts=12)
    fn = Flaky(*[ConnectionResetError()] * 11)
    assert storage.retrying(fn, cfg, "read x") == "done" and fn.calls == 12
    assert waits == [min(10.0, 0.1 * 2**n) for n in range(11)]
    busy = [ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "GetObject")]
    with pytest.raises(StorageError, match=r"cannot read x: the S3 server keeps answering 503 SlowDown; .*12 times"):
        storage.retrying(Flaky(*busy * 99), cfg, "read x")


def test_what_is_not_about_storage_passes_through(waits: list[float]) -> None:
    for error in (ValueError("mine"), KeyError("mine"), pa.ArrowInvalid("not a Parquet file"), OSError("odd page")):
        fn = Flaky(error)
        with pytest.raises(type(error)) as caught:
            storage.retrying(fn, config.Storage(), "read x")
        assert caught.value is error and fn.calls == 1
    for kind in (errno.ENOSPC, errno.EACCES, errno.ENOENT):
        fn = Flaky(OSError(kind, os.strerror(kind)))
        with pytest.raises(StorageError):
            storage.retrying(fn, config.Storage(), "read x")
        assert fn.calls == 1
    assert waits == []
    empty = pa.ArrowInvalid("Parquet file size is 0 bytes")
    assert storage.retrying(Flaky(empty), config.Storage(), "read x") == "done"
    truly_empty = Flaky(*[empty] * 99)
    with pytest.raises(pa.ArrowInvalid):
        storage.retrying(truly_empty, config.Storage(), "read x")
    assert truly_empty.calls == config.Storage().max_attempts


def test_patience_ends(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers, a failure every 5 s: 49 s are waited by default, a second with two tries, none with one."""
    for max_attempts, tries in ((8, 11), (2, 2), (1, 1)):
        fn = Flaky(*[TimeoutError()] * 99)
        monkeypatch.setattr(retry.time, "monotonic", lambda fn=fn: 5.0 * fn.calls)
        with pytest.raises(StorageError, match="check the network"):
            storage.retrying(fn, config.Storage(max_attempts=max_attempts), "read x")
        assert fn.calls == tries


def test_boto3_is_what_it_was_measured_to_be(s3: S3Server) -> None:
    """A body that is cut off raises in boto3 and is not repeated there: why `retrying` stands around it."""
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    client.put_object(Bucket=s3.bucket, Key="cut", Body=b"x" * 10_000)
    with FaultyProxy(s3.endpoint, fail_share=1.0, delay_s=0.0, kinds=("cut",)) as proxy:
        client = boto3.client("s3", endpoint_url=proxy.endpoint)
        with pytest.raises(Exception, match="IncompleteRead"):
            client.get_object(Bucket=s3.bucket, Key="cut")["Body"].read()
        assert sum(proxy.requests.values()) == 1
