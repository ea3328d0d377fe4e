"""Checkpoints in object storage: written whole by every rank, chosen by one function.

`<run>/checkpoints/<step>-<attempt>/` holds what DeepSpeed wrote, `state.json` (step, ledger, resolved config) and one
`rank_<r>.json` a rank with the size and SHA-256 of that rank's files, uploaded last. A checkpoint exists once all its
rank files do and every size agrees, so no barrier and no rename is needed, and a torn one is never chosen. Ray Train's
own checkpoint records are not used: they cannot tell a torn checkpoint, and they retry less than `storage` does.

`<run>/attempts/<token>.json` says which checkpoint an attempt continued from, or `of` which other run it took one over.
The token is the lease's, so whatever a driver that lost its lease still writes lies on a branch that nobody follows.
"""

from __future__ import annotations

import hashlib
import json
import queue
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathryoshka import config, storage
from pathryoshka.tiles.ledger import Ledger

NAME = re.compile(r"(\d{8})-(\d{6})")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, and what to do."""


@dataclass(frozen=True, order=True)
class Ref:
    """A checkpoint by name: optimizer steps done, and the attempt that wrote it."""

    step: int
    token: int

    @property
    def name(self) -> str:
        return f"{self.step:08d}-{self.token:06d}"

    @classmethod
    def parse(cls, name: str) -> Ref:
        match = NAME.fullmatch(name)
        if not match:
            raise CheckpointError(f"{name!r} is not the name of a checkpoint")
        return cls(int(match[1]), int(match[2]))


def uri_of(run: config.Run) -> str:
    """Where a run keeps everything: its name under `storage.root`, seen from any folder (Ray Train's workers run in one
    of their own)."""
    return storage.absolute(storage.join(run.storage.root, run.name))


def folder(run_uri: str, ref: Ref | None = None) -> str:
    root = storage.join(run_uri, "checkpoints")
    return storage.join(root, ref.name) if ref else root


def complete(run_uri: str, cfg: config.Storage) -> list[Ref]:
    """Every whole checkpoint of a run, oldest step first."""
    files = storage.list_files(folder(run_uri), cfg)
    names = sorted({path.split("/")[0] for path in files if NAME.fullmatch(path.split("/")[0])})
    return sorted(Ref.parse(name) for name in names if is_complete(run_uri, name, files, cfg))


def is_complete(run_uri: str, name: str, files: dict[str, int], cfg: config.Storage) -> bool:
    """All ranks' records are there and each file has the size its record says."""
    ranks = [path for path in files if re.fullmatch(rf"{name}/rank_\d+\.json", path)]
    if not ranks:
        return False
    records = [storage.read_json(storage.join(folder(run_uri), path), cfg) for path in ranks]
    if len(records) != records[0]["world_size"] or len({record["group"] for record in records}) > 1:
        return False
    return all(files.get(f"{name}/{path}") == facts["bytes"] for r in records for path, facts in r["files"].items())


def choose(run_uri: str, cfg: config.Storage, at_most: int | None = None) -> Ref | None:
    """The checkpoint to continue from: the last whole one on the line of attempts that leads to now.

    The only chooser: the driver, the data set factory and the workers all call it.

    Args:
        at_most: steps that it may have done, where others could not come further.
    """
    whole = complete(run_uri, cfg)
    attempts = storage.join(run_uri, "attempts")
    names = [Path(path).stem for path in storage.list_files(attempts, cfg)]
    tokens = sorted((int(name) for name in names if name.isdigit()), reverse=True)
    limit = None if at_most is None else Ref(at_most, 0)
    line = max(tokens, default=0)
    for token in tokens:
        if token > line:
            continue
        mine = [ref for ref in whole if ref.token == token and (limit is None or ref.step <= limit.step)]
        if mine:
            return mine[-1]
        parent = storage.read_json(storage.join(attempts, f"{token:06d}.json"), cfg)["resumed_from"]
        if parent is None:
            return None
        before = Ref.parse(parent)
        line = before.token
        limit = before if limit is None or before.step <= limit.step else limit
        if limit in whole:
            return limit
    return None


def common(run_uris: Sequence[str], cfg: config.Storage) -> list[Ref | None]:
    """Of runs that train in lock-step, the last checkpoint that all of them have; none where one has none."""
    refs = [choose(uri, cfg) for uri in run_uris]
    while len({ref and ref.step for ref in refs}) > 1:
        least = min(ref.step if ref else 0 for ref in refs)
        refs = [choose(uri, cfg, least) for uri in run_uris]
    return refs


def record_attempt(run_uri: str, token: int, cfg: config.Storage, at_most: int | None = None) -> Ref | None:
    """Notes where attempt `token` continues from; returns that checkpoint, or None for a fresh start."""
    ref = choose(run_uri, cfg, at_most)
    uri = storage.join(run_uri, "attempts", f"{token:06d}.json")
    storage.write_json(uri, {"token": token, "resumed_from": ref.name if ref else None}, cfg)
    return ref


def take_over(run_uri: str, token: int, other_uri: str, cfg: config.Storage) -> Ref:
    """Has a run go on from where another one stands, whose student and optimizer have the same shape.

    The copy lies under `token`, which the run's lease gave, and counts once `attempts/<token>.json` is there: the last
    thing to be written.

    Raises:
        CheckpointError: the other one has no checkpoint, or a damaged one.
    """
    theirs, before = choose(other_uri, cfg), choose(run_uri, cfg)
    if theirs is None:
        raise CheckpointError(f"{other_uri} has no checkpoint that {run_uri} could take over")
    mine = Ref(theirs.step, token)
    with tempfile.TemporaryDirectory(prefix="pathryoshka-") as scratch:
        local = fetch(other_uri, theirs, Path(scratch) / mine.name, cfg)
        storage.upload_folder(local, folder(run_uri, mine), cfg)
    storage.delete(storage.join(run_uri, "best.json"), cfg)  # it was the best of a past that is left behind
    attempt = {"token": token, "resumed_from": before.name if before else None, "of": folder(other_uri, theirs)}
    storage.write_json(storage.join(run_uri, "attempts", f"{token:06d}.json"), attempt, cfg)
    return mine


def read_state(run_uri: str, ref: Ref, cfg: config.Storage) -> dict[str, Any]:
    return storage.read_json(storage.join(folder(run_uri, ref), "state.json"), cfg)


def current_ledger(run_uri: str, cfg: config.Storage) -> tuple[Ref | None, Ledger]:
    """Where a run stands: the checkpoint to continue from, if any, and what was trained on by then."""
    ref = choose(run_uri, cfg)
    return ref, Ledger.from_json(read_state(run_uri, ref, cfg)["ledger"]) if ref else Ledger()


def common_ledger(run_uris: Sequence[str], cfg: config.Storage) -> tuple[list[Ref | None], Ledger]:
    """Where runs in lock-step stand: the checkpoint of each, and what all were trained on by then."""
    refs = common(run_uris, cfg)
    return refs, Ledger.from_json(read_state(run_uris[0], refs[0], cfg)["ledger"]) if refs[0] else Ledger()


def fetch(run_uri: str, ref: Ref, to: Path, cfg: config.Storage) -> Path:
    """Downloads a checkpoint and checks every digest.

    Raises:
        CheckpointError: a file differs from its record.
    """
    storage.download_folder(folder(run_uri, ref), to, cfg)
    for record in sorted(to.glob("rank_*.json")):
        for path, facts in json.loads(record.read_text())["files"].items():
            if sha256(to / path) != facts["sha256"]:
                where = storage.join(folder(run_uri, ref), path)
                raise CheckpointError(
                    f"{where} is damaged; delete {folder(run_uri, ref)} to continue from the one before"
                )
    return to


def best(run_uri: str, cfg: config.Storage) -> dict[str, Any] | None:
    """`checkpoint`, the best one's name, and what it is best by: its `loss`, or its `score` in an evaluation."""
    uri = storage.join(run_uri, "best.json")
    return storage.read_json(uri, cfg) if storage.exists(uri, cfg) else None


def write_best(run_uri: str, best: dict[str, Any], cfg: config.Storage) -> None:
    storage.write_json(storage.join(run_uri, "best.json"), best, cfg)


def prune(run_uri: str, keep: int, best: Ref | None, cfg: config.Storage) -> None:
    """Deletes whole checkpoints but the last `keep` and the best one; leaves alone what is still being written."""
    for ref in complete(run_uri, cfg)[:-keep]:
        if ref != best:
            storage.delete(folder(run_uri, ref), cfg)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Uploader:
    """Sends one rank's share of each checkpoint in the background, one after the other.

    Use as a context manager: leaving it waits for what is under way. An upload that failed for good raises at the
    next `submit` or on leaving, so training never runs on for hours without a checkpoint.

    Args:
        group: the same on all ranks that run together. Workers that were restarted may write a step again whose first
            upload was cut off; ranks of two groups never make one checkpoint.
    """

    def __init__(self, run_uri: str, rank: int, world_size: int, group: str, cfg: config.Storage):
        self.run_uri, self.rank, self.world_size, self.group, self.cfg = run_uri, rank, world_size, group, cfg
        self.jobs: queue.Queue[tuple[Ref, Path, Any] | None] = queue.Queue(maxsize=1)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.work, name="checkpoint-upload", daemon=True)
        self.thread.start()

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.jobs.put(None)
            self.thread.join()
            self.raise_error()

    def submit(self, ref: Ref, local: Path, then: Any = None) -> None:
        """Uploads `local` as this rank's share of `ref`, deletes it, then calls `then()`; waits while one is queued."""
        self.raise_error()
        self.jobs.put((ref, local, then))

    def raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def work(self) -> None:
        while (job := self.jobs.get()) is not None:
            ref, local, then = job
            try:
                if self.error is None:
                    self.send(ref, local)
                    if then:
                        then()
            except BaseException as error:  # handed to the training thread
                self.error = error
            finally:
                shutil.rmtree(local, ignore_errors=True)

    def send(self, ref: Ref, local: Path) -> None:
        paths = sorted(p for p in local.rglob("*") if p.is_file())
        files = {str(p.relative_to(local)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in paths}
        storage.upload_folder(local, folder(self.run_uri, ref), self.cfg)
        record = {"rank": self.rank, "world_size": self.world_size, "group": self.group, "files": files}
        storage.write_json(storage.join(folder(self.run_uri, ref), f"rank_{self.rank:04d}.json"), record, self.cfg)
