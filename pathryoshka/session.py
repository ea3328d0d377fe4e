"""The Ray session of a command: the cluster it was pointed at, or one of its own on this machine.

Ray counts logical CPUs. A local session announces as many as the run's stages ask for, however few cores there are,
so that readers are never starved by workers (a full cluster would wait for ever); each process keeps to one thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pathryoshka.observability.gauges import RUN, Gauges

NUM_STARTS = 4
OWN = "PATHRYOSHKA_OWN_SESSION"
"""In the environment of the processes of a session that a command has started for itself."""


class SessionError(RuntimeError):
    """No Ray session could be had; the sentence says why."""


@contextlib.contextmanager
def ray_session(logical_cpus: int, *, dashboard: bool = False, say: Callable[[str], None] = print) -> Iterator[None]:
    """Connects to RAY_ADDRESS when it is set, else starts a session and ends it again; joins one that is there.

    Args:
        dashboard: of a session of its own: for sweeps, whose gauges it serves, and without which Ray Train cannot
            notice that a trial's driver died and leaves its placement group behind.
    """
    if ray.is_initialized():
        yield
        return
    debug = bool(os.environ.get("PATHRYOSHKA_DEBUG"))
    if not debug:
        for name in ("ray", "ray.data", "ray.train"):  # the run says what matters in lines of its own
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", "The maximum number of concurrent tasks", module="ray.data")
    quiet: dict[str, Any] = {"log_to_driver": debug, "logging_level": "info" if debug else "error"}
    env = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # PyTorch on a CPU takes large tensors in huge pages. In small ones a training step is given its activations
        # anew each time, fault by fault: 3.3 of 11.7 CPU ms a view (the demo's student, batches of 32); so it is 0.3.
        "THP_MEM_ALLOC_ENABLE": "1",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a worker waits as long at a log line: reports are taken then
    }
    os.environ.update(env)  # inherited by a local session's processes; a cluster gets them as its runtime environment
    # Ray would start a process a logical CPU ahead of need: seconds of every core, for workers that then wait.
    os.environ.update({"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"})
    # Ray warns of more processes than cores, which logical CPUs are all about; it measures by this number.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(8, logical_cpus)))
    # Ray gives memory back once a second: until then what the student has used lies there, at any rate.
    os.environ.setdefault("RAY_free_objects_period_milliseconds", "100")
    if on_cluster():
        with sigterm_kept():
            ray.init(runtime_env={"env_vars": env}, **quiet)
    else:
        with sigterm_kept():
            start_node(dashboard, num_cpus=logical_cpus, object_store_memory=object_store_bytes(), **quiet)
        say(f"ray: a session of its own on this machine, {logical_cpus} logical CPUs on {os.cpu_count()} cores")
    try:
        yield
    finally:
        ray.shutdown()


def on_cluster() -> bool:
    """Whether the session is, or will be, one that others started, and not one of this command's own."""
    return bool(os.environ.get("RAY_ADDRESS")) and not os.environ.get(OWN)


@contextlib.contextmanager
def sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts, prints a stack and leaves; a command ends in an order of its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def start_node(dashboard: bool = False, **options: Any) -> None:
    """A Ray node on loopback; tried again where a busy machine did not bring it up within Ray's fixed time: 30 s, and
    60 for its dashboard.

    Raises:
        SessionError: it never came up.
    """
    temp = os.environ.get("RAY_TMPDIR")
    for attempt in range(NUM_STARTS):
        try:
            with address_for_children():
                # "local", or Ray joins whatever cluster somebody started on this machine
                ray.init("local", include_dashboard=dashboard, _node_ip_address="127.0.0.1", _temp_dir=temp, **options)
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error) and "dashboard" not in str(error):
                raise
            time.sleep(5 * (attempt + 1))
    raise SessionError(
        f"Ray did not start {NUM_STARTS} times, 30 to 60 s each: the machine is too busy; try when it is calmer"
    )


@contextlib.contextmanager
def address_for_children() -> Iterator[None]:
    """While a node starts: its processes inherit where it listens.

    What has no address asks any session that it finds on the machine. Beside another session Ray Train's watchman
    asked that one whether its controller lived, heard that nobody knew it, and took the workers' places away.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    told = {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"127.0.0.1:{port}", OWN: "1"}
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            del os.environ[name]


def object_store_bytes() -> int:
    """A fifth of the machine's memory, at most 8 GiB and at most half of /dev/shm."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    room = shm.f_bavail * shm.f_frsize // 2 if shm else memory
    return max(100 * 2**20, min(memory // 5, 8 * 2**30, room))


def beside_the_driver() -> dict[str, Any]:
    """Actor options for what must not die before the driver does: its node, and no CPU."""
    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def end_actors(actors: Mapping[str, ActorHandle]) -> None:
    """Ends named actors and waits until their names are free: a run may follow another at once in one session."""
    for actor in actors.values():
        ray.kill(actor)
    deadline = time.monotonic() + 10
    for name in actors:
        while time.monotonic() < deadline:
            try:
                ray.get_actor(name)
            except ValueError:
                break
            time.sleep(0.05)


@ray.remote
class Console:
    """What the driver and the processes of its run say to each other: lines for its terminal, without Ray's prefixes,
    figures for Prometheus, and whether it was told to end."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.told = False
        self.gauges = Gauges("pathryoshka_run", RUN, ("run",))

    def show(self, run: str, values: dict[str, float]) -> None:
        self.gauges.show({"run": run}, values)

    def put(self, line: str) -> None:
        self.lines.append(line)

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines

    def end(self) -> None:
        self.told = True

    def ending(self) -> bool:
        return self.told


@contextlib.contextmanager
def console(name: str, say: Callable[[str], None]) -> Iterator[str]:
    """Starts a `Console` and a thread that says its lines; yields its name for `speaker` and `shower`."""
    actor = Console.options(name=name, **beside_the_driver()).remote()  # type: ignore[attr-defined]
    stop = threading.Event()

    def relay() -> None:
        while not stop.wait(0.5):
            with contextlib.suppress(ActorUnavailableError):
                for line in ray.get(actor.take.remote()):
                    say(line)

    thread = threading.Thread(target=relay, name="console", daemon=True)
    thread.start()
    try:
        yield name
    finally:
        stop.set()
        thread.join(timeout=5)
        with contextlib.suppress(Exception):  # after a crash, or before it has started, there is nobody to ask
            for line in ray.get(actor.take.remote(), timeout=5):
                say(line)
        with contextlib.suppress(Exception):
            end_actors({name: actor})


def speaker(name: str | None) -> Callable[[str], None]:
    """A function that says a line in the driver's terminal."""
    if name is None:
        return print
    actor = ray.get_actor(name)
    return lambda line: actor.put.remote(line)


def shower(name: str | None, run: str) -> Callable[[dict[str, float]], None]:
    """A function that shows figures of a run (`gauges.RUN`) to Prometheus, from the console's process."""
    if name is None:
        return lambda values: None
    actor = ray.get_actor(name)
    return lambda values: actor.show.remote(run, values)
