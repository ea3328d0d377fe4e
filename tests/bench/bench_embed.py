"""Tiles a second of `embed`, whole job, against a plain timm loop with a DataLoader; from S3 and from disk; memory.

The student of the demo (random weights; `--model vit` for a ViT-Ti/16 at 224) over the real tiles that ship, turned and
flipped, JPEG of 224 pixels, in shards. Both sides give the same vectors, which is checked, and both write them.

The clock of `embed` runs from its call in a running Ray session until the manifest is written: lease, the start of its
processes, reading, decoding, the student, writing. That of the loop runs from after its imports until its vectors are
written: copying the shards out of S3 where they lie there, loading the model, starting workers, all passes. So imports
are counted against `embed` only; what Ray's session and the loop's imports take is printed and recorded beside it, with
the ratio that comes of counting them, too. The export carries its ONNX graph, as `pathryoshka formats` leaves it, once
for a student, in seconds that are printed; without (`--no-graph`) `embed` makes one itself, on its own clock. The loop
has the best of some settings (workers, threads, batch), found beforehand, and channels last. Repeats are interleaved,
and S3 and disk take turns to be first, for the first job of a session starts what the others find: three actors of Ray
Data and the readers, 20 s of CPU on two busy cores. Beside wall
time stand CPU seconds, which say more on a machine that others use: those of the loop with its imports, those of
`embed` with its actors' and without its session's start. At the end, memory over 100,000 tiles.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import simplejpeg

from pathryoshka import config, storage
from pathryoshka.embedding.job import embed
from pathryoshka.embedding.rows import VECTOR
from pathryoshka.embedding.stream import logical_cpus
from pathryoshka.embedding.table import read_table
from pathryoshka.export.formats import write_formats
from pathryoshka.features.table import as_matrix
from pathryoshka.recipes import recipe_by_name
from pathryoshka.session import ray_session
from pathryoshka.storage.server import S3Server
from pathryoshka.student.encoder import build_student
from pathryoshka.tiles.shards import Manifest, ShardEntry, write_manifest, write_shard
from pathryoshka.tiles.stats import TileStats
from pathryoshka.tiles.views import decode
from tests.bench.common import finish
from tests.bench.sampling import PERIOD_S, Sampler, slope
from tests.exports import export, heads_of

GOAL = 1.5
CRC = Path(__file__).parents[1] / "data" / "crc7k"
CFG = config.Storage()
ROWS = 1024
STUDENTS = {
    "demo": (recipe_by_name("demo").student, 128, 96),
    "vit": (config.Student(model="vit_tiny_patch16_224", widths=(16, 64, 192)), 224, 64),
}
"""Model, side of its views, width."""
Setting = tuple[int, int, int]
"""Workers, threads, batch."""
SETTINGS = ((0, 2, 64), (1, 1, 32), (1, 1, 128), (1, 2, 128), (2, 1, 32), (2, 1, 128))
"""That make sense on two cores."""


@dataclass(frozen=True)
class Plain:
    """Seconds of the loop: by its own clock, of these copying, of the whole process, of the CPU."""

    clock: float
    copying: float
    process: float
    cpu: float


def write_student(where: Path, name: str, graph: bool) -> int:
    """Exports a student with random weights, with its ONNX graph if so asked; its width."""
    cfg, size, width = STUDENTS[name]
    student = build_student(cfg, size)
    run = config.Run(name="b", student=cfg, views=config.Views(size=size), export=config.Export(licence="mit"))
    golden = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    export(where, student=student, heads=heads_of(student, cfg), run=run, golden=golden, scores=None)
    if graph:
        began = time.perf_counter()
        write_formats(where, ("onnx",))
        print(f"the export's ONNX graph, once: {time.perf_counter() - began:.0f} s", flush=True)
    return width


def write_tiles(uri: str, num: int) -> Manifest:
    """Real tiles, each in eight positions and again and again, under names of their own."""
    originals = [decode(path.read_bytes()) for path in sorted(CRC.glob("*.jpg"))]
    turned = [np.rot90(t, k)[:, ::f] for t in originals for k in range(4) for f in (1, -1)]
    images = [simplejpeg.encode_jpeg(np.ascontiguousarray(t), 92, colorsubsampling="444") for t in turned]
    entries = []
    for start in range(0, num, ROWS):
        which = range(start, min(num, start + ROWS))
        n = len(which)
        fixed = {"patient_id": "p", "site": "here", "tissue": 1.0, "width": 224, "height": 224}
        columns = {name: [value] * n for name, value in fixed.items()}
        empty = {name: pa.nulls(n) for name in ("x", "y", "mpp", "label", "split")}
        table = pa.table({
            "tile_id": [f"t{i:07d}" for i in which], "slide_id": [f"s{start // ROWS}"] * n, **columns, **empty,
            "image": pa.array([images[i * 89 % len(images)] for i in which], pa.binary()),
        })  # fmt: skip
        entries.append(write_shard(uri, f"tiles-{start // ROWS:05d}.parquet", table, CFG, stats=TileStats()))
    return write_manifest(uri, entries, {"kind": "bench"}, CFG)


def plain(folder: Path, export_to: Path, width: int, how: Setting, *more: str) -> Plain:
    """One run of the loop. `more`: its options."""
    command = [sys.executable, "-m", "tests.bench.plain_timm", str(export_to), str(folder), str(folder) + ".npz"]
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, str(width), *map(str, how), *more], env=env, capture_output=True, text=True, check=True
    )
    whole = time.perf_counter() - began
    clock, copying = map(float, done.stdout.split()[-2:])
    since = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = since.ru_utime + since.ru_stime - used.ru_utime - used.ru_stime
    return Plain(clock, copying, whole, cpu)


def best_setting(folder: Path, export_to: Path, width: int, limit: int) -> Setting:
    """The quickest of some on the first `limit` tiles."""
    tried = {}
    for how in SETTINGS:
        tried[how] = plain(folder, export_to, width, how, "--limit", str(limit)).clock
        print(f"  loop with workers, threads, batch {how}: {limit / tried[how]:.0f} tiles/s", flush=True)
    return min(tried, key=lambda how: tried[how])


def ours(tiles: str, to: str, export_to: Path, width: int, sampler: Sampler) -> tuple[float, float]:
    """Seconds, and of the CPU, all processes of the session together (a sample each half second)."""
    began, at = time.perf_counter(), len(sampler.cpu) - 1
    embed([tiles], str(export_to), to, CFG, width=width, device="cpu", say=lambda line: None)
    wall = time.perf_counter() - began
    time.sleep(2 * PERIOD_S)
    cpu = sum(float(used.sum()) for used in sampler.cpu[-1].values())
    return wall, cpu - sum(float(used.sum()) for used in sampler.cpu[at].values())


def refuse_other_vectors(folder: Path, to: str) -> float:
    """The largest difference between the loop's vectors and ours."""
    theirs, table = np.load(str(folder) + ".npz"), read_table(to, CFG)
    at = {tile_id: i for i, tile_id in enumerate(theirs["ids"].tolist())}
    order = [at[tile_id] for tile_id in table["tile_id"].to_pylist()]
    assert sorted(order) == list(range(len(at))), "not every tile exactly once"
    worst = float(np.abs(as_matrix(table[VECTOR]) - theirs["vectors"][order]).max())
    assert worst < 1e-4, f"the vectors differ by {worst}"
    return worst


def memory(base: Path, manifest: Manifest, export_to: Path, width: int, num: int) -> dict[str, float]:
    """MiB that the driver and what it started gain over `num` tiles once they have settled, by role, and their peak."""
    shards: list[ShardEntry] = []
    (base.parent / "many").mkdir()
    while sum(shard.rows for shard in shards) < num:
        for shard in manifest.shards:
            name = f"tiles-{len(shards):05d}.parquet"
            os.link(base / shard.path, base.parent / "many" / name)
            shards.append(shard.model_copy(update={"path": name}))
    write_manifest(str(base.parent / "many"), shards, {"kind": "bench"}, CFG)
    with Sampler() as sampler:
        time.sleep(2 * PERIOD_S)
        began = time.time()
        ours(str(base.parent / "many"), str(base.parent / "table"), export_to, width, sampler)
        ended = time.time()
    rows = [i for i, t in enumerate(sampler.times) if began + (ended - began) / 3 <= t <= ended - 5]
    share = [(sampler.times[i] - began) / (ended - began) for i in rows]
    grows = {
        role: slope(share, [sampler.memory[i][role] for i in rows])
        for role in sampler.memory[rows[-1]]
        if all(role in sampler.memory[i] for i in rows)
    }
    peak = max(sum(sampler.memory[i].values()) + sampler.store[i] / 2**20 for i in rows)
    return {role: round(value, 1) for role, value in grows.items()} | {"peak": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=20_000)
    parser.add_argument("--search-tiles", type=int, default=2000, help="on which the settings of the loop are tried")
    parser.add_argument("--memory-tiles", type=int, default=100_000, help="0 = leave that out")
    parser.add_argument("--model", choices=STUDENTS, default="demo")
    parser.add_argument("--no-graph", action="store_true", help="an export without its ONNX graph")
    args = parser.parse_args()
    ratios: dict[str, list[float]] = {"s3": [], "disk": [], "s3 with starts": [], "s3 cpu": [], "disk cpu": []}
    rates: dict[str, list[float]] = {f"{who} {where}": [] for where in ("s3", "disk") for who in ("embed", "loop")}
    with tempfile.TemporaryDirectory() as name, S3Server(Path(name) / "s3", bucket="bench") as server:
        os.environ.update(server.env)
        # Ray runs its workers at nice 15: whatever else runs on this machine would slow one side only
        os.environ.update({"RAY_worker_niceness": "0"})
        folder = Path(name)
        tiles, far, export_to = folder / "tiles", "s3://bench/tiles", folder / "export"
        width = write_student(export_to, args.model, not args.no_graph)
        manifest = write_tiles(str(tiles), args.tiles)
        storage.upload_folder(tiles, far, CFG)
        how = best_setting(tiles, export_to, width, min(args.tiles, args.search_tiles))
        print(f"the loop takes {how}", flush=True)
        began = time.perf_counter()
        with ray_session(logical_cpus(os.cpu_count() or 1)):
            session_s = time.perf_counter() - began
            for repeat in range(args.repeats):
                for where, source in (("s3", far), ("disk", str(tiles)))[:: -1 if repeat % 2 else 1]:
                    copy, to = folder / f"copy-{repeat}", str(folder / f"table-{where}-{repeat}")
                    more = ("--copy-from", far) if where == "s3" else ()
                    loop = plain(copy if more else tiles, export_to, width, how, *more)
                    with Sampler([server.pid]) as sampler:
                        time.sleep(2 * PERIOD_S)
                        mine, cpu = ours(source, to, export_to, width, sampler)
                    worst = refuse_other_vectors(copy if more else tiles, to)
                    shutil.rmtree(copy, ignore_errors=True)
                    ratios[where].append(loop.clock / mine)
                    ratios[f"{where} cpu"].append(loop.cpu / cpu)
                    if where == "s3":
                        ratios["s3 with starts"].append(loop.process / (mine + session_s))
                    rates[f"embed {where}"].append(args.tiles / mine)
                    rates[f"loop {where}"].append(args.tiles / loop.clock)
                    print(f"repeat {repeat}, {where}: embed {args.tiles / mine:.0f} tiles/s, loop "
                          f"{args.tiles / loop.clock:.0f} (copying {loop.copying:.1f} s, starting "
                          f"{loop.process - loop.clock:.1f} s), ratio {ratios[where][-1]:.2f}, of CPU seconds "
                          f"{ratios[f'{where} cpu'][-1]:.2f}; vectors within {worst:.0e}", flush=True)  # fmt: skip
            grown = memory(tiles, manifest, export_to, width, args.memory_tiles) if args.memory_tiles else {}
    print(f"from disk {statistics.median(ratios['disk']):.2f} (goal >= 1)")
    print(f"from S3, with Ray's start ({session_s:.1f} s) and the loop's imports: "
          f"{statistics.median(ratios['s3 with starts']):.2f}")  # fmt: skip
    if grown:
        print(f"memory over {args.memory_tiles} tiles, MiB gained by role, and peak: {grown}")
    finish("embed", ratios["s3"], GOAL, model=args.model, tiles=args.tiles, ratios=ratios, tiles_per_s=rates,
           loop=how, session_s=session_s, memory_tiles=args.memory_tiles, memory_mib=grown, graph=not args.no_graph,
           load=os.getloadavg()[0])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
