"""A bad network between a client and an S3 server: an HTTP proxy that delays requests and breaks a share of them.

Four faults, drawn with equal chance: `500` and `503` (answered without asking the server), `reset` (the connection is
reset before the server is asked) and `cut` (the server is asked and does its work, then half of its answer arrives
and the connection closes; of an answer without a body half of the headers arrive, so a PUT that was cut has happened
although its sender cannot know). Bodies are held in memory.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("500", "503", "reset", "cut")
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


class FaultyProxy(ThreadingHTTPServer):
    """`with FaultyProxy("http://127.0.0.1:8333", fail_share=0.05, delay_s=0.2, seed=0) as proxy: proxy.endpoint`.

    Args:
        upstream: endpoint of the real server.
        fail_share: share of requests that are broken, 0 ... 1.
        delay_s: seconds added to every request, also to the broken ones.
        seed: of the draws; one draw a request, in order of arrival.
        kinds: the faults to draw from.

    Attributes:
        faults: how often each kind was dealt out.  requests: how many requests came in, by method.
        fail_share, delay_s, kinds: may be changed while it runs.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        upstream: str,
        fail_share: float = 0.05,
        delay_s: float = 0.2,
        seed: int = 0,
        kinds: tuple[str, ...] = KINDS,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = urlsplit(upstream).netloc
        self.fail_share, self.delay_s, self.kinds = fail_share, delay_s, kinds
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.draws = random.Random(seed)
        self.lock = threading.Lock()

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def draw(self, method: str) -> str | None:
        """The fault of the next request, counted; None = it goes through."""
        with self.lock:
            self.requests[method] += 1
            if self.draws.random() >= self.fail_share:
                return None
            kind = self.draws.choice(self.kinds)
            self.faults[kind] += 1
            return kind

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are the point of this server; nothing to print."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    server: FaultyProxy

    def setup(self) -> None:
        super().setup()
        self.up: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        if self.up is not None:
            self.up.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def forward(self) -> None:
        body = self.body()
        fault = self.server.draw(self.command)
        time.sleep(self.server.delay_s)
        if fault == "reset":
            return self.reset()
        if fault in ("500", "503"):
            code, name = (500, "InternalError") if fault == "500" else (503, "SlowDown")
            xml = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>dealt out</Message></Error>".encode()
            return self.answer(code, name, [("Content-Type", "application/xml")], xml, len(xml))
        try:
            status, reason, headers, payload = self.ask(body)
        except (OSError, http.client.HTTPException):
            return self.reset()  # the server is away: the client sees what it would see without us
        length = next((int(v) for k, v in headers if k.lower() == "content-length"), len(payload))
        passed = [(k, v) for k, v in headers if k.lower() not in HOP_HEADERS]
        self.answer(status, reason, passed, payload, length, cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    def ask(self, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        for fresh in (False, True):
            if self.up is None or fresh:
                self.up = http.client.HTTPConnection(self.server.upstream, timeout=60)
                self.up.connect()
                self.up.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self.up.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for key, value in self.headers.items():  # Host unchanged: it is part of the signature
                    if key.lower() not in HOP_HEADERS:
                        self.up.putheader(key, value)
                if body or self.command in ("PUT", "POST"):
                    self.up.putheader("Content-Length", str(len(body)))
                self.up.endheaders(body or None)
                reply = self.up.getresponse()
                return reply.status, reply.reason, reply.getheaders(), reply.read()
            except (OSError, http.client.HTTPException):
                self.up.close()
                self.up = None
                if fresh:
                    raise
        raise AssertionError

    def answer(
        self, status: int, reason: str, headers: list[tuple[str, str]], payload: bytes, length: int, cut: bool = False
    ) -> None:
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{k}: {v}" for k, v in headers)]
        if status != 204 and status != 304:
            lines.append(f"Content-Length: {length}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if self.command == "HEAD":
            payload = b""
        if cut:
            self.wfile.write(head + payload[: len(payload) // 2] if payload else head[: len(head) // 2])
            self.close_connection = True
        else:
            self.wfile.write(head + payload)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.wfile.close()
        self.connection.close()
        self.close_connection = True
