"""An exported student for other places: its formats, and what each of them is worth on labelled tiles.

Here export and evaluation meet, as they do in `results` for a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pathryoshka import config
from pathryoshka.export.formats import write_formats
from pathryoshka.export.load import Embedder
from pathryoshka.export.record import FILES, Formats

Say = Callable[[str], None]
PYTORCH = "PyTorch"


def make_formats(
    path: str,
    kinds: Sequence[str],
    run: config.Run,
    *,
    data: Sequence[str] = (),
    browser: bool = False,
    say: Say = print,
) -> Formats:
    """Writes the formats `kinds` (none = all) of the export at `path`; with `data` also their probe scores.

    Args:
        data: labelled tile data sets, or CSVs of tiles and labels.
        run: its sections `evaluate` and `storage` count.

    Raises:
        as `write_formats`, and as `evaluate` where `data` is given.
    """
    score = None
    if data:
        from pathryoshka.scorecard import tiles_of_csv

        tiles = tiles_of_csv(data, "out/formats", run.storage, say)

        def score(embedder: Embedder, files: Mapping[str, Path]) -> list[dict[str, Any]]:
            return probe_scores(path, embedder, files, tiles, run, say)

    return write_formats(path, kinds or tuple(FILES), run.storage, browser=browser, score=score, say=say)


def probe_scores(
    path: str, embedder: Embedder, files: Mapping[str, Path], tiles: Sequence[str], run: config.Run, say: Say = print
) -> list[dict[str, Any]]:
    """A linear probe on the vectors of PyTorch and of each file, by group, at every width: one pass over the tiles.

    Returns:
        rows of dataset, runtime, width, score, low, high (95 % interval), num_tiles, num_groups, unit.

    Raises:
        SeenError: tiles that distillation saw, unless `run.evaluate.allow_seen`; EmbedError, FoldError: no labels.
    """
    from pathryoshka.evaluate.compare import evaluate
    from pathryoshka.evaluate.contenders import Contender
    from pathryoshka.export.runtimes import open_format
    from pathryoshka.scorecard import seen_of

    params = embedder.facts["num_params"]
    encoders = {PYTORCH: embedder.embed, **{name: open_format(file) for name, file in files.items()}}
    contenders = [
        Contender(name, "student", encode, params, embedder.facts["gflop"], "", embedder.widths)
        for name, encode in encoders.items()
    ]
    cfg = run.evaluate.model_copy(update={"tiles": tuple(tiles)})
    found = evaluate(
        contenders, embedder.widths, cfg, run.storage, size=embedder.size, seen=[seen_of(path, run.storage)],
        protocols=("linear",), say=say,
    )  # fmt: skip
    kept = ("dataset", "width", "score", "low", "high", "num_tiles", "num_groups", "unit")
    linear = [row for row in found.scores.rows if row.protocol == "linear"]  # calibration comes with it
    rows = [{"runtime": row.encoder, **{key: getattr(row, key) for key in kept}} for row in linear]
    for name in files:
        say(f"{name} against {PYTORCH}, linear probe by width: {drops(rows, name)}")
    return rows


def drops(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Score minus PyTorch's, a width after the other."""
    base = {(row["dataset"], row["width"]): row["score"] for row in rows if row["runtime"] == PYTORCH}
    mine = [row for row in rows if row["runtime"] == name]
    return ", ".join(f"{row['width']}: {row['score'] - base[row['dataset'], row['width']]:+.3f}" for row in mine)
