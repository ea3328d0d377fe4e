"""What every request passes: who asks, how large, how long. Nothing of a body is read before it may be.

Plain ASGI around the application of `door`: bodies are gathered here, within their bounds of bytes and seconds, so that
the routes see whole ones. An error is one sentence in JSON, whatever went wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pathryoshka.serve.admission import Admission
from pathryoshka.serve.tile import Limits, Refused
from pathryoshka.serve.token import allowed

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health", "/docs", "/openapi.json")
OPEN_BELOW = "/page/"
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
log = logging.getLogger(__name__)


class Meters:
    """What is counted of requests, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        given: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("pathryoshka_requests", "Requests answered.", ["route", "status"], **given)
        self.seconds = Histogram(
            "pathryoshka_request_seconds", "From the first byte to the answer.", ["route"], buckets=BUCKETS, **given
        )
        self.inside = Gauge("pathryoshka_tiles_inside", "Tiles being worked on or waiting.", **given)
        self.tiles = Counter("pathryoshka_tiles", "Tiles embedded.", **given)


class Gate:
    """`app` behind it; `wanted` is the digest of the token, or None where anyone may ask."""

    def __init__(
        self, app: App, limits: Limits, wanted: str | None, admission: Admission, meters: Meters, model_id: str
    ) -> None:
        self.app, self.limits, self.wanted, self.admission, self.meters = app, limits, wanted, admission, meters
        self.headers = {**HEADERS, "x-pathryoshka-model": model_id}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                there = [(name.lower(), value) for name, value in message.get("headers", ())]
                names = {name for name, _ in there}
                ours = [(k.encode(), v.encode()) for k, v in self.headers.items() if k.encode() not in names]
                message = {**message, "headers": there + ours}
            await send(message)

        try:
            await self.passed(scope, receive, sent)
        except Exception as error:
            refused = error if isinstance(error, Refused) else unexpected(error)
            if status == 0:  # else something has been said, and cannot be taken back
                await say(refused, sent)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.meters.requests.labels(route, str(status)).inc()
            self.meters.seconds.labels(route).observe(time.perf_counter() - began)

    async def passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        header = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if path not in OPEN and not path.startswith(OPEN_BELOW) and not allowed(header, self.wanted):
            raise Refused(401, "no, or the wrong, token; send the header Authorization: Bearer <token>")
        body = b""
        if scope["method"] in ("POST", "PUT", "PATCH"):
            if self.admission.full:
                raise self.admission.busy()
            body = await self.body_of(scope, receive)
        try:
            async with asyncio.timeout(self.limits.answer_s):
                await self.app(scope, whole(body, receive), send)
        except TimeoutError:
            raise Refused(504, f"no answer within {self.limits.answer_s:.0f} s; try again later", 5) from None

    async def body_of(self, scope: Scope, receive: Receive) -> bytes:
        """The body of a request. Raises Refused: 400 a wrong length, 408 too slow, 413 too long."""
        most = self.limits.max_batch_bytes if scope["path"].endswith("/batch") else self.limits.max_bytes
        too_long = Refused(413, f"the body is too long; at most {most} bytes are read")
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit():
            raise Refused(400, "Content-Length is no number")
        if int(declared) > most:
            raise too_long
        parts, length = [], 0
        try:
            async with asyncio.timeout(self.limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the client left before its body had arrived")
                    parts.append(message.get("body", b""))
                    length += len(parts[-1])
                    if length > most:
                        raise too_long
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(408, f"the body took longer than {self.limits.body_s:.0f} s to arrive") from None


def whole(body: bytes, receive: Receive) -> Receive:
    """A body that is there, as ASGI's receive; after it, whatever else comes."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


def unexpected(error: Exception) -> Refused:
    log.error("a request failed", exc_info=error)
    return Refused(500, f"the service failed ({type(error).__name__}); this is a bug, its log says more")


async def say(refused: Refused, send: Send) -> None:
    """The sentence, as an answer."""
    headers = {"content-type": "application/json", **refused.headers}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": pairs})
    await send({"type": "http.response.body", "body": json.dumps({"error": str(refused)}).encode()})
