"""Pathryoshka: several frozen pathology encoders distilled into one small encoder whose embedding can be cut.

The house, in the order in which a tile walks through it::

    config      the one typed tree of a run          recipes     named trees: demo, debug, paper_b, paper_s
    changes     what may differ under one run name   memory      what a process keeps and has held
    session     Ray, here or on a cluster            watch       ends a run from outside its main thread
    patience    Ray Data's loop waits with whoever is slow
    storage/    the only room that knows URLs: files and folders; retry (what is tried again, errors in words), clients,
                lease (one driver a run), parquet (row groups, checksums looked at), server (a real S3 on loopback)
    tiles/      slides and images -> shards; the plan of what is read; the view of a tile
    teachers/   frozen encoders: facts, features, standardisers, pools of Ray actors
    features/   the one table of vectors; the store of teacher features: recipe, coverage, reader, budget, upkeep
    student/    the small encoder and its heads
    distill/    the stream, losses, the step, DeepSpeed, checkpoints, the loop of a worker; metrics, and where to
    benchmarks/ public data sets: rows of facts, readers by layout, check, convert, fetch
    evaluate/   one embedding pass, kept; folds; protocols/ on every width; scores as sums a group (tally), intervals
                (statistics); runs against runs (across); the report
    export/     a folder that plain timm loads; load(); its other formats (graph, int8, runtimes), a page for browsers,
                publishing
    deploy      formats of an export and what a probe makes of them
    runs/       inputs of the stream, devices asked for; driver: lease + pools + stream + training, wired once; job runs
                it, after a rehearsal where the run is long; during: checkpoints scored beside it; shelving: the same
                for filling a feature store; results: scores, report, export, where these rooms meet
    scorecard   the same scores for any encoders without a run
    embedding/  slides or tiles -> the table of vectors of an exported student, on Ray Data; files for other tools
    progress    the line a long command says now and then
    sweep/      many runs of one base: space, trial, drive, board, run, together (lock-step); record, report; widths
    ablate/     twins of one run on the same views: single teachers, no nesting; published recipes; what sets them apart
    observability/ gauges for Prometheus, boards for Grafana, alerts; both served on loopback, or written as files
    search/     an index over embeddings: segments, short-lists by the first numbers, filters; pictures of neighbours
    serve/      the embedding service on Ray Serve: gate, door, students; neighbours, slides, the page; the client
    demo        all of it at demo size               page        the dress of our pages
    estimate/   hours and money before the first cent: prices, rates, reckon, tell; simulate; measure
    submit/     a job packaged, checked against a cluster, submitted, followed; ray_jobs/ are its entries
    cli/        verbs, no logic                      doctor      what is missing on this machine

`teachers`, `student` and `distill.losses` do not know each other: they meet in `distill.step`. `distill` and
`evaluate` meet in `runs.results`. The maths imports no Ray. tests/test_house.py holds all of these rules.

    >>> model = pathryoshka.load("out/demo/export")     # the exported student, without Ray or DeepSpeed
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # lazily, so that `import pathryoshka` costs nothing and `pathryoshka --help` answers at once
    if name == "load":
        from pathryoshka.export.load import load

        return load
    raise AttributeError(f"module 'pathryoshka' has no attribute {name!r}")
