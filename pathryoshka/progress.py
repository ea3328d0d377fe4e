"""The line that a long command says now and then: how far, how fast, what it waits for, how long yet."""

from __future__ import annotations

from collections.abc import Mapping

FIRST_S, MOST_S = 5.0, 60.0


def is_due(since_last_s: float, since_start_s: float) -> bool:
    """Whether another line is worth saying: often at first, then once a minute."""
    return since_last_s > min(MOST_S, FIRST_S + since_start_s / 10)


def line(
    how_far: str,
    done: float,
    total: float,
    what: str,
    elapsed_s: float,
    seconds: Mapping[str, float],
    side_by_side: Mapping[str, int],
) -> str:
    """Rate, slowest stage and time left.

    Args:
        how_far: e.g. `store: 3 of 7 views`. done, total: of `what`.
        seconds: stage -> seconds of work so far, all of its workers together. side_by_side: how many these are.
    """
    slowest = max(seconds, key=lambda stage: seconds[stage] / side_by_side.get(stage, 1), default="start-up")
    left_s = (total - done) * elapsed_s / max(1.0, done)
    return f"{how_far}, {done / max(elapsed_s, 1e-9):.0f} {what}/s, slowest stage {slowest}, {left_s / 60:.0f} min left"
