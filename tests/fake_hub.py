"""A hub on loopback: the two endpoints that fetching a file needs, with the hub's headers, status codes and ranges.

The repository's name says how it behaves: `me/403-gated` answers that, `me/ok` gives the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REFUSALS = {
    "me/401": (401, {}),
    "me/401-gated": (401, {"X-Error-Code": "GatedRepo"}),
    "me/403-gated": (403, {"X-Error-Code": "GatedRepo"}),
    "me/403": (403, {}),
    "me/404": (404, {"X-Error-Code": "RepoNotFound"}),
    "me/empty": (404, {"X-Error-Code": "EntryNotFound"}),
    "me/429": (429, {}),
    "me/503": (503, {}),
}


class FakeHub(ThreadingHTTPServer):
    """Serves `data` as model.safetensors of every repository that refuses nothing; keeps what it was asked.

    Attributes:
        asked: (method, path, Range, Authorization) of every request.
        elsewhere: endpoint that downloads of `me/moved` are sent to.
        stop_after: bytes after which a download hangs until `go_on` is set.
    """

    daemon_threads = True

    def __init__(self, data: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.asked, self.stop_after = data, list[tuple[str, str, str, str]](), len(data)
        self.go_on, self.elsewhere = threading.Event(), ""
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def head(self) -> tuple[int, int]:
        """Answers status and headers; (first, end) of the bytes to send."""
        hub, size = self.server, len(self.server.data)
        given = self.headers.get("Range", "")
        hub.asked.append((self.command, self.path, given, self.headers.get("Authorization", "")))
        repository, _, name = self.path.strip("/").partition("/resolve/main/")
        status, headers = REFUSALS.get(repository, (200, {}))
        if repository == "me/moved" and self.command == "GET":
            status, headers = 302, {"Location": f"{hub.elsewhere}/me/ok/resolve/main/{name}"}
        if status == 200 and name != "model.safetensors":
            status, headers = 404, {"X-Error-Code": "EntryNotFound"}
        if status != 200:
            self.answer(status, {**headers, "Content-Length": "0"})
            return 0, 0
        etag = "0" * 64 if repository == "me/lies" else hashlib.sha256(hub.data).hexdigest()
        first = int(given.removeprefix("bytes=").split("-")[0] or 0) if given else 0
        facts = {"ETag": f'"{etag}"', "X-Repo-Commit": "c" * 40, "Accept-Ranges": "bytes"}
        facts["Content-Length"] = str(size - first)
        if given:
            facts["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
        self.answer(206 if given else 200, facts)
        return first, size

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def do_HEAD(self) -> None:
        self.head()

    def do_GET(self) -> None:
        first, end = self.head()
        pause = min(end, self.server.stop_after)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
            self.wfile.write(self.server.data[first:pause])
            if pause < end:
                self.wfile.flush()
                self.server.go_on.wait(60)
                self.wfile.write(self.server.data[max(first, pause) : end])
