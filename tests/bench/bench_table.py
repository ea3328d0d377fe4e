"""Minutes of the whole table on GlaS once its tiles are embedded: five encoders, every width, every protocol.

The student of the demo at its widths, its start, random weights and two teachers (and their PCA); embeddings of the
true dimensions with classes and patients in them, since what they hold does not change the time. The ratio is minutes
over 3.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from pathryoshka import config
from pathryoshka.evaluate.compare import compare, score, table
from pathryoshka.evaluate.contenders import Contender
from pathryoshka.evaluate.embed import Embedded
from pathryoshka.evaluate.folds import make_folds
from pathryoshka.evaluate.rulers import by_class
from pathryoshka.evaluate.scores import DataSet
from pathryoshka.evaluate.scoring import ALWAYS
from tests.bench.common import finish

GOAL = 3.0
NUM_TILES, NUM_PATIENTS = 1980, 16
WIDTHS = (48, 96, 192, 384)
DIMS = {"student": 384, "start": 384, "random": 384, "lite0": 1280, "lite1": 1280}


def embedded() -> Embedded:
    rng = np.random.default_rng(0)
    patients = np.sort(rng.integers(0, NUM_PATIENTS, NUM_TILES))
    classes = patients % 2
    vectors = {}
    for name, dim in DIMS.items():
        means, own = rng.standard_normal((2, dim)), rng.standard_normal((NUM_PATIENTS, dim))
        x = 0.4 * means[classes] + 0.5 * own[patients] + rng.standard_normal((NUM_TILES, dim))
        vectors[name] = x.astype(np.float32)
    names = np.array([f"t{i}" for i in range(NUM_TILES)])
    return Embedded(
        tile_ids=names, slides=names, patients=patients.astype(str), sites=np.full(NUM_TILES, "unknown"),
        labels=np.array(["benign", "malignant"])[classes], splits=np.full(NUM_TILES, ""),
        hashes=np.zeros(NUM_TILES, np.uint64), thumbs=(b"",) * NUM_TILES, vectors=vectors, gflop={},
        restained={n: x[:120] for n, x in vectors.items()}, restained_rows=np.arange(120),
        num_rows=NUM_TILES, num_unlabelled=0, failures={},
    )  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    tiles = embedded()
    kinds = {name: name if name in ("student", "start", "random") else "teacher" for name in DIMS}
    contenders = [Contender(name, kind, lambda views: views, 1) for name, kind in kinds.items()]  # type: ignore[arg-type]
    facts = DataSet(
        name="glas", labels={"benign": 1, "malignant": 1}, unit="patient", num_tiles=NUM_TILES,
        num_groups=NUM_PATIENTS, num_folds=5, num_scored=NUM_TILES, num_unlabelled=0, num_failed=0,
    )  # fmt: skip
    started = time.perf_counter()
    folds = make_folds(tiles.labels, tiles.patients)
    ruler = by_class(tiles, folds, (*ALWAYS, *config.Evaluate().protocols))
    sheet = score(contenders, WIDTHS, tiles, ruler, facts)
    rows, differences = table(sheet), compare(sheet)
    minutes = (time.perf_counter() - started) / 60
    print(f"{len(rows)} scores and {len(differences)} differences in {60 * minutes:.0f} s")
    finish("table", [minutes / GOAL], 1.0, below=True, minutes=minutes, rows=len(rows))


if __name__ == "__main__":
    main()
