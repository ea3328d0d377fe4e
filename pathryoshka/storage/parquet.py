"""Parquet files in storage, read by row group: one request each, every page's checksum looked at.

A footer costs a request of its own, and a plan visits a file many times, so footers are kept per process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.dataset as pads

from pathryoshka import config, storage

FORMAT = pads.ParquetFileFormat(
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(
        pre_buffer=True,
        cache_options=pa.CacheOptions(hole_size_limit=2**18, range_size_limit=2**26, lazy=False),
        page_checksum_verification=True,
    )
)
FOOTERS_KEPT = 1024
footers: OrderedDict[tuple[str, str], pads.ParquetFileFragment] = OrderedDict()
footers_lock = threading.Lock()


class NotWhatWasWritten(ValueError):
    """The file is there, and is another one or damaged; the message says how it was noticed."""


def fragment_of(uri: str, num_bytes: int, cfg: config.Storage) -> pads.ParquetFileFragment:
    """The file as arrow reads it, unopened: that its size is known saves asking storage for it."""
    filesystem, path = storage.filesystem(uri, cfg)
    return FORMAT.make_fragment(path, filesystem, file_size=num_bytes)


def opened(
    uri: str, num_bytes: int, identity: str, refuse: Callable[[pads.ParquetFileFragment], None], cfg: config.Storage
) -> pads.ParquetFileFragment:
    """The file with its footer.

    Args:
        identity: names its content, e.g. its SHA-256: footers are kept under it.
        refuse: raises where the footer is not the one that is expected.
    """
    fragment = fragment_of(uri, num_bytes, cfg)
    with footers_lock:
        kept = footers.get((uri, identity))
        if kept is not None and kept.filesystem == fragment.filesystem:  # another one after credentials were renewed
            footers.move_to_end((uri, identity))
            return kept
    refuse(fragment)
    with footers_lock:
        footers[uri, identity] = fragment
        while len(footers) > FOOTERS_KEPT:
            footers.popitem(last=False)
    return fragment


def did_not_come(error: Exception) -> bool:
    """Whether storage failed to answer, as opposed to answering with bytes that are no Parquet: arrow raises OSError
    for both, with a number from the operating system or the words of the S3 client in the first case."""
    return isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error))


def read_row_group(
    uri: str,
    num_bytes: int,
    identity: str,
    group: int,
    columns: Sequence[str],
    refuse: Callable[[pads.ParquetFileFragment], None],
    cfg: config.Storage,
) -> pa.Table:
    """The given columns of one row group: one request, after the first to this file in this process.

    Raises:
        NotWhatWasWritten: its bytes are not what was written (page checksums), three times.
        NotFound, StorageError: storage has no such file, or did not answer in `cfg.max_attempts` tries.
    """

    def read() -> pa.Table:
        for again in (2, 1, 0):
            try:
                fragment = opened(uri, num_bytes, identity, refuse, cfg).subset(row_group_ids=[group])
                return fragment.to_table(columns=list(columns), use_threads=False)
            except (pa.ArrowException, OSError) as error:
                if did_not_come(error):
                    raise  # for the storage room, which asks again with patience
                with footers_lock:  # from the start: the bytes may have been hurt only on their way here
                    footers.pop((uri, identity), None)
                if not again:
                    raise NotWhatWasWritten(str(error).splitlines()[0]) from None
        raise AssertionError("unreachable")

    return storage.retrying(read, cfg, f"read {uri}")
