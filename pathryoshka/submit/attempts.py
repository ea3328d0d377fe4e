"""Submissions of one job of one run: `<run>-<job>-<attempt>`, because Ray takes a submission id only once.

A run's name is its key: while an attempt is alive the next one joins it; after it has ended, however it did, the next
attempt goes on where the run stands.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from ray.job_submission import JobDetails

LIVE = ("PENDING", "RUNNING")


@dataclass(frozen=True)
class Attempt:
    """One submission of ours: its id, number, state (as Ray Jobs has it) and message."""

    id: str
    number: int
    state: str
    message: str

    @property
    def alive(self) -> bool:
        return self.state in LIVE


def attempts_of(stem: str, jobs: Iterable[JobDetails]) -> list[Attempt]:
    """Every attempt whose id is `<stem>-<number>`, oldest first."""
    found = []
    for job in jobs:
        match = re.fullmatch(rf"{re.escape(stem)}-(\d+)", job.submission_id or "")
        if match:
            found.append(Attempt(match[0], int(match[1]), str(job.status.value), job.message or ""))
    return sorted(found, key=lambda attempt: attempt.number)


def next_id(stem: str, before: list[Attempt]) -> str:
    return f"{stem}-{before[-1].number + 1 if before else 1}"


def as_lines(jobs: Iterable[JobDetails], *, everything: bool) -> list[str]:
    """A line a submission, by start."""
    ours = [job for job in jobs if job.submission_id and (everything or (job.metadata or {}).get("run"))]
    lines = []
    for job in sorted(ours, key=lambda job: job.start_time or 0):
        ran = ((job.end_time or time.time() * 1000) - job.start_time) / 60_000 if job.start_time else 0.0
        lines.append(f"{job.submission_id:<40} {job.status.value.lower():<10} {ran:6.1f} min")
    return lines or ["no submissions"]
