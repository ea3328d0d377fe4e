"""The loop that anybody would write: timm, a DataLoader, tiles on this disk; run by bench_embed.py in a process of its
own, which prints the seconds from after its imports until its vectors are written, and of these the copying.

    python -m tests.bench.plain_timm EXPORT TILES TO WIDTH WORKERS THREADS BATCH [--copy-from URI] [--limit N]

TILES is a folder of shards. With --copy-from they are first copied out of S3, many requests at once. Channels are
last, as convolutions on a CPU like it.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pathryoshka import config, storage


class Tiles(Dataset[tuple[str, torch.Tensor]]):
    """The tiles of a folder of shards; a worker opens each shard once."""

    def __init__(self, folder: Path, transform: object, limit: int | None) -> None:
        self.paths = sorted(folder.glob("*.parquet"))
        rows = [pq.read_metadata(path).num_rows for path in self.paths]
        self.where = [(shard, row) for shard, n in enumerate(rows) for row in range(n)][:limit]
        self.transform, self.open = transform, (-1, pa.table({}))

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, i: int) -> tuple[str, torch.Tensor]:
        shard, row = self.where[i]
        if self.open[0] != shard:
            self.open = shard, pq.read_table(self.paths[shard], columns=["tile_id", "image"])
        table = self.open[1]
        image = Image.open(io.BytesIO(table["image"][row].as_py())).convert("RGB")
        return table["tile_id"][row].as_py(), self.transform(image)  # type: ignore[operator]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("export", "tiles", "to"):
        parser.add_argument(name, type=Path)
    for name in ("width", "workers", "threads", "batch"):
        parser.add_argument(name, type=int)
    parser.add_argument("--copy-from")
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    began = time.perf_counter()
    if args.copy_from:
        storage.download_folder(args.copy_from, args.tiles, config.Storage())
    copied = time.perf_counter()
    torch.set_num_threads(args.threads)
    model = timm.create_model(f"local-dir:{args.export}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    model = model.to(memory_format=torch.channels_last)
    loader = DataLoader(Tiles(args.tiles, transform, args.limit), args.batch, num_workers=args.workers)
    ids, vectors = list[str](), list[np.ndarray]()
    with torch.inference_mode():
        for names, x_BCHW in loader:
            z_BD = model(x_BCHW.to(memory_format=torch.channels_last))[:, : args.width]
            ids += names
            vectors.append(torch.nn.functional.normalize(z_BD, dim=-1).numpy())
    np.savez(args.to, ids=np.array(ids), vectors=np.concatenate(vectors))
    print(time.perf_counter() - began, copied - began)


if __name__ == "__main__":
    main()
