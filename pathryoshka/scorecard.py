"""Any encoders on any labelled tiles, without a run: exported students, rows of the zoo, timm models, a lab's own code.

The same comparison that a run gets, with the same report; what each exported student's distillation saw is refused.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pathryoshka import config, storage
from pathryoshka.evaluate.across import Side
from pathryoshka.evaluate.compare import evaluate
from pathryoshka.evaluate.contenders import Contender
from pathryoshka.evaluate.model_card import model_card_section, saw_of
from pathryoshka.evaluate.record import read_profiles
from pathryoshka.evaluate.report import Story, write_report
from pathryoshka.evaluate.scores import Scores
from pathryoshka.export.facts import FACTS
from pathryoshka.export.load import Embedder, load
from pathryoshka.export.seen import Seen, read_seen
from pathryoshka.runs.results import device_of, digest_of, keep_evaluation
from pathryoshka.teachers.encoder import claimed_fingerprint, load_encoder

GRID = (16, 16)
"""Tokens that an encoder answers with; only its summary is scored."""
Say = Callable[[str], None]


def score_encoders(specs: Sequence[str], run: config.Run, to: str, *, say: Say = print) -> Scores:
    """Scores encoders that belong to no run on `run.evaluate.tiles` and writes scores and report into `to`.

    Args:
        specs: `NAME=WHAT` or `WHAT`: the folder or URI of an export, or what `teachers.models.NAME.model` may be.
        run: its sections `evaluate`, `views.size` and `storage` count; views have the size of the first export, if any.

    Raises:
        ConfigError: two encoders of one name; LoadError, EncoderError: one that cannot be loaded.
        SeenError, EmbedError, FoldError, ShardError: as `evaluate`.
    """
    named = dict(named_spec(spec) for spec in specs)
    if len(named) < len(specs):
        raise config.ConfigError("two encoders have the same name; write --encoder NAME=WHAT with a name for each")
    exported = {n: what for n, what in named.items() if storage.exists(storage.join(what, FACTS), run.storage)}
    embedders = {name: load(what, device=device_of(run), storage=run.storage) for name, what in exported.items()}
    size = next((e.size for e in embedders.values()), run.views.size)
    contenders = [
        student(name, embedders[name]) if name in embedders else other(name, what, run) for name, what in named.items()
    ]
    widths = sorted({w for e in embedders.values() for w in e.widths})
    seen = [seen_of(what, run.storage) for what in exported.values()]
    result = evaluate(
        contenders, widths, run.evaluate, run.storage, size=size, say=say,
        seen=seen,
        keep=run.evaluate.keep or storage.join(to, "_embeddings"),
    )  # fmt: skip
    licences = {name: embedder.facts["licence"] for name, embedder in embedders.items()}
    card = model_card_section(result.scores, saw_of(seen), licences)
    details = keep_evaluation(result, to, run.storage, card)
    write_report(storage.join(to, "report.html"), Story(result.scores, details), run.storage)
    say(f"report: {storage.join(to, 'report.html')}")
    return result.scores


def named_spec(spec: str) -> tuple[str, str]:
    """(name, what); a name is what stands before `=`, else the last part of what."""
    name, sep, what = spec.partition("=")
    if sep and "/" not in name and ":" not in name:
        return name, what
    return spec.rstrip("/").replace(":", "/").split("/")[-1], spec


def student(name: str, embedder: Embedder) -> Contender:
    params = sum(p.numel() for p in embedder.timm_model.parameters())
    return Contender(name, "student", embedder.embed, params, None, embedder.model_id, embedder.widths)


def other(name: str, what: str, run: config.Run) -> Contender:
    """A frozen encoder, whole."""
    teacher = config.Teacher(model=what, device="cuda" if device_of(run) == "cuda" else "cpu")
    key = digest_of(claimed_fingerprint(name, teacher, GRID, run.storage))
    encoder = load_encoder(name, teacher, GRID, teacher.device, run.storage)
    return Contender(name, "other", encoder, encoder.num_params, None, key)


def seen_of(what: str, cfg: config.Storage) -> Seen:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "seen.parquet"
        path.write_bytes(storage.read_bytes(storage.join(what, path.name), cfg))
        return read_seen(path)


def tiles_of_csv(given: Sequence[str], to: str, cfg: config.Storage, say: Say = print) -> tuple[str, ...]:
    """Data sets as they are; a CSV of a lab's own tiles and labels is imported below `to` first, once."""
    out = []
    for one in given:
        if not one.lower().endswith(".csv"):
            out.append(one)
            continue
        from pathryoshka.session import ray_session
        from pathryoshka.tiles.importing import import_images

        digest = hashlib.sha256(storage.read_bytes(storage.absolute(one), cfg)).hexdigest()[:8]
        name = one.replace("\\", "/").rsplit("/", 1)[-1][:-4]
        where = storage.join(to, "_tiles", f"{name}-{digest}")
        with ray_session(os.cpu_count() or 1):
            manifest = import_images(one, where, cfg)
        say(f"{one}: {manifest.rows} tiles imported as {where}")
        out.append(where)
    return tuple(out)


def side(text: str, cfg: config.Storage) -> Side:
    """`NAME=RUN,RUN` or `RUN,RUN`: the seeds of one recipe; a run is its folder or URI."""
    name, sep, what = text.partition("=")
    runs = (what if sep else text).split(",")
    return Side(name if sep else runs[0].rstrip("/").split("/")[-1], tuple(read_profiles(uri, cfg) for uri in runs))
