"""Requests that no service should get, of every kind, and what may be answered; any number of them, from a seed."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

import numpy as np

from tests.serving import TOKEN, saved

Random = random.Random


@dataclass(frozen=True)
class Bad:
    """A request, and the statuses that are right for it."""

    kind: str
    right: set[int]
    method: str = "POST"
    path: str = "/v1/embed"
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=lambda: {"authorization": f"Bearer {TOKEN}"})


def a_tile(rng: Random) -> np.ndarray:
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (48, 40, 3), dtype=np.uint8)


def an_image(rng: Random) -> bytes:
    return saved(a_tile(rng), rng.choice(["JPEG", "PNG", "WEBP"]))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with a few bytes of pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 1000)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def batch(images: object, **rest: object) -> bytes:
    return json.dumps({"images": images, **rest}).encode()


JSON = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}


def wrong_type(rng: Random) -> Bad:
    other = rng.choice(
        [
            saved(a_tile(rng), "GIF"),
            saved(a_tile(rng), "BMP"),
            saved(a_tile(rng), "TIFF"),
            b"%PDF-1.7 ...",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            rng.randbytes(rng.randrange(1, 5000)),
            b"hello",
        ]
    )
    return Bad("wrong type", {415}, body=other)


def truncated(rng: Random) -> Bad:
    whole = saved(a_tile(rng), "JPEG")
    return Bad("truncated JPEG", {415, 422}, body=whole[: rng.randrange(1, len(whole) - 200)])


def flipped(rng: Random) -> Bad:
    data = bytearray(an_image(rng))
    for _ in range(rng.randrange(1, 30)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return Bad("flipped bytes", {200, 413, 415, 422}, body=bytes(data))  # some flips only change a colour


def huge_header(rng: Random) -> Bad:
    width, height = rng.choice([(50_000, 50_000), (2**31 - 1, 2**31 - 1), (16, 2**30), (4097, 4096)])
    return Bad("huge header", {413}, body=png_claiming(width, height))


def tiny(rng: Random) -> Bad:
    return Bad("tiny", {422}, body=png_claiming(rng.randrange(1, 16), rng.randrange(1, 16)))


def text_bomb(rng: Random) -> Bad:
    """A PNG with a compressed text of many megabytes before its pixels."""
    text = b"Comment\0\0" + zlib.compress(b"\0" * 2**26)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    whole = saved(a_tile(rng), "PNG")
    return Bad("text bomb", {200, 422}, body=whole[:33] + chunk + whole[33:])


def empty(rng: Random) -> Bad:
    path = rng.choice(["/v1/embed", "/v1/search", "/v1/tokens", "/v1/embed?width=16"])
    return Bad("empty body", {400}, path=path, body=b"")


def deep_json(rng: Random) -> Bad:
    depth = rng.randrange(10_000, 200_000)
    return Bad("deep JSON", {400, 422}, path="/v1/embed/batch", body=b'{"images":' + b"[" * depth, headers=JSON)


def huge_json(rng: Random) -> Bad:
    many = [base64.b64encode(b"x").decode()] * rng.randrange(10_000, 100_000)
    return Bad("huge JSON", {413, 422}, path="/v1/embed/batch", body=batch(many), headers=JSON)


def bad_json(rng: Random) -> Bad:
    body = rng.choice(
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b"1e999999",
            b'{"images": "x"}',
            b'{"images": [1]}',
            batch([]),
            batch(["a"]),
            b'{"images": ["\xff"]}',
            batch([None]),
            batch([{}]),
            b"\xff\xfe",
            batch(["aGVsbG8="], wdith=3),
            batch(["aGVsbG8="], width="wide"),
            batch(["aGVsbG8="], width=10**30),
            batch(["aGVsbG8="], width=-1),
            b'{"images": ["aGVsbG8="], "width": NaN}',
            b'{"images": ["aGVsbG8="], "width": 1e999}',
        ]
    )
    return Bad("bad JSON", {400, 415, 422}, path="/v1/embed/batch", body=body, headers=JSON)


def one_bad_of_several(rng: Random) -> Bad:
    images = [an_image(rng), png_claiming(50_000, 50_000), an_image(rng)]
    return Bad(
        "one bad of several",
        {413},
        path="/v1/embed/batch",
        headers=JSON,
        body=batch([base64.b64encode(image).decode() for image in images]),
    )


def too_long(rng: Random) -> Bad:
    headers = {"authorization": f"Bearer {TOKEN}", "content-length": str(rng.choice([2**25, 2**40, 10**18]))}
    return Bad("too long", {413}, headers=headers)


def bad_query(rng: Random) -> Bad:
    query = rng.choice(
        [
            "width=abc",
            "width=-1",
            "width=0",
            "width=1e3",
            f"width={10**40}",
            "width=17",
            "width=",
            "k=0",
            "k=-5",
            "k=1000000000",
            "k=x",
            "width=16&width=17",
            "width=%00",
            "width=" + "9" * 5000,
        ]
    )
    path = "/v1/search?" if "k=" in query or query.count("width") > 1 else "/v1/embed?"
    return Bad("bad query", {422}, path=path + query, body=saved(a_tile(rng), "PNG"))


def path_trick(rng: Random) -> Bad:
    up = rng.choice(["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "....//", "%252e%252e%252f"]) * rng.randrange(
        1, 9
    )
    path = rng.choice(
        [
            f"/{up}etc/passwd",
            f"/page/{up}etc/passwd",
            f"/page/{up}service.py",
            f"/v1/tiles/{up}etc/passwd",
            f"/v1/slides/{up}etc/passwd/region?x=1&y=1",
            "/v1/tiles/%00",
            "/page/%00",
            "//etc/passwd",
            f"/v1/slides/{quote('a' * 3000)}/deep-zoom/0/0/0.jpeg",
            "/v1/tiles/" + "a/" * 1000,
        ]
    )
    return Bad("path trick", {404, 422, 400}, method="GET", path=path)


def bad_place(rng: Random) -> Bad:
    slide = quote("CMU-1-Small-Region")
    path = rng.choice(
        [
            f"/v1/slides/{slide}/region?x=nan&y=1",
            f"/v1/slides/{slide}/region?x=inf&y=1",
            f"/v1/slides/{slide}/region?x=1e308&y=1",
            f"/v1/slides/{slide}/region?x=1&y=1&side=1e9",
            f"/v1/slides/{slide}/region?x=1&y=1&side=-1",
            f"/v1/slides/{slide}/region?x=1",
            f"/v1/slides/{slide}/deep-zoom/99/0/0.jpeg",
            f"/v1/slides/{slide}/deep-zoom/0/5/5.jpeg",
            f"/v1/slides/{slide}/deep-zoom/-1/0/0.jpeg",
            f"/v1/slides/{slide}/deep-zoom/a/0/0.jpeg",
            f"/v1/slides/{slide}/deep-zoom/{10**30}/0/0.jpeg",
        ]
    )
    return Bad("bad place", {404, 422}, method="GET", path=path)


def no_token(rng: Random) -> Bad:
    said = rng.choice(
        [
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": TOKEN},
            {"authorization": "Bearer"},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": "Bearer \xff\xfe"},
            {"x-token": TOKEN},
        ]
    )
    path = rng.choice(
        ["/v1/embed", "/v1/embed/batch", "/v1/search", "/v1/model", "/metrics", "/v1/slides", "/v1/tiles/a"]
    )
    return Bad(
        "no token", {401}, method="POST" if "e" in path[4:6] else "GET", path=path, body=b"x" * 100, headers=said
    )


def wrong_method(rng: Random) -> Bad:
    path = rng.choice(["/v1/embed", "/v1/search", "/v1/embed/batch"])
    return Bad("wrong method", {405}, method=rng.choice(["GET", "DELETE", "PUT", "PATCH"]), path=path)


KINDS: tuple[Callable[[Random], Bad], ...] = (
    wrong_type,
    truncated,
    flipped,
    huge_header,
    tiny,
    text_bomb,
    empty,
    deep_json,
    huge_json,
    bad_json,
    one_bad_of_several,
    too_long,
    bad_query,
    path_trick,
    bad_place,
    no_token,
    wrong_method,
)


def malformed(number: int, seed: int = 0) -> Iterator[Bad]:
    """So many requests, every kind in turn."""
    rng = random.Random(seed)
    return (make(rng) for make in itertools.islice(itertools.cycle(KINDS), number))


def send(url: str, bad: Bad, timeout_s: float = 60) -> tuple[int, bytes]:
    """Status and body of the answer; the path goes out as it is."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout_s)
    try:
        connection.request(bad.method, bad.path, bad.body, bad.headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
