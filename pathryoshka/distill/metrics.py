"""What is logged, and where to: a line for people, a JSON line for programs, TensorBoard, and what the config adds.

Prometheus hears of it through `session.Console`, which outlives the workers.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pathryoshka import config, storage


class RunLog:
    """Rank 0's records of a run; `write` takes plain floats and never touches a device.

    `<run>/metrics.jsonl` is written whole at every `flush` (checkpoints and the end), so that a run that continues
    goes on with the lines up to its checkpoint. TensorBoard events go to a local folder that `flush` copies beside it.
    """

    def __init__(
        self, run: config.Run, run_uri: str, local: Path, token: int, start_step: int, say: Callable[[str], None]
    ):
        from tensorboardX import SummaryWriter

        self.run, self.run_uri, self.local, self.say = run, run_uri, local, say
        self.uri = storage.join(run_uri, "metrics.jsonl")
        self.lines = [line for line in read_metrics(run_uri, run.storage) if line["step"] <= start_step]
        self.events = local / "tensorboard" / f"attempt_{token:06d}"
        self.board = SummaryWriter(str(self.events), flush_secs=10)
        self.trackers = list(open_trackers(run))

    def write(self, step: int, values: dict[str, float]) -> None:
        self.lines.append({"step": step, "time": time.time(), **values})
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        for track in self.trackers:
            track(step, values)
        self.say(progress_line(step, values))

    def flush(self) -> None:
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in self.lines)
        storage.write_bytes(self.uri, text.encode(), self.run.storage)
        self.board.flush()
        where = storage.join(self.run_uri, "tensorboard", self.events.name)
        storage.upload_folder(self.events, where, self.run.storage)


def read_metrics(run_uri: str, cfg: config.Storage) -> list[dict[str, Any]]:
    """The lines of `<run>/metrics.jsonl`, oldest first; empty before the first checkpoint."""
    uri = storage.join(run_uri, "metrics.jsonl")
    if not storage.exists(uri, cfg):
        return []
    return [json.loads(line) for line in io.BytesIO(storage.read_bytes(uri, cfg))]


def unexplained(values: dict[str, float]) -> dict[str, float]:
    """{teacher: fraction unexplained} of a log line."""
    return {key.split("/")[1]: v for key, v in values.items() if key.startswith("unexplained/") and key.count("/") == 1}


def mean_unexplained(values: dict[str, float]) -> float:
    """Mean of the teachers' fractions unexplained of a log line that has any."""
    shares = unexplained(values)
    return sum(shares.values()) / len(shares)


def open_trackers(run: config.Run) -> list[Callable[[int, dict[str, float]], None]]:
    """MLflow and Weights & Biases where the config asks for them (extra `tracking`)."""
    trackers: list[Callable[[int, dict[str, float]], None]] = []
    if run.metrics.mlflow_uri:
        import mlflow

        mlflow.set_tracking_uri(run.metrics.mlflow_uri)
        mlflow.start_run(run_name=run.name)
        trackers.append(lambda step, values: mlflow.log_metrics({k: v for k, v in values.items()}, step=step))
    if run.metrics.wandb_project:
        import wandb

        session = wandb.init(project=run.metrics.wandb_project, name=run.name, config=run.model_dump(mode="json"))
        trackers.append(lambda step, values: session.log(values, step=step))
    return trackers


def progress_line(step: int, values: dict[str, float]) -> str:
    """`step 120/400  loss .52  lite0 .48 lite1 .51 | 160 tiles/s, waits 12 %, slowest: lite2 165/s | 2 min left`."""
    shares = "  ".join(f"{name} {value:.3f}" for name, value in sorted(unexplained(values).items()))
    rates = {key.removeprefix("rate/"): v for key, v in values.items() if key.startswith("rate/")}
    slowest = min(rates, key=lambda name: rates[name]) if rates else "-"
    left = values["seconds_left"]
    eta = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return (
        f"step {step}/{values['num_steps']:.0f}  loss {values['loss']:.4f}  unexplained: {shares} | "
        f"{values['tiles_per_s']:.0f} tiles/s, waiting {values['wait_share']:.0%}, "
        f"slowest {slowest} {rates.get(slowest, 0):.0f}/s | {eta} left"
    )
