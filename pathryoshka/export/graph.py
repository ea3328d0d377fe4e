"""The network as other runtimes get it: pixels in, embedding and tokens out, normalisation of the pixels inside."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from pathryoshka.export.load import Embedder, as_tokens
from pathryoshka.export.record import EMBEDDING, TILES, TOKENS

OPSET = 18
BATCH = {TILES: {0: torch.export.Dim("batch")}}


class Graph(nn.Module):
    """`forward`: tiles, uint8 [B, size, size, 3] -> fp32 [B, D], not cut and not of length 1, so that every width can
    be taken from it: `normalize(out[:, :width])`."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.timm_model = embedder.timm_model
        self.register_buffer("mean", 255 * embedder.mean)
        self.register_buffer("scale", 1 / (255 * embedder.std))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.timm_model(self.pixels(tiles))

    def pixels(self, tiles: torch.Tensor) -> torch.Tensor:
        return (tiles.permute(0, 3, 1, 2).float() - self.mean) * self.scale


class GraphWithTokens(Graph):
    """`forward`: as `Graph`, and beside it the tokens of the same pass, fp32 [B, N, Dt], as `Embedder.tokens`."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self.facts = embedder.facts

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        features = self.timm_model.forward_features(self.pixels(tiles))  # type: ignore[operator]
        return self.timm_model.forward_head(features), as_tokens(features, self.facts)  # type: ignore[operator]


def graph_of(embedder: Embedder, kind: type[Graph] = Graph) -> tuple[Graph, torch.Tensor]:
    """The network on the CPU in evaluation mode, and two tiles to trace it with."""
    tiles = torch.zeros(2, embedder.size, embedder.size, 3, dtype=torch.uint8)
    return kind(embedder).cpu().float().eval(), tiles


def write_program(embedder: Embedder, to: Path) -> None:
    """A torch.export program for any batch size."""
    graph, tiles = graph_of(embedder)
    with torch.no_grad():
        program = torch.export.export(graph, (tiles,), dynamic_shapes=BATCH)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    torch.export.save(program, to)


def write_onnx(embedder: Embedder, to: Path) -> None:
    """An ONNX file for any batch size, weights inside."""
    import onnx

    graph, tiles = graph_of(embedder, GraphWithTokens)
    with quiet():
        program = torch.onnx.export(
            graph, (tiles,), input_names=[TILES], output_names=[EMBEDDING, TOKENS], dynamic_shapes=BATCH,
            opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    strip(model)
    onnx.save(model, to)


def strip(model: object) -> None:
    """Takes out what torch notes beside each node for debugging: stack traces with folders of this machine."""
    graph = model.graph  # type: ignore[attr-defined]
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]  # type: ignore[attr-defined]
        item.doc_string = ""  # type: ignore[attr-defined]
    for node in graph.node:
        for attribute in node.attribute:
            attribute.doc_string = ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporters' chatter, which is for their own developers, from the terminal."""
    was = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(was)
