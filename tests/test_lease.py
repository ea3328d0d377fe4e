from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pathryoshka import config, storage
from pathryoshka.storage import StorageError
from pathryoshka.storage.lease import Lease, RunTaken

HOLDER = """
import sys
from pathryoshka import config
from pathryoshka.storage.lease import Lease
lease = Lease.acquire(sys.argv[1], config.Storage.model_validate_json(sys.argv[2]), "holder")
print("token", lease.token, flush=True)
lease.lost.wait()
print("lost", flush=True)
"""


def with_ttl(seconds: float, cfg: config.Storage | None = None) -> config.Storage:
    return (cfg or config.Storage()).model_copy(update={"lease_ttl_s": seconds})


def content(run: str, token: int) -> dict[str, Any]:
    return json.loads((Path(run) / "lease" / f"{token:08d}.json").read_bytes())


def eventually(holds: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_of_many_drivers_one_gets_the_run(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cfg, run = request.getfixturevalue("s3_storage") if kind == "s3" else (config.Storage(), str(tmp_path / "run"))
    cfg = with_ttl(8 if kind == "s3" else 4, cfg)
    start = threading.Barrier(6)

    def drive(i: int) -> Lease | str:
        start.wait()
        try:
            return Lease.acquire(run, cfg, f"driver {i}")
        except RunTaken as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(drive, range(6)))
    (won,) = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Lease)]
    lease = outcomes.pop(won)
    assert isinstance(lease, Lease) and lease.token == 1 and not lease.lost.is_set()
    for refusal in outcomes:
        assert f"{run} is being written by driver {won}, seen " in str(refusal) and "\n" not in str(refusal)
    lease.release()
    assert list(storage.list_files(run, cfg)) == ["lease/00000001.json"]


def test_a_released_run_is_taken_at_once_with_a_greater_token(tmp_path: Path) -> None:
    run, cfg = str(tmp_path / "run"), with_ttl(60)
    begun = time.monotonic()
    for token in (1, 2, 3):
        with Lease.acquire(run, cfg, f"driver {token}") as lease:
            assert lease.token == token
            with pytest.raises(RunTaken, match=f"being written by driver {token}, or was until it died; wait for it"):
                Lease.acquire(run, cfg, "other", wait=False)
        lease.release()  # again: nothing happens
        assert not lease.lost.is_set() and not any(thread.is_alive() for thread in lease.threads)
    assert time.monotonic() - begun < 10
    assert content(run, 3) | {"nonce": ""} == {"owner": "driver 3", "nonce": "", "counter": 0, "released": True}


def test_the_heartbeat_counts_and_keeps_the_lease(tmp_path: Path) -> None:
    run, cfg = str(tmp_path / "run"), with_ttl(2)
    with Lease.acquire(run, cfg, "driver") as lease:
        assert eventually(lambda: content(run, 1)["counter"] >= 6, 10)  # more than one ttl
        assert not lease.lost.is_set()
        with pytest.raises(RunTaken, match=r"driver, seen [01] s ago"):
            Lease.acquire(run, cfg, "other")


def test_killed_and_paused_holders_are_taken_over(tmp_path: Path) -> None:
    cfg = with_ttl(2)
    runs = [str(tmp_path / "killed"), str(tmp_path / "paused")]
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDER, run, cfg.model_dump_json()], stdout=subprocess.PIPE, text=True)
        for run in runs
    ]
    killed, paused = holders
    try:
        for holder in holders:
            assert holder.stdout is not None and holder.stdout.readline() == "token 1\n"
        killed.kill()
        os.kill(paused.pid, signal.SIGSTOP)
        begun = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            leases = list(pool.map(lambda run: Lease.acquire(run, cfg, "heir"), runs))
        assert 2.0 <= time.monotonic() - begun < 8
        assert [lease.token for lease in leases] == [2, 2]
        os.kill(paused.pid, signal.SIGCONT)
        assert paused.stdout is not None and paused.stdout.readline() == "lost\n"
        assert not any(lease.lost.is_set() for lease in leases)
        assert content(runs[1], 2)["owner"] == "heir"
        for lease in leases:
            lease.release()
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


@pytest.mark.parametrize("how", ["newer token", "overwritten", "deleted", "damaged"])
def test_a_holder_knows_what_is_not_its_own(tmp_path: Path, how: str) -> None:
    with Lease.acquire(str(tmp_path), with_ttl(300), "driver") as lease:  # no heartbeat comes in between
        assert lease.still_ours()
        own = Path(lease.uri)
        match how:
            case "newer token":
                own.with_name("00000002.json").touch()
            case "overwritten":
                own.write_bytes(Lease(lease.folder, lease.cfg, "driver", 1).content())
            case "deleted":
                own.unlink()
            case "damaged":
                own.write_bytes(own.read_bytes()[:10])
        assert not lease.still_ours()


def test_who_lost_writes_no_more(tmp_path: Path) -> None:
    lease = Lease.acquire(str(tmp_path), with_ttl(4), "driver")
    (tmp_path / "lease" / "00000002.json").write_text("{}")
    assert lease.lost.wait(3)  # by the next heartbeat, not by silence
    lease.release()
    assert not content(str(tmp_path), 1)["released"]
    assert (tmp_path / "lease" / "00000002.json").read_text() == "{}"


def test_silence_is_a_loss_even_while_a_request_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    write = storage.write_bytes

    def hanging(uri: str, data: bytes, cfg: config.Storage) -> None:
        if json.loads(data)["counter"] >= 2:
            hang.wait(20)
        write(uri, data, cfg)

    monkeypatch.setattr(storage, "write_bytes", hanging)
    lease = Lease.acquire(str(tmp_path / "run"), with_ttl(1), "driver")
    assert eventually(lambda: lease.counter == 2, 5) and not lease.lost.is_set()
    begun = time.monotonic()
    assert lease.lost.wait(5) and 0.4 < time.monotonic() - begun < 3
    hang.set()
    lease.release()


def test_storage_that_is_away_for_less_than_a_ttl_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away, failures = threading.Event(), []
    write = storage.write_bytes

    def failing(uri: str, data: bytes, cfg: config.Storage) -> None:
        if away.is_set():
            failures.append(uri)
            raise StorageError("nothing answers")
        write(uri, data, cfg)

    monkeypatch.setattr(storage, "write_bytes", failing)
    lease = Lease.acquire(str(tmp_path / "run"), with_ttl(4), "driver")
    away.set()
    assert eventually(lambda: len(failures) >= 3, 5)
    away.clear()
    counter = lease.counter
    assert eventually(lambda: lease.counter > counter + 1, 5) and not lease.lost.is_set()
    away.set()
    with caplog.at_level(logging.WARNING):
        lease.release()  # cannot be written: says so, does not raise
    assert "the next driver waits 4 s: nothing answers" in caplog.text
    assert not any(thread.is_alive() for thread in lease.threads)


def test_a_token_that_was_never_filled_is_taken_over(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    (tmp_path / "run" / "lease").mkdir(parents=True)
    (tmp_path / "run" / "lease" / "00000007.json").touch()
    with pytest.raises(RunTaken, match="an unknown driver"):
        Lease.acquire(run, with_ttl(1), "driver", wait=False)
    begun = time.monotonic()
    with Lease.acquire(run, with_ttl(1), "driver") as lease:
        assert lease.token == 8 and time.monotonic() - begun >= 1
