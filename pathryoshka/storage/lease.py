"""Two drivers never write one run: a lease in storage, with a token that only grows.

A run's name is its key. Token n+1 is taken by creating `<run>/lease/<n+1>.json`, which succeeds for one of many. The
holder overwrites its own file as a heartbeat four times a ttl. Who wants the run looks at the newest token: marked as
released, the next one may be taken; else its content is watched, and only after a whole ttl without a change it counts
as dead. Nobody compares clocks of two machines. A holder that was away for a ttl, finds a newer token, or finds its own
file gone or written by another, learns that it lost: `Lease.lost` is set, and it must stop writing.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid

from pathryoshka import config, storage
from pathryoshka.storage.retry import NotFound, StorageError

log = logging.getLogger(__name__)


class RunTaken(StorageError):
    """Another driver writes the run."""


class Lease:
    """The right to write a run until `lost` is set or `release` is called; a context manager.

    Attributes:
        token: grows with every holder of the run (1, 2, ...).
        lost: set when the lease has, or may have, gone to another driver.
    """

    def __init__(self, folder: str, cfg: config.Storage, owner: str, token: int) -> None:
        self.folder, self.owner, self.token, self.ttl_s = folder, owner, token, cfg.lease_ttl_s
        self.cfg = cfg.model_copy(update={"max_attempts": min(2, cfg.max_attempts)})  # the loop below is the retry
        self.uri = token_uri(folder, token)
        self.nonce, self.counter = uuid.uuid4().hex, 0
        self.lost, self.ended = threading.Event(), threading.Event()
        self.written = time.monotonic()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.beat, self.watch)]

    @classmethod
    def acquire(cls, run_uri: str, cfg: config.Storage, owner: str, wait: bool = True) -> Lease:
        """The lease of a run.

        Args:
            owner: names the driver to others, e.g. `user@host, process 1234`.
            wait: watch an unreleased lease for up to `cfg.lease_ttl_s`, in case its holder is dead, before refusing.

        Raises:
            RunTaken: its holder is alive (or, without `wait`, has not released it).
        """
        folder = storage.join(run_uri, "lease")
        while True:
            token = newest_token(folder, cfg)
            if token:
                refuse_if_alive(run_uri, token_uri(folder, token), cfg, wait)
            lease = cls(folder, cfg, owner, token + 1)
            if lease.try_to_take():
                return lease

    def content(self, released: bool = False) -> bytes:
        value = {"owner": self.owner, "nonce": self.nonce, "counter": self.counter, "released": released}
        return json.dumps(value, sort_keys=True).encode()

    def try_to_take(self) -> bool:
        """Whether this driver is the one that made the token's file; then the heartbeat runs."""
        self.written = time.monotonic()
        if not storage.put_if_absent(self.uri, self.content(), self.cfg):
            return False
        for thread in self.threads:
            thread.start()
        return True

    def beat(self) -> None:
        wait_s = self.ttl_s / 4
        while not self.ended.wait(wait_s):
            begun = time.monotonic()
            try:
                # asked twice: one unlucky read of a server under load must not end a run of days
                if not self.still_ours() and not (self.ended.wait(1.0) or self.still_ours()):
                    return self.lost.set()
                self.counter += 1
                storage.write_bytes(self.uri, self.content(), self.cfg)
                self.written, wait_s = begun, self.ttl_s / 4
            except StorageError as error:
                log.warning("no heartbeat for %.0f s of %s: %s", begun - self.written, self.folder, error)
                wait_s = self.ttl_s / 16

    def still_ours(self) -> bool:
        try:
            ours = json.loads(storage.read_bytes(self.uri, self.cfg))["nonce"] == self.nonce
        except (NotFound, ValueError, KeyError):
            return False
        return ours and newest_token(self.folder, self.cfg) == self.token

    def watch(self) -> None:
        """Apart from the heartbeat, which may hang in a request: silence for a ttl is a loss, taken over or not."""
        while (left_s := self.written + self.ttl_s - time.monotonic()) > 0:
            if self.ended.wait(left_s) or self.lost.is_set():
                return
        self.lost.set()

    def release(self) -> None:
        """Ends the heartbeat and lets the next driver in at once. A second call, or one after a loss, does nothing."""
        if self.ended.is_set():
            return
        self.ended.set()
        for thread in self.threads:
            thread.join(timeout=self.ttl_s)
        if self.lost.is_set():
            return
        try:
            storage.write_bytes(self.uri, self.content(released=True), self.cfg)
        except StorageError as error:
            log.warning("the lease stays, so the next driver waits %.0f s: %s", self.ttl_s, error)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def refuse_if_alive(run_uri: str, uri: str, cfg: config.Storage, wait: bool) -> None:
    """Returns when the token's holder released it or was silent for a ttl; RunTaken as soon as it writes."""
    first = storage.read_bytes(uri, cfg)
    holder, released = describe(first)
    if released:
        return
    advice = "wait for it, end it, or choose another run name"
    if not wait:
        raise RunTaken(f"{run_uri} is being written by {holder}, or was until it died; {advice}")
    log.info("%s was last written by %s; watching for %.0f s whether it is alive", run_uri, holder, cfg.lease_ttl_s)
    begun = time.monotonic()
    while (seen_s := time.monotonic() - begun) < cfg.lease_ttl_s:
        time.sleep(min(1.0, cfg.lease_ttl_s / 16))
        now = storage.read_bytes(uri, cfg)
        if now != first:
            holder, released = describe(now)
            if released:
                return
            raise RunTaken(f"{run_uri} is being written by {holder}, seen {seen_s:.0f} s ago; {advice}")


def describe(content: bytes) -> tuple[str, bool]:
    """(owner, released) of a token's file; a file that is still empty has an unknown owner."""
    try:
        value = json.loads(content)
        return str(value["owner"]), bool(value["released"])
    except (ValueError, KeyError, TypeError):
        return "an unknown driver", False


def newest_token(folder: str, cfg: config.Storage) -> int:
    names = [name.removesuffix(".json") for name in storage.list_files(folder, cfg)]
    return max((int(name) for name in names if name.isdigit()), default=0)


def token_uri(folder: str, token: int) -> str:
    return storage.join(folder, f"{token:08d}.json")
