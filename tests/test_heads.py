"""Heads: which numbers of the student each may see, and what a tied head is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pathryoshka import config
from pathryoshka.student.heads import Heads, SlicedLinear

WIDTHS = (4, 8, 16)
DIMS = {"uni2.h": {"summary": 12, "tokens": 6}, "uni2%2Eh": {"summary": 5}, "keys": {"tokens": 7}}


def make(token_width: int | None = None, **cfg: Any) -> Heads:
    torch.manual_seed(0)
    return Heads(WIDTHS, DIMS, config.Heads(**cfg), token_width)


def inputs(token_width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(3, 16, generator=generator, requires_grad=True)
    return z, torch.randn(3, 5, token_width, generator=generator, requires_grad=True)


@pytest.mark.parametrize("hidden", [0, 10])
@pytest.mark.parametrize("kind", ["separate", "tied"])
def test_every_teacher_is_predicted_whole_at_every_width_asked(kind: str, hidden: int) -> None:
    preds = make(kind=kind, hidden=hidden)(*inputs(), (4, 16), (8, 16))
    shapes = {
        (w, t, k): tuple(x.shape)
        for w, teachers in preds.items()
        for t, kinds in teachers.items()
        for k, x in kinds.items()
    }
    summary = {(w, t, "summary"): (3, d) for w in (4, 16) for t, d in (("uni2.h", 12), ("uni2%2Eh", 5))}
    tokens = {(w, t, "tokens"): (3, 5, d) for w in (8, 16) for t, d in (("uni2.h", 6), ("keys", 7))}
    assert shapes == summary | tokens


@pytest.mark.parametrize("hidden", [0, 10])
@pytest.mark.parametrize("kind", ["separate", "tied"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_width_sees_nothing_beyond_itself(kind: str, hidden: int, width: int) -> None:
    z, tokens = inputs()
    preds = make(kind=kind, hidden=hidden)(z, tokens, (width,), (width,))
    sum(x.square().sum() for kinds in preds[width].values() for x in kinds.values()).backward()  # type: ignore[union-attr]
    for grad in (z.grad, tokens.grad):
        assert grad is not None
        assert bool((grad[..., :width] != 0).all()) and bool((grad[..., width:] == 0).all())


def test_a_tied_prefix_is_the_sliced_linear() -> None:
    heads = make(kind="tied")
    z, tokens = inputs()
    preds = heads(z, tokens, WIDTHS, WIDTHS)
    layers = {(t, k): layer for t, k, _, layer in heads.final_linears()}
    assert set(layers) == {("uni2.h", "summary"), ("uni2.h", "tokens"), ("uni2%2Eh", "summary"), ("keys", "tokens")}
    for (teacher, kind), layer in layers.items():
        w, b = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
        x = (z if kind == "summary" else tokens).detach().double().numpy()
        for width in WIDTHS:
            want = x[..., :width] @ w[:, :width].T + b
            np.testing.assert_allclose(preds[width][teacher][kind].detach().numpy(), want, atol=1e-6)


def test_the_mlp_is_the_one_of_the_papers() -> None:
    heads = make(hidden=10)
    z, tokens = inputs()
    plain = nn.Sequential(nn.Linear(8, 10), nn.LayerNorm(10), nn.GELU(), nn.Linear(10, 12))
    plain.load_state_dict(heads.layers[heads.key("uni2.h", "summary", 8)].state_dict())
    assert torch.equal(heads(z, tokens, (8,), ())[8]["uni2.h"]["summary"], plain(z[:, :8]))


def test_tokens_narrower_than_the_embedding_are_cut_where_they_end() -> None:
    """MobileNetV3: 1024 numbers, tokens of 288. Widths that hold a whole token are one head, at the full width."""
    heads = make(token_width=6)
    z, tokens = inputs(6)
    preds = heads(z, tokens, WIDTHS, WIDTHS)
    assert sorted(preds[4]["keys"]) == ["tokens"] and "keys" not in preds[8] and sorted(preds[16]["keys"]) == ["tokens"]
    lengths = {(w, k): layer.in_features for t, k, w, layer in heads.final_linears() if t == "uni2.h"}
    assert lengths == {(4, "summary"): 4, (8, "summary"): 8, (16, "summary"): 16, (4, "tokens"): 4, (16, "tokens"): 6}
    wide = make(token_width=40)  # ... and tokens wider than it give all they have at the full width
    assert {w: layer.in_features for t, k, w, layer in wide.final_linears() if t == "keys"} == {4: 4, 8: 8, 16: 40}


@pytest.mark.parametrize("hidden", [0, 10])
def test_a_folded_final_layer_undoes_a_standardiser_at_every_width(hidden: int) -> None:
    heads = make(kind="tied", hidden=hidden)
    z, tokens = inputs()
    before = heads(z, tokens, WIDTHS, ())
    rng = np.random.default_rng(0)
    undo = {
        t: (rng.normal(size=(k["summary"],) * 2), rng.normal(size=k["summary"]))
        for t, k in DIMS.items()
        if "summary" in k
    }
    with torch.no_grad():
        for teacher, kind, _, layer in heads.final_linears():
            if kind == "summary":
                inverse, mean = (torch.from_numpy(a).float() for a in undo[teacher])
                layer.weight.copy_(inverse @ layer.weight)
                layer.bias.copy_(inverse @ layer.bias + mean)
    after = heads(z, tokens, WIDTHS, ())
    for width in WIDTHS:
        for teacher, (inverse, mean) in undo.items():
            want = before[width][teacher]["summary"].detach().double().numpy() @ inverse.T + mean
            np.testing.assert_allclose(after[width][teacher]["summary"].detach().numpy(), want, atol=2e-5)


@pytest.mark.parametrize("hidden", [0, 10])
@pytest.mark.parametrize("kind", ["separate", "tied"])
@pytest.mark.parametrize("asked", [((16,), (4, 16)), ((4, 16), ()), ((), (16,))])
def test_a_head_that_is_not_asked_has_a_gradient_of_zero(
    kind: str, hidden: int, asked: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    """Not none: engines would each do something else with none."""
    heads = make(kind=kind, hidden=hidden)
    preds = heads(*inputs(), *asked)
    sum(x.square().sum() for ts in preds.values() for ks in ts.values() for x in ks.values()).backward()  # type: ignore[union-attr]
    used = {
        (t, k, w) for k, ws in zip(("summary", "tokens"), asked, strict=True) for t, _, w in heads.places() if w in ws
    }
    for teacher, what, width in heads.places():
        want = bool(asked[what == "tokens"]) if kind == "tied" else (teacher, what, width) in used
        for parameter in heads.layers[heads.key(teacher, what, width)].parameters():
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) == want


def test_names_of_teachers_are_kept_apart() -> None:
    heads = make()
    keys = [heads.key(*place) for place in heads.places()]
    assert len(set(keys)) == len(keys) == len(heads.layers) and not [key for key in keys if "." in key]
    assert all(isinstance(layer, SlicedLinear) for layer in heads.layers.values())
    state = heads.state_dict()
    assert make().load_state_dict(state).missing_keys == [] and "layers.summary_8_uni2%2Eh.weight" in state
