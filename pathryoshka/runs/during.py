"""Evaluation beside training: checkpoints are scored in a process of their own, and the student never waits.

Every `evaluate.during.every` steps the newest checkpoint is probed at the smallest and the full width on tiles that are
neither trained on nor scored at the end. The best one is that with the highest mean balanced accuracy of the linear
probe over data sets and both widths; it is kept whatever `train.keep` says, and `export.checkpoint=best` takes it. What
evaluations cost is bounded by a share of the wall time and stands in every line.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.distill.checkpoint import Ref

Say = Callable[[str], None]
POLL_S = 2.0
RULE = "highest mean over data sets of the linear probe's balanced accuracy at the smallest and the full width"


@ray.remote(max_retries=1)
def score_checkpoint(run: config.Run, ref: Ref) -> dict[str, float]:
    """`<data set>/<protocol>/<width>` -> score of one checkpoint."""
    from pathryoshka.evaluate.compare import evaluate
    from pathryoshka.evaluate.contenders import Contender
    from pathryoshka.evaluate.scoring import ALWAYS
    from pathryoshka.runs import results

    asked = run.evaluate.during
    student = results.trained_module(run, ref).student
    device = "cuda" if asked.num_gpus else "cpu"
    contender = Contender("student", "student", results.encode_with(student, device), student.num_params, 0.0)
    widths = tuple(dict.fromkeys((run.student.widths[0], run.student.widths[-1])))
    over = {"tiles": asked.tiles, "splits": asked.splits, "max_tiles": asked.max_tiles}
    cfg = run.evaluate.model_copy(update=over)
    seen = (results.seen_by(run),)
    found = evaluate([contender], widths, cfg, run.storage, size=run.views.size, seen=seen, protocols=ALWAYS)
    if not any(row.protocol == "linear" for row in found.scores.rows):
        raise config.ConfigError("no data set of evaluate.during.tiles has classes, by which checkpoints are chosen")
    return {f"{row.dataset}/{row.protocol}/{row.width}": row.score for row in found.scores.rows}


class Beside:
    """Scores checkpoints of a run until it is told to end; `take` does one of them, if there is one to do."""

    def __init__(self, run: config.Run, run_uri: str, say: Say) -> None:
        self.run, self.uri, self.say = run, run_uri, say
        self.started, self.spent = time.monotonic(), 0.0
        self.last = max((line["step"] for line in evaluations(run_uri, run.storage)), default=0)

    def due(self, final: bool = False) -> Ref | None:
        """The newest whole checkpoint, where it is far enough from the one before and there is time left for it; at the
        end any that was not looked at."""
        asked = self.run.evaluate.during
        if not final and self.spent > asked.share * (time.monotonic() - self.started):
            return None
        refs = checkpoint.complete(self.uri, self.run.storage)
        return refs[-1] if refs and refs[-1].step >= self.last + (1 if final else asked.every) else None

    def take(self, final: bool = False) -> bool:
        ref = self.due(final)
        if ref is None:
            return False
        began, asked = time.monotonic(), self.run.evaluate.during
        # no CPU of its own: a session of one machine has none to spare, and the task would wait for the end of training
        task = score_checkpoint.options(num_cpus=0, num_gpus=asked.num_gpus)  # type: ignore[attr-defined]
        scores: dict[str, float] = ray.get(task.remote(self.run, ref))
        seconds = time.monotonic() - began
        self.last, self.spent = ref.step, self.spent + seconds
        self.note(ref, scores, seconds)
        return True

    def note(self, ref: Ref, scores: dict[str, float], seconds: float) -> None:
        linear = [value for key, value in scores.items() if "/linear/" in key]
        mean, cfg = sum(linear) / len(linear), self.run.storage
        lines = [*evaluations(self.uri, cfg), {"step": ref.step, "checkpoint": ref.name, "score": mean}
                 | {"scores": scores, "seconds": round(seconds, 1)}]  # fmt: skip
        storage.write_json(storage.join(self.uri, "evaluations.json"), lines, cfg)
        best = checkpoint.best(self.uri, cfg)
        better = best is None or mean > best.get("score", 0.0)
        if better and ref in checkpoint.complete(self.uri, cfg):
            checkpoint.write_best(self.uri, {"checkpoint": ref.name, "score": mean, "rule": RULE}, cfg)
        share = self.spent / (time.monotonic() - self.started)
        said = "  ".join(f"{key} {value:.3f}" for key, value in sorted(scores.items()) if "/linear/" in key)
        self.say(
            f"evaluated step {ref.step}: {said}{', the best so far' if better else ''}; {seconds:.0f} s, evaluations "
            f"have taken {share:.0%} of the time"
        )


def evaluations(run_uri: str, cfg: config.Storage) -> list[dict[str, Any]]:
    """What was found so far, by step."""
    uri = storage.join(run_uri, "evaluations.json")
    return storage.read_json(uri, cfg) if storage.exists(uri, cfg) else []


@contextlib.contextmanager
def evaluating(run: config.Run, run_uri: str, say: Say) -> Iterator[None]:
    """Scores checkpoints while the body trains, and the last one after it. A failure is said and ends no training."""
    if not run.evaluate.during.every:
        yield
        return
    beside, done = Beside(run, run_uri, say), threading.Event()

    def work() -> None:
        while not done.wait(POLL_S):
            try:
                beside.take()
            except Exception as error:
                say(f"evaluation beside training failed and is left out from now on: {str(error).splitlines()[-1]}")
                return

    thread = threading.Thread(target=work, name="evaluate-beside", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=600)
    beside.take(final=True)
