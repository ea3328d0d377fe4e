"""Which storage errors pass by waiting, and what the others mean in one sentence.

Measured here with pyarrow 26 and boto3 1.44 against SeaweedFS behind a proxy that breaks 5 % of requests and adds
200 ms, 400 operations a kind (tests/faulty_proxy.py); it is why whole objects go through boto3 and why every operation
is wrapped once more:

- 500, 503 and resets: both clients repeat the request, no operation failed (median 0.41 s a read and 0.7 s a write of
  300 kB with pyarrow, which needs two and three requests; 0.21 s and 0.25 s with boto3, which needs one).
- a body that is cut off: pyarrow repeats its range request; boto3 notices and raises (28 of 28) without repeating.
- headers that are cut off: pyarrow takes a HEAD without its length for a file of 0 bytes, every time and silently
  (`EMPTY` is what Parquet makes of it). Give it the size where you know it.
- giving up with 8 tries: pyarrow after about 31 s (nothing listens) or 57 s (500, 503); boto3 after 5 s or 51 s (503).
- pyarrow's `request_timeout` (default 3 s of silence) works on Linux too, whatever its documentation says.
"""

from __future__ import annotations

import errno
import http.client
import itertools
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import urllib3
from botocore import exceptions as aws
from botocore.parsers import ResponseParserError

from pathryoshka import config

T = TypeVar("T")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0
PATIENCE_S = 60.0


class StorageError(RuntimeError):
    """Storage cannot do what was asked; the sentence says why and what to do."""


class NotFound(StorageError):
    """The file is not there."""


def retrying(fn: Callable[[], T], cfg: config.Storage, what: str) -> T:
    """`fn()`, repeated while its storage error may pass by itself.

    `cfg.max_attempts` tries with exponential back-off and full jitter (a wait is uniform between 0 and 0.1 s x 2^n, at
    most 10 s), none of them begun more than a minute after the first failure. Where no answer comes at all, an outage
    of (max_attempts - 1)^2 seconds is waited out, whatever number of tries that takes: 49 s by default, more than the
    restart of a server; 1 s with two. The clients inside `fn` repeat single requests on top. Errors that are not about
    storage pass through unchanged.

    Args:
        what: verb and URI for the message, e.g. `read s3://tiles/a.parquet`.

    Raises:
        NotFound, StorageError: one sentence; at once where waiting cannot help.
    """
    first_failure = 0.0
    for attempt in itertools.count():
        try:
            return fn()
        except Exception as error:
            reason = permanent_reason(error, what)
            if reason is not None:
                kind = NotFound if reason is MISSING else StorageError
                raise kind(f"cannot {what}: {reason}") from None
            if not is_transient(error):
                raise
            first_failure = first_failure or time.monotonic()
            failing_s = time.monotonic() - first_failure
            outage_s = 0 if answer_of(error) or looks_empty(error) else (cfg.max_attempts - 1) ** 2
            if failing_s > PATIENCE_S or (attempt + 1 >= cfg.max_attempts and failing_s >= outage_s):
                if looks_empty(error):
                    raise  # it is empty or damaged
                tries = f" (tried {attempt + 1} times)" if attempt else ""
                raise StorageError(f"cannot {what}: {transient_reason(error)}{tries}") from None
            time.sleep(random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)))
    raise AssertionError("unreachable")


MISSING = "it does not exist"
NO_CREDENTIALS = (
    "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or storage.profile to a profile "
    "of ~/.aws/credentials, or run on a machine whose role may reach the bucket"
)
DENIED = "no permission; let the bucket's policy allow these credentials to list, get, put and delete there"
UNKNOWN_KEY = (
    "the server does not accept these credentials; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and that "
    "storage.endpoint is the server they belong to"
)
EXPIRED = "the credentials have expired or are malformed; renew them (`aws sso login`, or a new AWS_SESSION_TOKEN)"
CLOCK = "this machine's clock differs from the server's by more than it allows; set the clock"
REGION = "the bucket is in another region; set storage.region to the bucket's region"
FULL = "no space is left there; free some or write elsewhere"
READ_ONLY = "no permission to write there; choose another folder or change its owner"
NOT_S3 = "what answers at the endpoint is not an S3 server; check storage.endpoint or AWS_ENDPOINT_URL"
TLS = "the endpoint does not speak TLS as asked; check http:// against https:// in storage.endpoint, and certificates"

CODES = {
    **dict.fromkeys(("NoSuchKey", "404", "ResourceNotFound"), MISSING),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "401"), DENIED),
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSignature"), UNKNOWN_KEY),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"), EXPIRED),
    **dict.fromkeys(("InvalidClientTokenId", "UnrecognizedClient", "RequestExpired", "400"), EXPIRED),
    "RequestTimeTooSkewed": CLOCK,
    **dict.fromkeys(("PermanentRedirect", "AuthorizationHeaderMalformed", "301"), REGION),
    **dict.fromkeys(("XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "507"), FULL),
    **dict.fromkeys(("InvalidRange", "416"), "it is shorter than it should be; it was cut short or replaced"),
    "InvalidBucketName": "the bucket's name is not valid; 3 to 63 lower-case letters, digits, dots and hyphens",
}
ERRNOS = {
    errno.ENOENT: MISSING,
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), READ_ONLY),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), FULL),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a part of the path is a file, not a folder; choose another path"),
    errno.EISDIR: "it is a folder, not a file; name a file inside it",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter one",
}
MAY_PASS = {
    "NoSuchUpload",
    "408",
    "409",
    "425",
    "429",
    "RequestTimeout",
    "ConditionalRequestConflict",
    "OperationAborted",
}
NETWORK = (
    ConnectionError,
    TimeoutError,
    http.client.HTTPException,
    urllib3.exceptions.HTTPError,
    aws.ConnectionError,
    aws.HTTPClientError,
    aws.IncompleteReadError,
    aws.FlexibleChecksumError,
    aws.CredentialRetrievalError,
    aws.MetadataRetrievalError,
    ResponseParserError,
)
EMPTY = ("Parquet file size is 0 bytes", "Invalid column metadata (corrupt file?)")
PYARROW_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")


def answer_of(error: Exception) -> tuple[str, int] | None:
    """(code, HTTP status or 0) of an S3 server's refusal, from either client; None for any other error."""
    if isinstance(error, aws.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return str(error.response.get("Error", {}).get("Code", "")), int(status)
    found = PYARROW_ERROR.search(str(error)) if isinstance(error, OSError) else None
    if found is None or found[1] == "NETWORK_CONNECTION":
        return None
    code = found[1].title().replace("_", "")
    return (found[2] if code == "Unknown" and found[2] else code), int(found[2] or 0)


def permanent_reason(error: Exception, what: str) -> str | None:
    """Why waiting cannot help, with what to do; None when it may, or when the error is not about storage."""
    text = str(error)
    if isinstance(error, aws.SSLError) and ("WRONG_VERSION_NUMBER" in text or "CERTIFICATE_VERIFY" in text):
        return TLS
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        return NO_CREDENTIALS
    if isinstance(error, aws.TokenRetrievalError | aws.SSOError):
        return EXPIRED
    if isinstance(error, aws.ParamValidationError):
        return "the bucket's name or the key is not valid; write s3://bucket/prefix"
    if answer := answer_of(error):
        code, status = answer
        if code == "NoSuchBucket":
            return no_such_bucket(what)
        if code in MAY_PASS or str(status) in MAY_PASS:
            return None
        if code in CODES:
            return CODES[code]
        return f"the S3 server refuses with {status} {code}" if 400 <= status < 500 else CODES.get(str(status))
    if isinstance(error, OSError) and not isinstance(error, NETWORK) and error.errno is not None:
        return ERRNOS.get(error.errno)
    return None


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, (*NETWORK, aws.ClientError)) or looks_empty(error):
        return True
    if not isinstance(error, OSError):
        return False
    return "AWS Error" in str(error) or error.errno in (errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.EIO)


def looks_empty(error: Exception) -> bool:
    return isinstance(error, pa.ArrowInvalid | OSError) and any(words in str(error) for words in EMPTY)


def transient_reason(error: Exception) -> str:
    """What kept failing until patience ran out, and what to look at."""
    if answer := answer_of(error):
        return f"the S3 server keeps answering {answer[1] or ''} {answer[0]}; look at its log, or try again later"
    if isinstance(error, ResponseParserError):
        return NOT_S3
    if isinstance(error, aws.EndpointConnectionError | aws.ConnectTimeoutError) or "NETWORK_CONNECTION" in str(error):
        return "nothing answers at the endpoint; check storage.endpoint or AWS_ENDPOINT_URL, and that the server runs"
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return f"the file system keeps failing with {error.strerror or error}"
    return f"the connection keeps breaking ({type(error).__name__}); check the network and the server's log"


def no_such_bucket(what: str) -> str:
    found = re.search(r"s3://([^/\s]+)", what)
    name = found[1] if found else "<name>"
    return (
        f"there is no bucket {name}; make it with `aws s3 mb s3://{name}` (and --endpoint-url for a server that is not "
        "AWS), or name another"
    )
