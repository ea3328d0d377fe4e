"""Encoders as actors: the same vectors as in one process, all replicas at work, nothing left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray

from pathryoshka.evaluate.embed import Encode, embed_tiles
from pathryoshka.evaluate.spread import Spread, spreading
from pathryoshka.session import ray_session
from tests.blotches import CFG, SIZE, good, rows, teacher, write


def with_pid(views: np.ndarray) -> np.ndarray:
    """The process that answers, so that a test can count them."""
    time.sleep(0.05)
    return np.full((len(views), 1), os.getpid(), np.float32)


def pid_encoder() -> Encode:
    return with_pid


def given(encode: Encode) -> Encode:
    return encode


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session(4):
        yield


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "blots", rows(60))


@pytest.mark.usefixtures("session")
def test_vectors_are_those_of_one_process(tiles: str) -> None:
    encoders = {"good": good, "teacher": teacher}
    here = embed_tiles(encoders, tiles, CFG, size=SIZE, batch=8)
    with spreading(2, 0) as seat:
        there = embed_tiles(
            {name: seat(partial(given, encode)) for name, encode in encoders.items()},
            tiles, CFG, size=SIZE, batch=8, at_once=2,
        )  # fmt: skip
    for name in encoders:
        np.testing.assert_array_equal(here.vectors[name], there.vectors[name])
        np.testing.assert_array_equal(here.restained[name], there.restained[name])
    assert list(here.tile_ids) == list(there.tile_ids)


@pytest.mark.usefixtures("session")
def test_every_replica_works_and_none_is_left(tiles: str) -> None:
    with spreading(2, 0) as seat:
        encoder = seat(pid_encoder)
        assert isinstance(encoder, Spread)
        found = embed_tiles({"pid": encoder}, tiles, CFG, size=SIZE, batch=5, at_once=2)
        actors = encoder.actors
    pids = set(found.vectors["pid"][:, 0])
    assert len(pids) == 2 and os.getpid() not in pids
    for actor in actors:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(actor.encode.remote(np.zeros((1, 2, 2, 3), np.uint8)), timeout=30)


@pytest.mark.usefixtures("session")
def test_an_error_is_the_encoders_own(tiles: str, tmp_path: Path) -> None:
    def broken(views: np.ndarray) -> np.ndarray:
        raise ValueError("no such weights")

    with spreading(1, 0) as seat, pytest.raises(Exception, match="no such weights"):
        embed_tiles({"broken": seat(partial(given, broken))}, tiles, CFG, size=SIZE)
