"""A process for slides: C code that hangs or crashes on a damaged file takes a child with it, not the run.

A worker keeps one child and gives it slide after slide over a pipe. A child that is silent for too long is killed, one
that died is replaced, and the slide it had is reported. It asks for at most MEMORY_BYTES, so that a file that claims to
be enormous ends the child and not the machine; it ends by itself when its worker is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from pathryoshka.tiles.tiff import SlideError

MEMORY_BYTES = 8 * 2**30
START_S = 120.0
HEADER = struct.Struct("<Q")


class Child:
    """One process that calls what it is sent."""

    def __init__(self) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-m", "pathryoshka.tiles.child"]
        self.surroundings = surroundings()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
        )
        if self.answer(START_S) is None:
            raise RuntimeError("the process that reads slides did not start; see its words on stderr")

    def ask(self, call: tuple[Any, ...], limit_s: float) -> Any:
        """The answer to a call; None when there is none in time, or ever."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            send(self.process.stdin, call)
        return self.answer(limit_s)

    def answer(self, limit_s: float) -> Any:
        assert self.process.stdout is not None
        descriptor, deadline = self.process.stdout.fileno(), time.monotonic() + limit_s
        data = bytearray()
        while len(data) < HEADER.size or len(data) < HEADER.size + HEADER.unpack_from(data)[0]:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(descriptor, 1 << 20) if ready else b""
            if not part:
                return None
            data += part
        return pickle.loads(data[HEADER.size :])

    def end(self) -> int:
        """Kills it; what it ended with before, negative for a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that closed its pipe is about to be gone
            self.process.wait(0.5)
        ended = self.process.poll()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        return 0 if ended is None else ended


current: Child | None = None


def surroundings() -> dict[str, str]:
    """What of the environment a child must share to reach the same storage."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def in_child(function: Callable[..., Any], *args: Any, limit_s: float) -> Any:
    """`function(*args)` in this process's child; what it raises is raised here.

    Raises:
        SlideError: it took longer than `limit_s`, or its process crashed.
    """
    global current
    if current is not None and (current.process.poll() is not None or current.surroundings != surroundings()):
        current.end()
        current = None
    current = current or Child()
    try:
        answer = current.ask((function, args), limit_s)
    except BaseException:  # Ctrl-C: its answer would be taken for that of the next slide
        current.end()
        current = None
        raise
    if answer is None:
        ended = current.end()
        current = None
        if not ended:
            raise SlideError(f"it took longer than {limit_s:.0f} s; the file is damaged, or the time limit too short")
        name = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
        raise SlideError(f"the reader crashed on it ({name}); the file is damaged")
    value, error = answer
    if error is not None:
        raise error
    return value


def send(pipe: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value)
    pipe.write(HEADER.pack(len(data)) + data)
    pipe.flush()


def serve() -> None:
    """The child's side: one call after the other, until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the driver, which ends the worker
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of every damaged tag
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    calls: queue.Queue[Any] = queue.Queue()

    def listen() -> None:
        source = sys.stdin.buffer
        while len(header := source.read(HEADER.size)) == HEADER.size:
            calls.put(pickle.loads(source.read(HEADER.unpack(header)[0])))
        os._exit(0)  # the worker is gone: nobody waits for the slide at hand

    threading.Thread(target=listen, daemon=True).start()
    send(answers, "ready")
    while True:
        function, args = calls.get()
        value: Any = None
        error: Exception | None = None
        try:
            value = function(*args)
        except Exception as raised:
            error = raised
        send(answers, (value, error))


if __name__ == "__main__":
    serve()
