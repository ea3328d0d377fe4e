"""The network in eight bits, by ONNX Runtime's two ways of it; what holds the vectors better is kept.

*Dynamic*: weights are int8, activations are rounded with a range taken from each batch. *Static*: ranges are fixed
beforehand on calibration tiles; convolutions run in int8 too, so it is the faster one where a processor has the
instructions. Weights take seven of eight bits (`reduce_range`): with all eight, sums overflow on processors without
VNNI, and the same file would give other vectors there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathryoshka.export.graph import quiet
from pathryoshka.export.record import TILES

MARGIN = 1e-3
"""What dynamic must hold better by, to be kept: it is the slower one, by a factor of six for the demo's ResNet."""
Judge = Callable[[Path], float]
"""A quantised file -> how well its vectors hold, larger is better."""


@dataclass(frozen=True)
class Quantised:
    """`way`: "static" or "dynamic", the one kept. `tried`: way -> what the judge said."""

    way: str
    tried: dict[str, float]


def write_int8(source: Path, to: Path, calibration: np.ndarray, judge: Judge) -> Quantised:
    """Quantises the ONNX file `source` both ways and writes the better one, static where they are equal but for MARGIN.

    Args:
        calibration: uint8 [N, size, size, 3] tiles that the static ranges are taken from.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="pathryoshka-int8-") as name, quiet():
        folder = Path(name)
        prepared = folder / "prepared.onnx"
        quant_pre_process(source, prepared)
        made = {"static": folder / "static.onnx", "dynamic": folder / "dynamic.onnx"}
        static(prepared, made["static"], calibration)
        dynamic(prepared, made["dynamic"])
        tried = {way: judge(path) for way, path in made.items()}
        way = "dynamic" if tried["dynamic"] > tried["static"] + MARGIN else "static"
        to.write_bytes(made[way].read_bytes())
    return Quantised(way, tried)


def static(source: Path, to: Path, calibration: np.ndarray) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        source, to, Tiles(calibration), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
    )  # fmt: skip


def dynamic(source: Path, to: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, to, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


class Tiles:
    """What ONNX Runtime calls a calibration data reader: batches under the name of the input, then None."""

    def __init__(self, tiles: np.ndarray, batch: int = 8) -> None:
        self.batches = iter([{TILES: tiles[start : start + batch]} for start in range(0, len(tiles), batch)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def turned(tiles: np.ndarray) -> np.ndarray:
    """uint8 [N, S, S, 3] -> [7 N, S, S, 3]: every turn and mirror image but the tiles themselves, so that what is
    calibrated on the golden tiles is not judged on the very same pixels."""
    ways = [(quarter, step) for quarter in range(4) for step in (1, -1)][1:]
    return np.ascontiguousarray(
        np.concatenate([np.rot90(tiles, quarter, (1, 2))[:, :, ::step] for quarter, step in ways])
    )
