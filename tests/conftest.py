"""Fixtures that several test files share."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
from collections.abc import Iterator

import pytest

from pathryoshka import config
from pathryoshka.storage.server import S3Server

# A test run in the background of a script ignores Ctrl-C, and what it starts would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server, its credentials in this process's environment; tests use prefixes of their own."""
    with pytest.MonkeyPatch.context() as patch, S3Server(tmp_path_factory.mktemp("s3"), bucket="tiles") as server:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def s3_storage(s3: S3Server, request: pytest.FixtureRequest) -> tuple[config.Storage, str]:
    """(storage section, URI of an own prefix in the bucket) on the running S3 server."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name).strip("-")
    uri = f"s3://{s3.bucket}/{name}"
    return config.Storage(root=uri, endpoint=s3.endpoint, region="us-east-1"), uri
