"""The lines of a job until it ends. A lost connection (a laptop asleep, a tunnel that closed) is waited out: the job
goes on without us, and its log is taken up where it was left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp
import requests
from ray.job_submission import JobSubmissionClient

from pathryoshka.submit.client import SubmitError, in_words

STATES = {"SUCCEEDED": 0, "STOPPED": 143, "FAILED": 1}
"""States that end a job, and the exit code where Ray knows no better."""

LOST = (ConnectionError, requests.RequestException, aiohttp.ClientError, TimeoutError, OSError)
PENDING_S = 120


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], None], say: Callable[[str], None]) -> int:
    """Writes a job's log until it ends; returns the exit code for the command that waited.

    Args:
        write: takes log text as it comes.
        say: takes our own lines.

    Raises:
        SubmitError: it did not start within `PENDING_S`, or nobody answered for an hour.
    """
    wait_for_start(client, job)
    written = 0
    lost_since: float | None = None
    while True:
        try:
            skip = written

            async def read(skip: int = skip) -> None:
                nonlocal written
                seen = 0
                async for text in client.tail_job_logs(job):
                    fresh = text[max(0, skip - seen) :]
                    seen += len(text)
                    if fresh:
                        write(fresh)
                        written += len(fresh)

            asyncio.run(read())
            state = state_of(client, job)
            if lost_since is not None:
                say(f"connected again after {time.monotonic() - lost_since:.0f} s")
                lost_since = None
            if state in STATES:
                return end_of(client, job, say)
        except (*LOST, RuntimeError) as error:
            now = time.monotonic()
            if lost_since is None:
                lost_since = now
                say(f"connection lost ({type(error).__name__}); the job goes on, trying again")
            if now - lost_since > 3600:
                raise SubmitError(f"nobody answered for an hour; see later: pathryoshka submit logs {job}") from error
        time.sleep(1.0 if lost_since is None else 3.0)


def wait_for_start(client: JobSubmissionClient, job: str) -> None:
    deadline = time.monotonic() + PENDING_S
    while state_of(client, job) == "PENDING":
        if time.monotonic() > deadline:
            message = (client.get_job_info(job).message or "").strip()
            raise SubmitError(
                f"{job} has not started for {PENDING_S} s: {message or 'the head has no room for its driver'}"
            )
        time.sleep(0.5)


def end_of(client: JobSubmissionClient, job: str, say: Callable[[str], None]) -> int:
    """Says how a job ended; the driver's own exit code where there is one."""
    info = client.get_job_info(job)
    state = str(info.status.value)
    code = STATES[state]
    if state == "FAILED" and info.driver_exit_code:
        code = int(info.driver_exit_code)
    if state == "STOPPED":
        say(f"{job} was stopped; submit it again to go on")
    elif state == "FAILED":
        say(f"{job} failed with exit code {code}; its last lines say why")
    return code


def state_of(client: JobSubmissionClient, job: str) -> str:
    return str(client.get_job_status(job).value)


def stop(client: JobSubmissionClient, address: str, job: str, patience_s: float) -> str:
    """Asks a job to end and waits for it; returns its last state.

    Raises:
        SubmitError: it is there no more, or still runs after `patience_s`.
    """
    with in_words(address):
        client.stop_job(job)
        deadline = time.monotonic() + patience_s
        while (state := state_of(client, job)) not in STATES:
            if time.monotonic() > deadline:
                raise SubmitError(f"{job} still runs {patience_s:.0f} s after it was told to end")
            time.sleep(0.5)
    return state
