"""Whose tiles may be found. A filter works while rows are scanned, so what is left always fills the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

COLUMNS = ("slide_id", "patient_id", "site", "label")


@dataclass(frozen=True)
class Filter:
    """Empty = all. Of several sites or labels, any."""

    not_patients: tuple[str, ...] = ()
    not_slides: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def allowed(self, columns: Mapping[str, Coded]) -> np.ndarray | None:
        """bool [N] of the rows of a segment; None where all may be found."""
        masks = [~columns["patient_id"].among(self.not_patients)] if self.not_patients else []
        masks += [~columns["slide_id"].among(self.not_slides)] if self.not_slides else []
        masks += [columns["site"].among(self.sites)] if self.sites else []
        masks += [columns["label"].among(self.labels)] if self.labels else []
        return np.logical_and.reduce(masks) if masks else None


@dataclass(frozen=True)
class Coded:
    """A column of few different strings: `values` and, for each row, int32 which of them (-1 = none)."""

    values: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, column: pa.DictionaryArray) -> Coded:
        codes = column.indices.fill_null(-1) if column.null_count else column.indices
        return cls(tuple(column.dictionary.to_pylist()), codes.to_numpy(zero_copy_only=False))

    def among(self, names: tuple[str, ...]) -> np.ndarray:
        """bool [N]: the value is one of `names`."""
        wanted = [i for i, value in enumerate(self.values) if value in names]
        if len(wanted) == 1:
            return self.codes == wanted[0]
        return np.isin(self.codes, wanted)

    def value(self, row: int) -> str | None:
        code = self.codes[row]
        return self.values[code] if code >= 0 else None
