"""The S3 clients of a process, made from a config and the usual AWS chain: boto3 for objects, pyarrow for Parquet.

Both come from one boto3 session, so endpoint, region and credentials are found once and in one way (variables, profile,
SSO, role of the machine or the pod). Credentials stay in the process: a filesystem is pickled as the config that made
it, and the process that receives it looks for its own.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

import boto3
import pyarrow.fs
from botocore import exceptions as aws
from botocore.config import Config as ClientConfig

from pathryoshka import config
from pathryoshka.storage.retry import NO_CREDENTIALS, StorageError

NUM_THREADS = 4  # files one operation on a folder has under way; more of them starve the lease on a small server
CONNECT_S, SILENCE_S = 5.0, 20.0  # seconds after which a connection, or a pause in an answer, counts as failed
IDENTITY = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
Who = tuple[str | None, ...]
making = threading.RLock()  # boto3 sessions are not thread-safe while clients are made


def identity() -> Who:
    """What a cached client depends on beside the config."""
    return tuple(os.environ.get(name) for name in IDENTITY)


@functools.lru_cache(maxsize=8)
def session(profile: str | None, who: Who) -> boto3.Session:
    try:
        return boto3.Session(profile_name=profile)
    except aws.ProfileNotFound:
        name = profile or os.environ.get("AWS_PROFILE")
        raise StorageError(f"there is no AWS profile {name}; set storage.profile to one of ~/.aws/config") from None


@functools.lru_cache(maxsize=16)
def make_client(cfg: config.Storage, who: Who) -> Any:
    found = session(cfg.profile, who)
    own_server = cfg.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if own_server and "@" in own_server:
        raise StorageError("credentials do not belong into storage.endpoint; use AWS_ACCESS_KEY_ID and its companions")
    options = ClientConfig(
        retries={"mode": "standard", "total_max_attempts": cfg.max_attempts},
        connect_timeout=CONNECT_S,
        read_timeout=SILENCE_S,
        max_pool_connections=4 * NUM_THREADS,
        tcp_keepalive=True,
        s3={"addressing_style": "path"} if own_server else {},  # own servers seldom have a DNS name a bucket
    )
    region = cfg.region or os.environ.get("AWS_REGION") or found.region_name or "us-east-1"
    try:
        return found.client("s3", endpoint_url=own_server, region_name=region, config=options)
    except ValueError:
        raise StorageError(f"storage.endpoint {own_server!r} is not a URL; write http://host:port") from None


def client(cfg: config.Storage) -> Any:
    """The boto3 S3 client of this process for a config (cached, may be used by many threads).

    Raises:
        StorageError: unknown profile, or an endpoint that is no URL.
    """
    with making:
        return make_client(cfg, identity())


class S3Files(pyarrow.fs.S3FileSystem):
    """pyarrow's S3 filesystem without credentials in its pickle."""

    cfg: config.Storage

    def __reduce__(self) -> tuple[Any, ...]:
        return s3_files, (self.cfg,)


@functools.lru_cache(maxsize=16)
def make_s3_files(cfg: config.Storage, who: Who, endpoint: str, region: str, keys: Who) -> S3Files:
    made = S3Files(
        access_key=keys[0],
        secret_key=keys[1],
        session_token=keys[2],
        region=region,
        endpoint_override=None if ".amazonaws.com" in endpoint else endpoint,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=cfg.max_attempts),
        connect_timeout=CONNECT_S,
        request_timeout=SILENCE_S,
    )
    made.cfg = cfg
    return made


def s3_files(cfg: config.Storage) -> S3Files:
    """pyarrow's filesystem for a config (cached); another one as soon as temporary credentials have been renewed.

    Raises:
        StorageError: as `client`, and when there are no credentials.
    """
    boto, who = client(cfg), identity()
    with making:
        credentials = session(cfg.profile, who).get_credentials()
        if credentials is None:
            raise StorageError(NO_CREDENTIALS)
        frozen = credentials.get_frozen_credentials()
    keys = (frozen.access_key, frozen.secret_key, frozen.token)
    if credentials.method == "env":
        keys = (None, None, None)  # pyarrow reads the variables itself; it does not know every other place boto3 knows
    return make_s3_files(cfg, who, boto.meta.endpoint_url.rstrip("/"), boto.meta.region_name, keys)
