"""A typed client of the service. Asks again, after as long as it is told, where the service is busy or restarts.

>>> client = Client("http://127.0.0.1:8000", token)
>>> client.embed("tile.png", width=64).vector
"""

from __future__ import annotations

import base64
import io
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import requests
from PIL import Image

from pathryoshka.serve import schema

Picture = bytes | str | Path | np.ndarray | Image.Image
"""Encoded bytes, a file, uint8 [H, W, 3] or a Pillow image."""
AGAIN = (429, 502, 503)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
Answer = TypeVar("Answer", bound=schema.Said)


class ServiceError(RuntimeError):
    """What the service said instead of an answer. Attribute `status`: of HTTP, or 0 where none came."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Client:
    """The service at `url`.

    Args:
        token: what its token file holds. patience_s: how long a request may take in all, pauses counted.
    """

    def __init__(self, url: str, token: str | None = None, *, patience_s: float = 60.0) -> None:
        self.url, self.patience_s = url.rstrip("/"), patience_s
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy and no .netrc between us and the service
        if token is not None:
            self.session.headers["authorization"] = f"Bearer {token}"

    def embed(self, image: Picture, width: int | None = None) -> schema.Embedding:
        """One tile."""
        return self.post(schema.Embedding, "/v1/embed", encoded(image), {"width": width})

    def embed_batch(self, images: Sequence[Picture], width: int | None = None) -> schema.Embeddings:
        """Several tiles in one request, as many as `model().max_batch`."""
        body = {"images": [base64.b64encode(encoded(image)).decode() for image in images], "width": width}
        return schema.Embeddings.model_validate_json(self.ask("POST", "/v1/embed/batch", json=body).content)

    def search(
        self,
        image: Picture,
        widths: Sequence[int] | None = None,
        k: int = 10,
        not_patient: str | None = None,
        not_slide: str | None = None,
    ) -> schema.Found:
        """Neighbours for each width; none = all of the model's."""
        query = {"width": widths, "k": k, "not_patient": not_patient, "not_slide": not_slide}
        return self.post(schema.Found, "/v1/search", encoded(image), query)

    def likeness(self, slide_id: str, image: Picture, widths: Sequence[int] | None = None) -> schema.Likeness:
        """How alike the tiles of a slide are to an image."""
        return self.post(schema.Likeness, f"/v1/slides/{slide_id}/likeness", encoded(image), {"width": widths})

    def token_map(self, image: Picture, width: int | None = None) -> np.ndarray:
        """uint8 [rows, columns, 3]: principal components of the tile's tokens."""
        answer = self.ask("POST", "/v1/tokens", data=encoded(image), params={"width": width})
        return np.asarray(Image.open(io.BytesIO(answer.content)))

    def model(self) -> schema.ModelInfo:
        return schema.ModelInfo.model_validate_json(self.ask("GET", "/v1/model").content)

    def slides(self) -> list[schema.SlideInfo]:
        return [schema.SlideInfo.model_validate(one) for one in self.ask("GET", "/v1/slides").json()]

    def health(self) -> schema.Health:
        return schema.Health.model_validate_json(self.ask("GET", "/health").content)

    def post(self, kind: type[Answer], path: str, body: bytes, query: Mapping[str, Any]) -> Answer:
        return kind.model_validate_json(self.ask("POST", path, data=body, params=query).content)

    def ask(self, method: str, path: str, **given: Any) -> requests.Response:
        """The answer, asked for again while the service is busy, unreachable or restarting: requests change nothing.

        Raises:
            ServiceError: refused, or patience is at its end.
        """
        deadline, pause = time.monotonic() + self.patience_s, FIRST_PAUSE_S
        while True:
            left = deadline - time.monotonic()
            try:
                answer = self.session.request(method, self.url + path, timeout=max(left, 0.1), **given)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                status, sentence, wait = 0, f"{self.url} does not answer; is the service running?", pause
            else:
                if answer.ok:
                    return answer
                status, sentence = answer.status_code, words(answer)
                said = answer.headers.get("retry-after", "")
                wait = float(said) if said.isdigit() else pause
                if status not in AGAIN:
                    raise ServiceError(status, sentence)
            wait *= 1 + random.random() / 2  # who was refused together should not come back together
            if time.monotonic() + wait > deadline:
                raise ServiceError(status, sentence)
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)


def words(answer: requests.Response) -> str:
    try:
        return schema.Problem.model_validate_json(answer.content).error
    except ValueError:
        return f"{answer.status_code}: {answer.text[:200]}"


def encoded(image: Picture) -> bytes:
    """The bytes to send: a file and encoded bytes as they are, pixels as PNG."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    sink = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(sink, "PNG", compress_level=1)
    return sink.getvalue()
