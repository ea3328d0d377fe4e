"""Pathryoshka: several frozen pathology encoders distilled into one small encoder whose embedding can be cut.

The house, in the order in which a tile walks through it::

    config      the one typed tree of a run          recipes     named trees: demo, debug, paper_b, paper_s
    storage     the only room that knows URLs        lease       one driver a run        s3server  a real S3 on loopback
    tiles/      slides and images -> shards; the plan of what is read; the view of a tile
    teachers/   frozen encoders: facts, features, standardisers, pools of Ray actors
    student/    the small encoder and its heads
    distill/    losses, the step, DeepSpeed, the stream, checkpoints
    evaluate/   one embedding pass, probes, the report
    export/     a folder that plain timm loads; load()
    job         the driver: pools + stream + training + evaluation, wired once
    cli         verbs, no logic                      doctor      what is missing on this machine

`teachers`, `student` and `distill.losses` do not know each other: they meet in `distill.step`. `distill` and
`evaluate` meet in `job`. The maths imports no Ray. tests/test_house.py holds all of these rules.

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
