"""What is kept of an evaluation beside its scores, so that runs can be compared later without embedding anything again.

`profiles.parquet`: every score with what it is without each group, so that differences between runs are paired by
group. `predictions.parquet`: what each probe said of each tile, for whoever wants to look at single ones.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathryoshka import config, storage
from pathryoshka.evaluate.compare import Sheet
from pathryoshka.evaluate.embed import Embedded
from pathryoshka.evaluate.tally import Profile

PROFILES, PREDICTIONS = "profiles.parquet", "predictions.parquet"


class RecordError(ValueError):
    """Evaluations that cannot be set beside each other; the sentence says why."""


@dataclass(frozen=True)
class Kept:
    """One score of an evaluation; `groups`: digest of the names of the groups, in their order."""

    kind: str
    profile: Profile
    groups: str


Place = tuple[str, str, str, int]
"""(data set, protocol, encoder, width)"""


def write_profiles(folder: str, sheets: Mapping[str, Sheet], cfg: config.Storage) -> None:
    lines = [
        {"dataset": name, "protocol": protocol, "encoder": encoder, "kind": sheet.kinds[encoder], "width": width}
        | {"value": profile.value, "without": profile.without.tolist(), "groups": digest_of(sheet.groups)}
        for name, sheet in sheets.items()
        for (protocol, encoder, width), profile in sheet.profiles.items()
    ]
    write(storage.join(folder, PROFILES), pa.Table.from_pylist(lines), cfg)


def read_profiles(folder: str, cfg: config.Storage) -> dict[Place, Kept]:
    """The scores of the evaluation in `folder`.

    Raises:
        RecordError: there is none.
    """
    out = {}
    for line in read(storage.join(folder, PROFILES), cfg).to_pylist():
        profile = Profile(line["value"], np.array(line["without"]))
        place = (line["dataset"], line["protocol"], line["encoder"], line["width"])
        out[place] = Kept(line["kind"], profile, line["groups"])
    return out


def digest_of(groups: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(groups).encode()).hexdigest()[:16]


def write_predictions(
    folder: str, sheets: Mapping[str, Sheet], embedded: Mapping[str, Embedded], cfg: config.Storage
) -> None:
    """A row a tile that was scored, probe, encoder and width: what it is, what was said, how sure of what it is."""
    parts = []
    for name, sheet in sheets.items():
        tiles = embedded[name]
        for (encoder, width), found in sheet.found.items():
            for protocol, said in found.predictions.items():
                rows = said.rows
                columns = {
                    "dataset": pa.array([name] * len(rows)),
                    "protocol": pa.array([protocol] * len(rows)),
                    "encoder": pa.array([encoder] * len(rows)),
                    "width": pa.array(np.full(len(rows), width, np.int32)),
                    "tile_id": pa.array(tiles.tile_ids[rows].tolist()),
                    "label": pa.array(tiles.labels[rows].tolist()),
                    "predicted": pa.array(said.labels.tolist()),
                    "confidence": pa.array(said.confidence.astype(np.float32)),
                }
                parts.append(pa.table(columns))
    if parts:
        write(storage.join(folder, PREDICTIONS), pa.concat_tables(parts), cfg)


def read_predictions(folder: str, cfg: config.Storage) -> pa.Table:
    return read(storage.join(folder, PREDICTIONS), cfg)


def write(uri: str, table: pa.Table, cfg: config.Storage) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    storage.write_bytes(uri, sink.getvalue(), cfg)


def read(uri: str, cfg: config.Storage) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(storage.read_bytes(uri, cfg)), page_checksum_verification=True)
    except storage.NotFound:
        raise RecordError(f"there is no evaluation at {uri}; run `pathryoshka evaluate` first") from None
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{uri} is damaged ({error}); run `pathryoshka evaluate` again") from None
