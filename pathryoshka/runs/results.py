"""From the weights of a run to what people want of it: scores, a report, an export.

The one place where distillation, evaluation and export meet.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint, engine
from pathryoshka.distill.checkpoint import Ref
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.distill.model import Distiller, build_module
from pathryoshka.evaluate.compare import Evaluation, evaluate
from pathryoshka.evaluate.contenders import Contender, lazily
from pathryoshka.evaluate.details import Details, details_of
from pathryoshka.evaluate.embed import Encode, batches
from pathryoshka.evaluate.model_card import model_card_section, saw_of
from pathryoshka.evaluate.neighbours import choose_queries, nearest
from pathryoshka.evaluate.record import write_predictions, write_profiles
from pathryoshka.evaluate.report import Story, write_report
from pathryoshka.evaluate.scores import Difference, Row, Scores, as_csv
from pathryoshka.evaluate.token_map import TokenMap, token_maps
from pathryoshka.export.seen import Seen, collect_seen, merge, seen_from_bytes, seen_to_bytes
from pathryoshka.export.verify import verify
from pathryoshka.export.write import NUM_GOLDEN, write_export
from pathryoshka.session import ray_session
from pathryoshka.student.encoder import StudentEncoder
from pathryoshka.teachers import standardize
from pathryoshka.teachers.encoder import load_encoder
from pathryoshka.teachers.own import sha256_of
from pathryoshka.teachers.standardize import Standardiser
from pathryoshka.tiles.phantom import LABELS, phantom_tile

Say = Callable[[str], None]
Seat = Callable[[Callable[[], Encode]], Encode]
NUM_MAPS = 6


class ResultError(RuntimeError):
    """Something a run has not made yet; the sentence says which command makes it."""


def checkpoint_of(run: config.Run) -> Ref:
    """The checkpoint that is scored and exported, as `export.checkpoint` says."""
    uri = checkpoint.uri_of(run)
    ref = checkpoint.choose(uri, run.storage)
    if ref is None:
        raise ResultError(f"run {uri} has no whole checkpoint yet; run `pathryoshka distill` first")
    if run.export.checkpoint == "best":
        best = checkpoint.best(uri, run.storage)
        if best is None:
            raise ResultError(f"run {uri} has no best checkpoint yet; set export.checkpoint=last")
        ref = Ref.parse(best["checkpoint"])
    return ref


def final_weights(run: config.Run, scratch: Path, ref: Ref | None = None) -> dict[str, torch.Tensor]:
    """fp32 weights of student and heads from a checkpoint (none = `checkpoint_of`); the moving average where there is
    one."""
    from safetensors.torch import load_file

    uri, ref = checkpoint.uri_of(run), ref or checkpoint_of(run)
    at = checkpoint.fetch(uri, ref, scratch / ref.name, run.storage)
    state = checkpoint.read_state(uri, ref, run.storage)
    weights = engine.full_weights(at, state["zero_stage"])
    if (at / "ema.safetensors").exists():
        weights |= load_file(at / "ema.safetensors")
    return weights


def fresh_module(run: config.Run, seed: int) -> Distiller:
    """The module as training began with it under `seed`."""
    torch.manual_seed(seed)
    facts = teacher_facts(run)
    return build_module(run, {name: (f["summary_dim"], f["token_dim"]) for name, f in facts.items()})


def trained_module(run: config.Run, ref: Ref | None = None) -> Distiller:
    module = fresh_module(run, run.train.seed)
    with tempfile.TemporaryDirectory() as scratch:
        module.load_state_dict(final_weights(run, Path(scratch), ref), strict=True)
    return module.eval()


def teacher_facts(run: config.Run) -> dict[str, dict[str, Any]]:
    uri = storage.join(checkpoint.uri_of(run), "teachers.json")
    if not storage.exists(uri, run.storage):
        raise ResultError(f"{uri} does not exist; run `pathryoshka distill` with the same name and storage first")
    return storage.read_json(uri, run.storage)


def standardisers_of(run: config.Run) -> dict[tuple[str, str], Standardiser]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "standardisers.safetensors"
        path.write_bytes(storage.read_bytes(storage.join(checkpoint.uri_of(run), path.name), run.storage))
        return standardize.load(path)


def device_of(run: config.Run) -> str:
    return "cuda" if run.train.device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"


def encode_with(student: StudentEncoder, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 views [B, S, S, 3] -> fp32 embeddings [B, width]."""
    student = student.to(device).eval()

    @torch.inference_mode()
    def encode(views_u8: np.ndarray) -> np.ndarray:
        return student(student.normalise(torch.from_numpy(views_u8).to(device)))[0].float().cpu().numpy()

    return encode


def contenders_of(run: config.Run, trained: StudentEncoder, seat: Seat = lazily) -> list[Contender]:
    """The student, the weights it started from, weights that never learned, and each teacher (loaded when asked).

    Args:
        seat: makes an encoder of what loads it: in this process, or as actors.
    """
    device = "cuda" if run.evaluate.num_gpus else device_of(run)
    students = {
        "student": trained,
        "start": fresh_module(run, run.train.seed).student,
        "random": fresh_module(run.model_copy(update={"student": random_start(run)}), run.train.seed + 1).student,
    }
    gflop = trained.gflops()
    out = [
        Contender(k, k, seat(functools.partial(encode_with, s, device)), s.num_params, gflop, sha256_of(s))  # type: ignore[arg-type]
        for k, s in students.items()
    ]
    facts = teacher_facts(run)
    for name, teacher in run.teachers.models.items():
        load = functools.partial(load_encoder, name, teacher, trained.grid, device, run.storage)
        key = digest_of(facts[name]["fingerprint"])
        out.append(Contender(name, "teacher", seat(load), facts[name]["num_params"], None, key))
    return out


@contextlib.contextmanager
def seats(run: config.Run) -> Iterator[Seat]:
    """How encoders are run: `evaluate.replicas` actors of each on a Ray session, or in this process."""
    if not run.evaluate.replicas:
        yield lazily
        return
    from pathryoshka.evaluate.spread import spreading

    count, gpus = run.evaluate.replicas, run.evaluate.num_gpus
    with ray_session(0 if gpus else count * (3 + len(run.teachers.models))), spreading(count, gpus) as seat:
        yield seat


def digest_of(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def random_start(run: config.Run) -> config.Student:
    return run.student.model_copy(update={"start": "random"})


def seen_by(run: config.Run) -> Seen:
    """What distillation saw; read once from its tiles and kept beside the run."""
    uri = storage.join(checkpoint.uri_of(run), "seen.parquet")
    if storage.exists(uri, run.storage):
        return seen_from_bytes(storage.read_bytes(uri, run.storage), uri)
    first, *rest = run.data.tiles
    parts = [collect_seen(first, run.storage, run.data.splits)]
    parts += [collect_seen(tiles, run.storage, run.data.splits, salt=parts[0].salt) for tiles in rest]
    seen = merge(parts)
    storage.write_bytes(uri, seen_to_bytes(seen), run.storage)
    return seen


def evaluate_run(run: config.Run, *, seen: Seen | None = None, alone: bool = False, say: Say = print) -> Scores:
    """Scores every width on `evaluate.tiles`; writes scores and all that lies behind them beside the run.

    Args:
        seen: what distillation saw, where it is known already. alone: the student without those it is compared with.

    Raises:
        SeenError: tiles or patients that distillation saw, unless `evaluate.allow_seen`.
    """
    student = trained_module(run).student
    with seats(run) as seat:
        result = evaluate(
            contenders_of(run, student, seat)[: 1 if alone else None],
            run.student.widths,
            run.evaluate,
            run.storage,
            size=run.views.size,
            seen=(seen or seen_by(run),),
            keep=kept_in(run),
            say=say,
        )
    maps, licences = token_maps_of(student, run, result), {n: f["licence"] for n, f in teacher_facts(run).items()}
    saw = saw_of([seen or seen_by(run)])
    card = model_card_section(result.scores, saw, {"student": run.export.licence, **licences})
    keep_evaluation(result, checkpoint.uri_of(run), run.storage, card, maps)
    return result.scores


def token_maps_of(student: StudentEncoder, run: config.Run, result: Evaluation) -> tuple[TokenMap, ...]:
    """The student's tokens as colours, of the tiles that stand as queries on the first data set; none of slides."""
    if run.evaluate.slides:
        return ()
    name, uri = next(iter(result.embedded)), run.evaluate.tiles[0]
    embedded = result.embedded[name]
    rows = {str(embedded.tile_ids[row]): row for row in choose_queries(embedded, NUM_MAPS)}
    found = batches(uri, run.storage, run.evaluate.splits, frozenset(rows), run.views.size, NUM_MAPS, {})
    facts, views = next(iter(found))
    with torch.inference_mode():
        device = next(student.parameters()).device
        tokens = student(student.normalise(torch.from_numpy(views).to(device)))[1].float().cpu().numpy()
    shown = [rows[fact[0]] for fact in facts]
    thumbs, labels = [embedded.thumbs[row] for row in shown], [str(embedded.labels[row]) for row in shown]
    ends = (run.student.widths[0], run.student.widths[-1])
    return token_maps([fact[0] for fact in facts], labels, thumbs, tokens, student.grid, ends)


def kept_in(run: config.Run) -> str:
    """Where embeddings are kept; no run's name begins with an underscore."""
    return run.evaluate.keep or storage.join(run.storage.root, "_embeddings")


def keep_evaluation(
    result: Evaluation, folder: str, cfg: config.Storage, card: str, maps: tuple[TokenMap, ...] = ()
) -> Details:
    """Writes all that a report, a model card or a comparison of runs needs of it; returns what is only looked at.

    Args:
        card: its part of a model card.
    """
    student = next((c.encoder for c in result.scores.costs if c.kind == "student"), result.scores.costs[0].encoder)
    widths = [row.width for row in result.scores.rows if row.encoder == student]
    ends = (min(widths), max(widths))
    classes = {d.name for d in result.scores.datasets if d.task == "classification"}  # what neighbours may share
    panels = tuple(nearest(name, tiles, student, ends) for name, tiles in result.embedded.items() if name in classes)
    details = details_of(result.sheets, result.embedded, panels, maps)
    write_profiles(folder, result.sheets, cfg)
    write_predictions(folder, result.sheets, result.embedded, cfg)
    storage.write_json(storage.join(folder, "details.json"), details.model_dump(mode="json"), cfg)
    for name, text in (
        ("scores.csv", as_csv(Row, result.scores.rows)),
        ("differences.csv", as_csv(Difference, result.scores.differences)),
        ("model_card.md", card),
    ):
        storage.write_bytes(storage.join(folder, name), text.encode(), cfg)
    storage.write_json(storage.join(folder, "scores.json"), result.scores.model_dump(mode="json"), cfg)
    return details


def scores_of(run: config.Run) -> Scores:
    uri = storage.join(checkpoint.uri_of(run), "scores.json")
    if not storage.exists(uri, run.storage):
        raise ResultError(f"run {checkpoint.uri_of(run)} was not evaluated yet; run `pathryoshka evaluate` first")
    return Scores.model_validate(storage.read_json(uri, run.storage))


def report_run(run: config.Run, to: str | Path | None = None) -> str:
    """Writes the HTML report of an evaluated run, by default as `<run>/report.html`; returns where."""
    uri = checkpoint.uri_of(run)
    scores = scores_of(run)
    details = Details.model_validate(storage.read_json(storage.join(uri, "details.json"), run.storage))
    metrics = read_metrics(uri, run.storage)
    fitted = standardisers_of(run)
    story = Story(
        scores=scores,
        details=details,
        run=run,
        metrics=metrics,
        floors={f"{t}/{k}": s.floor(run.student.widths[-1]) for (t, k), s in fitted.items()},
        licences={name: f["licence"] for name, f in teacher_facts(run).items()},
        seconds={"training": metrics[-1]["time"] - metrics[0]["time"]} if metrics else {},
        machine=f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
    )
    where = str(to) if to else storage.join(uri, "report.html")
    write_report(where, story, run.storage)
    return where


def export_run(run: config.Run, to: str | Path | None = None) -> str:
    """Writes the student as a folder that plain timm loads and checks it in a process without this package.

    Returns:
        Where it is. Golden tiles are phantom tissue: a model must not carry a patient's tile wherever it goes.

    Raises:
        ExportError, VerifyError: what was written is not the student.
    """
    where = str(to or run.export.to or storage.join(checkpoint.uri_of(run), "export"))
    module, uri = trained_module(run), storage.join(checkpoint.uri_of(run), "scores.json")
    scores = scores_of(run) if storage.exists(uri, run.storage) else None
    golden = np.stack([phantom_tile(LABELS[i % len(LABELS)], i, 0, i, 0, run.views.size) for i in range(NUM_GOLDEN)])
    fitted, facts, seen = standardisers_of(run), teacher_facts(run), seen_by(run)
    write_export(module.student, module.heads, fitted, run, facts, scores, golden, seen, where, run.storage)
    verify(where, run.storage)
    return where
