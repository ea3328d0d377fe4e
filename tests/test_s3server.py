from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import numpy as np
import psutil
import pytest

from pathryoshka.storage import server as s3server
from pathryoshka.storage.server import S3Server, S3ServerError

PARENT = """
import sys, time
from pathryoshka.storage.server import S3Server
with S3Server(sys.argv[1]) as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""


def s3_client(server: S3Server):
    keys = {
        "aws_access_key_id": server.env["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": server.env["AWS_SECRET_ACCESS_KEY"],
    }
    return boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1", **keys)


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not psutil.pid_exists(pid)


def test_a_killed_server_comes_back_with_everything_it_acknowledged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [0, 1, 100, *(int(n) for n in rng.integers(1, 300_000, 30)), 9_000_000]
    objects = {f"a/{i}": rng.bytes(n) for i, n in enumerate(sizes)}
    with S3Server(tmp_path / "s3", bucket="first") as server:
        before, client = server.endpoint, s3_client(server)
        for key, data in objects.items():
            client.put_object(Bucket="first", Key=key, Body=data)
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        server.start()
        assert server.pid != pid and gone(pid) and server.endpoint == before
        for key, data in objects.items():
            assert client.get_object(Bucket="first", Key=key)["Body"].read() == data
        for i in range(20):  # new content takes no place of the old
            client.put_object(Bucket="first", Key=f"b/{i}", Body=b"after")
        for key, data in objects.items():
            assert client.get_object(Bucket="first", Key=key)["Body"].read() == data
        with pytest.raises(S3ServerError, match="another server keeps its data in"):
            S3Server(tmp_path / "s3")
        pid = server.pid
    assert gone(pid)
    assert not [name for name in os.listdir("/tmp") if name.startswith(f"seaweedfs-s3-{server.port}.")]


def test_it_is_on_loopback_only_without_telemetry_and_hides_its_keys(s3: S3Server) -> None:
    process = psutil.Process(s3.pid)
    listening = {c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert len(listening) == len(s3server.PORTS) and {address.ip for address in listening} == {"127.0.0.1"}
    assert "-master.telemetry=false" in process.cmdline()
    assert (s3.folder / "identity.json").stat().st_mode & 0o777 == 0o600
    assert s3.folder.stat().st_mode & 0o777 == 0o700
    seen = " ".join([*process.cmdline(), repr(s3), str(process.environ()), (s3.folder / "server.log").read_text()])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert s3.env[name] not in seen
    assert json.loads((s3.folder / "ports.json").read_text())["s3"] == s3.port


def test_it_ends_with_the_command_that_started_it(tmp_path: Path) -> None:
    hows = (signal.SIGKILL, signal.SIGINT)
    parents = [
        subprocess.Popen(
            [sys.executable, "-c", PARENT, str(tmp_path / how.name)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for how in hows
    ]  # fmt: skip
    for parent, how in zip(parents, hows, strict=True):
        assert parent.stdout is not None and parent.stderr is not None
        line = parent.stdout.readline()
        assert line, parent.stderr.read()
        pid = int(line)
        assert psutil.Process(pid).name() == "weed"
        parent.send_signal(how)
        assert parent.wait(10) != 0
        assert gone(pid)


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(S3ServerError, match=f"port {port} is taken; end what listens there"):
            S3Server(tmp_path / "s3", port=port)


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(S3ServerError, match="cannot keep data in .*name another folder"):
        S3Server(tmp_path / "file" / "s3")


def test_a_missing_binary_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(s3server.importlib.metadata, "files", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(S3ServerError, match="weed` is missing; pip install"):
        S3Server(tmp_path / "s3")


def test_a_server_that_dies_at_start_gives_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "weed"
    script.write_text("#!/bin/sh\necho 'F the disk is on fire' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(s3server, "find_weed", lambda: str(script))
    begun = time.monotonic()
    with pytest.raises(S3ServerError, match=r"did not start \(F the disk is on fire; see .*server.log\)"):
        S3Server(tmp_path / "s3")
    assert time.monotonic() - begun < 10
