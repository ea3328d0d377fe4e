"""Watchers that end a run from outside its main thread: a teacher given up, a lease lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from pathryoshka.lease import Lease

reasons: list[str] = []
"""Why the watchers interrupted the main thread, for the sentence that ends the command."""


def interrupt(reason: str) -> None:
    """From a watcher's thread: ends what the main thread waits for, as Ctrl-C would."""
    reasons.append(reason)
    os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def watch(lease: Lease) -> Iterator[None]:
    """Interrupts the run when its lease is lost: two drivers never write one run."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(1.0):
            if lease.lost.is_set():
                interrupt("this driver lost the lease of the run to another one, or could not renew it; it has stopped")
                return

    thread = threading.Thread(target=look, name="lease-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def words_for_interrupts(kind: type[Exception]) -> Iterator[None]:
    """Turns the interrupt of a watcher into its reason; an interrupt by the user stays one."""
    reasons.clear()
    try:
        yield
    except KeyboardInterrupt:
        if reasons:
            raise kind(reasons.pop()) from None
        raise
