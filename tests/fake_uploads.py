"""A hub on loopback that takes uploads: the endpoints of `huggingface_hub` for a commit, large files over LFS."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_a-token-for-tests-only"


class UploadHub(ThreadingHTTPServer):
    """Keeps what it was given.

    Attributes:
        files: path -> bytes, as committed. asked: (method, path) of every request. message: of the commit.
        private: of the repository once it is made; None before. public_already: it was there, and public.
        refuse: status to answer every request with, and to repeat the token in, as a careless proxy does.
    """

    daemon_threads = True

    def __init__(self, *, public_already: bool = False, refuse: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.message, self.refuse = "", refuse
        self.private: bool | None = False if public_already else None
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> UploadHub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: UploadHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, tree: Any) -> None:
        data = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_one(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append((self.command, path))
        body = self.body()
        given = self.headers.get("Authorization", "")
        if self.command == "PUT":  # of an object, to a signed address without the token
            hub.objects[path.rpartition("/")[2]] = body
            return self.answer(200, {})
        if hub.refuse or given != f"Bearer {TOKEN}":
            return self.answer(hub.refuse or 401, {"error": f"no rights for {given}"})
        if path == "/api/repos/create":
            if hub.private is not None:
                return self.answer(409, {"error": "it exists", "url": f"{hub.endpoint}/lab/student"})
            asked = json.loads(body)
            hub.private = asked.get("visibility") == "private" or bool(asked.get("private"))
            return self.answer(200, {"url": f"{hub.endpoint}/lab/student"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "lfs" if name.endswith((".safetensors", ".onnx", ".pt2", ".parquet"))
                      else "regular", "shouldIgnore": False} for name in names]  # fmt: skip
            return self.answer(200, {"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            upload = [{**one, "actions": {"upload": {"href": f"{hub.endpoint}/objects/{one['oid']}"}}}
                      for one in json.loads(body)["objects"]]  # fmt: skip
            return self.answer(200, {"transfer": "basic", "objects": upload})
        if "/commit/" in path:
            self.commit([json.loads(line) for line in body.splitlines()])
            return self.answer(
                200, {"commitUrl": f"{hub.endpoint}/lab/student/commit/{'c' * 40}", "commitOid": "c" * 40}
            )
        if self.command == "GET" and path == "/api/models/lab/student":
            return self.answer(200, {"id": "lab/student", "private": hub.private, "siblings": [], "tags": []})
        return self.answer(404, {"error": f"no {path}"})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "header":
                self.server.message = value["summary"]
            elif kind == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                data = self.server.objects[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"] and len(data) == value["size"]
                self.server.files[value["path"]] = data

    def body(self) -> bytes:
        """Of a known length, or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    do_GET = do_POST = do_PUT = do_HEAD = handle_one
