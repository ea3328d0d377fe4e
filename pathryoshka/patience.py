"""Ray Data's scheduling loop, told to wait where nothing happened.

The loop sleeps in `ray.wait` until tasks have something to say. Where the consumer is the slow one, as a student mostly
is, every reader has a finished block that back-pressure leaves with it: `ray.wait` returns at once, and Ray 2.60 turns
round as fast as it can, half of a core for as long as the run takes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

PAUSE_S = 0.02
"""After a turn in which no task began or ended and no block was moved. What a consumer prefetches lasts longer."""


class Patience(ExecutionCallback):
    """For `DataContext.custom_execution_callback_classes`."""

    def __init__(self) -> None:
        self.seen, self.turned = -1, 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        done = 0
        for operator in executor._topology or ():
            m = operator.metrics
            done += m.num_tasks_submitted + m.num_tasks_finished + m.num_task_outputs_generated + m.num_outputs_taken
        if done == self.seen and time.perf_counter() - self.turned < PAUSE_S:
            time.sleep(PAUSE_S)
        self.seen, self.turned = done, time.perf_counter()
