"""What the verb does: students and doors on Ray Serve; a swap without a gap; an end that finishes what was begun.

Each version of the model is an application of its own, `student-<n>`, and the doors name the one they lead to. A swap
brings the new students up beside the old, then replaces the doors one by one (Serve starts a new door before it stops
an old one, and an old one answers what it has begun), then lets the old students go. So at every moment some door is
open, and each leads to one model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from pathryoshka import config
from pathryoshka.embedding.engine import graph_at_hand
from pathryoshka.export.facts import local_folder, read_facts
from pathryoshka.serve.door import House, make_door
from pathryoshka.serve.gate import Gate
from pathryoshka.serve.lookup import open_lookup
from pathryoshka.serve.remote import Students
from pathryoshka.serve.slides import find_slides
from pathryoshka.serve.student import LARGEST_BATCH, Student
from pathryoshka.serve.tile import Limits
from pathryoshka.session import ray_session

DOOR = "door"
IN_HAND, WAITING = 256, 128
"""Requests that a door has in hand, most of them about to be told 429; requests that wait for it in Serve's proxy."""
DRAIN_S = 60
SPARE_S = 5
"""By which Serve's own time-out comes after ours, which says more."""
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": 60, "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": 30}
"""Seconds until Serve kills a proxy that does not answer: on a busy machine it is slow, not dead."""


@dataclass(frozen=True)
class Service:
    """What is served, and how.

    Attributes:
        model, index: an export; an index of embedded tiles. slides: a folder. token_digest: None = anyone may ask.
    """

    model: str
    index: str | None = None
    slides: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    device: str = "cpu"
    token_digest: str | None = None
    limits: Limits = field(default_factory=Limits)
    storage: config.Storage = field(default_factory=config.Storage)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@serve.deployment(
    name=DOOR,
    max_ongoing_requests=IN_HAND,
    max_queued_requests=WAITING,
    backpressure_config={"status_code": 429, "retry_after_s": 1},
    max_surge_percent=100,
    graceful_shutdown_timeout_s=DRAIN_S,
    graceful_shutdown_wait_loop_s=0.5,
    ray_actor_options={"num_cpus": 0},
)
@serve.ingress(None)
class Door:
    """One replica of the HTTP side: no model, no torch."""

    def __init__(
        self, application: str, facts: dict[str, Any], pace: tuple[float, int], service: dict[str, Any]
    ) -> None:
        rate, batch = pace
        index = None
        if service["index"]:
            store = config.Storage(**service["storage"])
            index = open_lookup(service["index"], facts["model_id"], facts["width"], store)
        self.house = House(
            facts=facts, encoder=Students(application), rate=rate * service["replicas"],
            at_least=2 * batch * service["replicas"], index=index,
            slides=find_slides(service["slides"]), limits=Limits(**service["limits"]), wanted=service["token_digest"],
        )  # fmt: skip

    def __serve_build_asgi_app__(self) -> Gate:  # Serve asks for it after __init__
        return make_door(self.house)


class Running:
    """A service that is up. Not for several processes: whoever started it swaps and ends it.

    Attributes:
        engine: in which its students compute, with its version.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.version, self.engine = service, 0, ""

    def deploy(self, model: str, index: str | None) -> str:
        """Brings up students and doors for `model`, beside what is there; returns its model id.

        Raises:
            LoadError: no export there. EmbedRefused: its graph is damaged, or nothing here computes it.
            ValueError: an index of another model. Nothing has changed then.
        """
        service = self.service
        with local_folder(model, service.storage) as folder:
            facts = read_facts(folder, model)
        graph_at_hand(model, facts["model_id"], service.device, service.storage)  # refused here, not by a dying replica
        if index is not None:
            open_lookup(index, facts["model_id"], facts["width"], service.storage)
        application = f"student-{self.version + 1}"
        gpu = service.device.startswith("cuda")
        students = Student.options(  # type: ignore[attr-defined]
            num_replicas=service.replicas,
            max_ongoing_requests=2 * LARGEST_BATCH,
            max_surge_percent=100,
            graceful_shutdown_timeout_s=DRAIN_S,
            health_check_period_s=2,
            ray_actor_options={"num_gpus": 1, "num_cpus": 0} if gpu else {"num_cpus": 1},
        )
        threads = max(1, (os.cpu_count() or 1) // service.replicas)
        bound = students.bind(model, service.device, threads, service.storage.model_dump())
        serve.run(bound, name=application, route_prefix=None)
        try:
            handle = serve.get_app_handle(application)
            model_id, engine, rate, batch = handle.about.remote().result(timeout_s=30)
            if model_id != facts["model_id"]:
                raise ValueError(f"{model} changed while it was being loaded; try again")
            given = {
                "index": index, "slides": service.slides, "replicas": service.replicas,
                "limits": asdict(service.limits), "token_digest": service.token_digest,
                "storage": service.storage.model_dump(),
            }  # fmt: skip
            door = Door.bind(application, facts, (rate, batch), given)  # type: ignore[attr-defined]
            serve.run(door, name=DOOR, route_prefix="/")
        except BaseException:
            serve.delete(application)
            raise
        if self.version:
            wait_until_replaced(DRAIN_S)
            serve.delete(f"student-{self.version}")
        self.version += 1
        self.engine = engine
        return facts["model_id"]


def wait_until_replaced(seconds: float) -> None:
    """Returns when no old door is left that might still ask old students."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        states = serve.status().applications[DOOR].deployments[DOOR].replica_states
        if not {str(state) for state in states} - {"RUNNING"}:
            return
        time.sleep(0.2)


@contextlib.contextmanager
def running(service: Service, say: Callable[[str], None] = print) -> Iterator[Running]:
    """The service, up and answering, in a Ray session as `ray_session` has it; drained at the end."""
    for name, seconds in PATIENCE.items():  # read by Serve's processes, which a local session hands them to
        os.environ.setdefault(name, str(seconds))
    if not os.environ.get("PATHRYOSHKA_DEBUG"):
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    limits = service.limits
    http = HTTPOptions(
        host=service.host, port=service.port, request_timeout_s=limits.body_s + limits.answer_s + SPARE_S
    )
    # while models are swapped, the old and the new students are there
    with ray_session(2 * service.replicas + 1, say=say):
        try:
            serve.start(
                proxy_location=ProxyLocation.HeadOnly,
                http_options=http,
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            up = Running(service)
            up.deploy(service.model, service.index)
            try:
                yield up
            finally:
                serve.delete(DOOR)  # returns when what was begun has been answered
        finally:
            serve.shutdown()
