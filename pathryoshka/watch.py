"""What ends a run from outside its main thread: a teacher given up, a lease lost, SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathryoshka.storage.lease import Lease

reasons: list[str] = []
"""Why the watchers interrupted the main thread, for the sentence that ends the command."""

told = threading.Event()
"""Set once this process was told to end, by SIGTERM."""

in_good_order = threading.Event()
"""Set while somebody waits for `told` and ends the run with a checkpoint."""


def on_sigterm(signum: int, frame: FrameType | None) -> None:
    """The command's handler: an orderly end as on Ctrl-C, or, while a student trains, after a last checkpoint. A second
    signal does not wait for that."""
    again = told.is_set()
    told.set()
    if again or not in_good_order.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def last_checkpoint(ask: Callable[[], object], grace_s: float) -> Iterator[None]:
    """While it is open, SIGTERM calls `ask` (the workers keep a checkpoint and end), and interrupts only when that took
    longer than `grace_s`."""
    done = threading.Event()

    def look() -> None:
        while not told.wait(0.5):
            if done.is_set():
                return
        if not done.is_set():
            ask()
        if not done.wait(grace_s):
            interrupt(
                f"told to end, and no checkpoint was written within train.grace_s={grace_s:g}; the last one is kept"
            )

    thread = threading.Thread(target=look, name="last-checkpoint", daemon=True)
    thread.start()
    in_good_order.set()
    try:
        yield
    finally:
        in_good_order.clear()
        done.set()
        thread.join()


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
