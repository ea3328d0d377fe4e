"""Rate of a whole run with 5 % of S3 requests failing and 200 ms added, against its own clean rate."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from pathryoshka import config
from pathryoshka.distill.checkpoint import current_ledger
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.runs.driver import fit, prepared
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.phantom import write_phantom
from tests.bench.common import finish
from tests.faulty_proxy import FaultyProxy

GOAL, REPEATS, NUM_VIEWS, CLEAN_GOAL = 0.9, 3, 19_200, 300
FAIL_SHARE, DELAY_S = 0.05, 0.2


def rate(tree: dict[str, object], name: str) -> float:
    """tiles/s of a whole run between its first and last log line; asserts that it was exact."""
    run = config.load_run("debug", None)
    run = config.make_run(config.overlay(config.overlay(run.model_dump(), tree), {"name": name}))
    with prepared(run, (), print) as ready:
        fit(ready, print)
        lines = read_metrics(ready.job.run_uri, run.storage)
        _, ledger = current_ledger(ready.job.run_uri, run.storage)
    assert ledger.ranges == ((0, NUM_VIEWS),), ledger
    return (lines[-1]["views"] - lines[0]["views"]) / (lines[-1]["time"] - lines[0]["time"])


def main() -> None:
    with tempfile.TemporaryDirectory() as name, S3Server(Path(name) / "s3", bucket="bench") as server:
        os.environ.update(server.env)
        mock = {"model": "mock", "device": "mock", "batch_size": 64, "mock_seconds": 0.0}
        tree = {
            "data": {"tiles": ["s3://bench/tiles"], "read_tasks": 3},
            "storage": {"root": "s3://bench/runs"},
            "plan": {"num_views": NUM_VIEWS, "window": 4},
            "views": {"size": 48},
            "teachers": {"models": {"mock0": mock, "mock1": mock}},
            "train": {"global_batch": 128, "micro_batch": 64, "checkpoint_every": 50, "log_every": 10},
        }
        write_phantom("s3://bench/tiles", config.Storage(), num_tiles=4000, num_patients=20, num_sites=2, size=64)
        ratios, rates = [], []
        with FaultyProxy(server.endpoint, FAIL_SHARE, DELAY_S, seed=0) as proxy:
            for repeat in range(REPEATS):
                clean = rate(tree, f"clean{repeat}")
                os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
                faulty = rate(tree, f"faulty{repeat}")
                os.environ["AWS_ENDPOINT_URL"] = server.endpoint
                ratios.append(faulty / clean)
                rates.append(clean)
                print(
                    f"repeat {repeat}: clean {clean:.0f} tiles/s, faulty {faulty:.0f}, faults {dict(proxy.faults)}",
                    flush=True,
                )
        print(f"clean rate {statistics.median(rates):.0f} tiles/s (goal >= {CLEAN_GOAL})")
        finish("faulty-storage", ratios, GOAL, clean_tiles_per_s=statistics.median(rates))


if __name__ == "__main__":
    main()
