"""The demo: the production path at demo size, from pixels to a picture of what each width is worth.

A real S3 server, Ray Data, three real teachers as actors, DeepSpeed ZeRO-1 with two workers, checkpoints, evaluation on
patients that distillation never saw, report and export. Only the sizes are small. The tissue it learns from is phantom
tissue and one real slide; the 70 real tiles it is also scored on are too few to mean much, and the report says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from pathryoshka import config, storage
from pathryoshka.recipes import recipe_by_name
from pathryoshka.runs import job, results
from pathryoshka.runs.devices import logical_cpus
from pathryoshka.session import ray_session
from pathryoshka.storage.server import S3Server

NUM_TILES, NUM_PATIENTS, NUM_SITES = 2000, 30, 3


def demo(out: Path, *, settings: tuple[str, ...] = (), say: Callable[[str], None] = print) -> Path:
    """Runs everything into `out`; returns the path of the report.

    A second call continues where the first one stopped; delete `out` to begin anew.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    with S3Server(out / "s3", bucket="pathryoshka") as server:
        os.environ.update(server.env)
        say(f"S3 server (SeaweedFS) on {server.endpoint}, data under {out / 's3'}")
        run = demo_run(settings)
        with ray_session(logical_cpus(run), say=say):
            make_tiles(run, say)
            job.distill(run, say=say)
        lap(say, started, "distilled")
        results.evaluate_run(run, say=say)
        lap(say, started, "evaluated")
        results.report_run(run, out / "report.html")
        results.export_run(run, out / "export")
    say(f"demo finished in {time.perf_counter() - started:.0f} s")
    say(f"  look:  {out / 'report.html'}")
    say(f"  load:  timm.create_model('local-dir:{out / 'export'}', pretrained=True)")
    return out / "report.html"


def demo_run(settings: tuple[str, ...]) -> config.Run:
    """The `demo` recipe on the demo's own data and server, which the usual AWS variables name."""
    root = "s3://pathryoshka"
    over: dict[str, Any] = {
        # two cores also carry the S3 server: a checkpoint may keep it from answering a heartbeat for a while
        "storage": {"root": f"{root}/runs", "lease_ttl_s": 180},
        "data": {"tiles": [f"{root}/tiles/phantom", f"{root}/tiles/cmu"], "splits": ["distil"]},
        "evaluate": {"tiles": [f"{root}/tiles/phantom", f"{root}/tiles/crc7k"], "splits": ["test"]},
    }
    for text in settings:
        over = config.overlay(over, config.parse_setting(text))
    return config.make_run(config.overlay(recipe_by_name("demo").model_dump(), over))


def make_tiles(run: config.Run, say: Callable[[str], None]) -> None:
    """Phantom tissue for distillation and test, one real slide for distillation, 70 real tiles for test."""
    from pathryoshka.tiles.importing import import_images
    from pathryoshka.tiles.phantom import write_phantom
    from pathryoshka.tiles.slides import cut_slides

    phantom, crc = run.evaluate.tiles
    cmu = run.data.tiles[1]
    data = Path(str(resources.files("pathryoshka"))).parent / "tests" / "data"
    write_phantom(
        phantom,
        run.storage,
        num_tiles=NUM_TILES,
        num_patients=NUM_PATIENTS,
        num_sites=NUM_SITES,
        size=160,
        parallel=True,
    )
    cut_slides([data / "slides" / "CMU-1-Small-Region.svs"], cmu, run.storage, size=224, mpp=0.5, split="distil")
    import_images(data / "crc7k", crc, run.storage, csv=data / "crc7k" / "tiles.csv", split="test")
    say(f"tiles: {NUM_TILES} phantom, one real slide, 70 real test tiles in {storage.join(phantom, '..')}")


def lap(say: Callable[[str], None], started: float, what: str) -> None:
    say(f"[{time.perf_counter() - started:4.0f} s] {what}")
