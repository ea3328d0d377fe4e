"""Every loss against independent arithmetic in float64, and what must not depend on anything."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from pathryoshka import config
from pathryoshka.distill.losses import (
    BY_NAME,
    EPS,
    angle,
    choose_widths,
    coefficients,
    combine,
    distill_terms,
    teacher_weights,
    uniform,
)

B, N, D = 6, 5, 9
Array = np.ndarray


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one(kind: str, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None = None, **cfg: Any) -> torch.Tensor:
    """The term of one teacher at one width."""
    terms = distill_terms(
        {8: {"a": {kind: x}}},
        {"a": {kind: y}},
        config.Loss(**cfg),
        {"a": 1.7},
        None if weight is None else {"a": weight},
    )
    return terms[8, "a", kind]


def cos64(x: Array, y: Array) -> Array:
    return (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def smooth64(x: Array, y: Array) -> Array:
    d = np.abs(x - y)
    return np.where(d < 1, d**2 / 2, d - 0.5).mean(-1)


def spectrum64(x: Array, y: Array) -> Array:
    flat = tuple(range(x.ndim - 1))
    e, v = ((x - y) ** 2).mean(flat), (y**2).mean(flat)
    return np.full(len(x), ((e + EPS) ** (1 / 3)).sum() / ((v + EPS) ** (1 / 3)).sum())


INDEPENDENT: dict[str, Callable[[Array, Array], Array]] = {
    "angle": lambda x, y: np.arccos(cos64(x, y)) ** 2 / 1.7,
    "cosine": lambda x, y: 1 - cos64(x, y),
    "mse": lambda x, y: ((x - y) ** 2).mean(-1),
    "smooth_l1_mix": lambda x, y: 0.9 * (1 - cos64(x, y)) + 0.1 * smooth64(x, y),
    "spectrum": spectrum64,
}


CASES = [(kind, name) for kind in ("summary", "tokens") for name in INDEPENDENT if (kind, name) != ("tokens", "angle")]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_each_loss_is_its_formula(kind: str, name: str) -> None:
    shape = (B, D) if kind == "summary" else (B, N, D)
    x, y = 2 * draw(*shape), draw(*shape, seed=1)
    want = INDEPENDENT[name](x.double().numpy(), y.double().numpy())
    got = one(kind, x, y, **{kind: name})
    assert got.shape == (B,) and got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), want.reshape(B, -1).mean(1), rtol=2e-5)
    low = one(kind, x.bfloat16(), y.half(), **{kind: name})
    assert low.dtype == torch.float32  # whatever the student's precision


def test_relation_is_its_formula() -> None:
    x, y, w = draw(B, D), draw(B, D, seed=1), torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.0])
    terms = distill_terms(
        {8: {"a": {"summary": x}}}, {"a": {"summary": y}}, config.Loss(relation=0.3), {"a": 1.0}, {"a": w}
    )
    got = terms[8, "a", "relation"].numpy()
    x64, y64, w64 = x.double().numpy(), y.double().numpy(), w.double().numpy()
    for i in range(B):
        off = [(w64[j], (cos64(x64[i], x64[j]) - cos64(y64[i], y64[j])) ** 2) for j in range(B) if j != i]
        want = sum(a * b for a, b in off) / sum(a for a, _ in off) if w64[i] else 0.0
        assert got[i] == pytest.approx(want, rel=1e-5)
    assert not [
        k
        for k in distill_terms({8: {"a": {"summary": x}}}, {"a": {"summary": y}}, config.Loss(), {"a": 1.0})
        if "relation" in k
    ]


def test_predicting_the_mean_leaves_everything_unexplained() -> None:
    """PHI-S from numpy: the mean of its targets is 0, and mse and the spectrum of a 0 are 1."""
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(4000, 8)) * np.geomspace(30, 0.01, 8) @ rng.normal(size=(8, 8)) + 5
    values, vectors = np.linalg.eigh(np.cov(raw.T, bias=True))
    h = np.array([[1, 1], [1, -1]])
    h = np.kron(np.kron(h, h), h) / np.sqrt(8)
    y = torch.from_numpy(((raw - raw.mean(0)) @ vectors @ h.T) / np.sqrt(values.mean())).float()
    np.testing.assert_allclose(y.var(0, unbiased=False).numpy(), 1, atol=1e-3)
    mean = torch.zeros_like(y)
    assert float(one("summary", mean, y, summary="mse").mean()) == pytest.approx(1, abs=1e-3)
    assert float(one("tokens", mean.view(400, 10, 8), y.view(400, 10, 8), tokens="mse").mean()) == pytest.approx(
        1, abs=1e-3
    )
    assert float(one("summary", mean, y, summary="spectrum").mean()) == pytest.approx(1, abs=1e-3)


def test_a_constant_direction_has_an_angle_of_one() -> None:
    y = draw(2000, D) + 1.5
    mu = y.double().numpy().mean(0)
    spread = float((np.arccos(cos64(y.double().numpy(), mu)) ** 2).mean())
    preds = {8: {"a": {"summary": torch.from_numpy(mu).float().expand(2000, D)}}}
    terms = distill_terms(preds, {"a": {"summary": y}}, config.Loss(summary="angle"), {"a": spread})
    assert float(terms[8, "a", "summary"].mean()) == pytest.approx(1, abs=1e-3)


def test_the_spectrum_of_whitened_targets_is_the_one_of_principal_components() -> None:
    """SpecMatch is defined on PCA coefficients; whitened ones with their variances must give the same number."""
    rng = np.random.default_rng(0)
    variances = np.geomspace(10, 1e-3, D)
    coefficients_ = rng.normal(size=(B, N, D)) * np.sqrt(variances)
    errors = rng.normal(size=(B, N, D)) * np.sqrt(variances) * 0.3
    e, v = (errors**2).mean((0, 1)) / variances.mean(), (coefficients_**2).mean((0, 1)) / variances.mean()
    want = ((e + EPS) ** (1 / 3)).sum() / ((v + EPS) ** (1 / 3)).sum()
    y = torch.from_numpy(coefficients_ / np.sqrt(variances)).float()
    x = torch.from_numpy((coefficients_ + errors) / np.sqrt(variances)).float()
    got = distill_terms(
        {8: {"a": {"tokens": x}}}, {"a": {"tokens": y}}, config.Loss(tokens="spectrum"), {},
        variances={("a", "tokens"): torch.from_numpy(variances).float()},
    )[8, "a", "tokens"]  # fmt: skip
    np.testing.assert_allclose(got.numpy(), np.full(B, want), rtol=1e-5)


@pytest.mark.parametrize("turn", [0.0, 1e-7, 1e-3, np.pi / 2, np.pi - 1e-3, np.pi])
def test_the_angle_has_a_finite_gradient_everywhere(turn: float) -> None:
    x = torch.tensor([[np.cos(turn), np.sin(turn), 0.0]], dtype=torch.float32, requires_grad=True)
    value = angle(x, torch.tensor([[3.0, 0.0, 0.0]]))
    value.sum().backward()
    assert value.item() == pytest.approx(turn**2, rel=1e-5, abs=1e-10)
    assert x.grad is not None and bool(x.grad.isfinite().all()) and x.grad.norm() <= 2 * np.pi + 1e-3
    zero = torch.zeros(1, 3, requires_grad=True)
    angle(zero, torch.zeros(1, 3)).sum().backward()
    assert zero.grad is not None and bool(zero.grad.isfinite().all())


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), 3e38, 0.0])
def test_a_view_of_weight_zero_changes_nothing(kind: str, name: str, rubbish: float) -> None:
    """Neither the sum, nor a batch statistic, nor a gradient: to the last bit, whatever its targets hold."""
    shape = (B, D) if kind == "summary" else (B, N, D)
    cfg = config.Loss(**{kind: name, "relation": 0.5})  # type: ignore[arg-type]
    weight = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 1.0])
    y = draw(*shape, seed=1)

    def loss_and_gradient(fill: float) -> tuple[torch.Tensor, torch.Tensor, dict[Any, torch.Tensor]]:
        x = draw(*shape).requires_grad_()
        target = torch.where(weight.view(-1, *[1] * (y.ndim - 1)) > 0, y, fill)
        terms = distill_terms({8: {"a": {kind: x}}}, {"a": {kind: target}}, cfg, {"a": 1.7}, {"a": weight})
        loss = combine(terms, {"a": weight}, cfg)
        return loss.detach(), torch.autograd.grad(loss, x)[0], terms

    loss, gradient, terms = loss_and_gradient(rubbish)
    want, want_gradient, _ = loss_and_gradient(1.0)
    assert torch.equal(loss, want) and torch.equal(gradient, want_gradient)
    assert bool(loss.isfinite()) and loss > 0
    assert bool((gradient[weight == 0] == 0).all()) and bool((gradient[weight > 0] != 0).any())
    assert all(bool((term[weight == 0] == 0).all()) for term in terms.values())
    # ... and is the same as its absence
    kept = weight > 0
    x = draw(*shape)[kept]
    terms = distill_terms({8: {"a": {kind: x}}}, {"a": {kind: y[kept]}}, cfg, {"a": 1.7}, {"a": weight[kept]})
    np.testing.assert_allclose(combine(terms, {"a": weight[kept]}, cfg), want, rtol=1e-6)


def test_the_weights_of_widths_add_up_to_one_in_each_teacher_and_kind() -> None:
    cfg = config.Loss(weights={"b": 0.5}, kinds={"summary": 2.0, "tokens": 1.0}, widths={4: 3.0}, relation=0.1)
    keys = [
        (w, t, k)
        for t in ("a", "b")
        for k, ws in (("summary", (4, 8, 16)), ("tokens", (16,)), ("relation", (8, 16)))
        for w in ws
    ]
    got = coefficients(keys, cfg)
    assert got[4, "a", "summary"] == pytest.approx(2 * 3 / 5) and got[8, "a", "summary"] == pytest.approx(2 / 5)
    for teacher, share in (("a", 1.0), ("b", 0.5)):
        for kind, size in (("summary", 2.0), ("tokens", 1.0), ("relation", 0.1)):
            assert sum(v for (_, t, k), v in got.items() if (t, k) == (teacher, kind)) == pytest.approx(share * size)
    terms = {key: draw(B, seed=n).square() for n, key in enumerate(keys)}
    weights = {"a": draw(B, seed=50).abs(), "b": draw(B, seed=51).abs()}
    want = sum(got[k] * float(weights[k[1]].double() @ v.double()) for k, v in terms.items())
    assert float(combine(terms, weights, cfg)) == pytest.approx(want, rel=1e-6)


def drop(
    rate: float, weight: torch.Tensor, lost: dict[str, torch.Tensor], seq: torch.Tensor, step: int = 3, **cfg: Any
) -> dict[str, torch.Tensor]:
    return teacher_weights(weight, lost, config.Loss(teacher_drop=rate, **cfg), seq, 5, step)


def test_teachers_are_dropped_at_the_rate_asked_and_never_all_of_them() -> None:
    n, rate = 40_000, 0.6
    weight, lost = torch.ones(n), {t: torch.zeros(n, dtype=torch.bool) for t in "abc"}
    got = torch.stack(list(drop(rate, weight, lost, torch.arange(n)).values()))
    num_kept = (got > 0).sum(0)
    assert int(num_kept.min()) == 1
    # independent chances, except that the luckiest of three stays when all would go
    p = 1 - rate
    want = [3 * p * rate**2 + rate**3, 3 * p**2 * rate, p**3]
    share = [float((num_kept == k).float().mean()) for k in (1, 2, 3)]
    np.testing.assert_allclose(share, want, atol=0.01)
    np.testing.assert_allclose(
        (got > 0).float().mean(1), np.full(3, sum(k * w for k, w in zip((1, 2, 3), want, strict=True)) / 3), atol=0.01
    )
    np.testing.assert_allclose(got.sum(0), 3.0, rtol=1e-6)  # a view weighs the same, whoever is left out of it
    # no teacher's fate tells another's (beyond that one must stay), nor does a neighbour's or the last step's
    u = uniform(torch.arange(n), 3, 5, 3)
    later = uniform(torch.arange(n), 1, 5, 4)
    others = torch.stack([u[1], u[2], u[0].roll(1), later[0]])
    assert np.abs([np.corrcoef(u[0], other)[0, 1] for other in others]).max() < 0.02
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01) and float(u.var()) == pytest.approx(1 / 12, abs=0.005)


def test_which_teacher_is_dropped_depends_on_the_view_and_the_step_only() -> None:
    seq = torch.arange(100) * 7919
    lost = {t: torch.zeros(100, dtype=torch.bool) for t in "ab"}
    whole = drop(0.5, torch.ones(100), lost, seq)
    perm = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    again = drop(0.5, torch.ones(100), lost, seq[perm])
    assert all(torch.equal(whole[t][perm], again[t]) for t in "ab")
    half = drop(0.5, torch.ones(50), {t: v[:50] for t, v in lost.items()}, seq[:50])
    assert all(torch.equal(whole[t][:50], half[t]) for t in "ab")
    assert not torch.equal(whole["a"], drop(0.5, torch.ones(100), lost, seq, step=4)["a"])


def test_a_lost_feature_is_asked_of_nobody() -> None:
    n = 1000
    lost = {"a": torch.arange(n) % 2 == 0, "b": torch.arange(n) % 3 == 0, "c": torch.arange(n) % 5 == 0}
    weight = (torch.arange(n) % 7 != 0).float()
    for rate in (0.0, 0.7):
        got = drop(rate, weight, lost, torch.arange(n), weights={"a": 2.0, "c": 0.0})
        assert all(bool((got[t][lost[t] | (weight == 0)] == 0).all()) for t in lost)
        share = {"a": 2.0, "b": 1.0, "c": 0.0}
        alive = sum(share[t] * (~lost[t]).float() for t in lost) * weight  # type: ignore[arg-type]
        kept = sum(share[t] * got[t] for t in lost)
        assert bool(((kept - alive).abs() < 1e-5)[~((got["a"] == 0) & (got["b"] == 0))].all())  # type: ignore[union-attr]
        assert all(bool(v.isfinite().all()) for v in got.values())


def test_widths_of_a_step() -> None:
    widths = (64, 128, 256, 384, 768)
    assert choose_widths(widths, 0, 1, 2) == choose_widths(widths, 4, 1, 2) == choose_widths(widths, 9, 1, 2) == widths
    assert choose_widths((768,), 3, 1, 2) == (768,)
    drawn = [choose_widths(widths, 2, 1, step) for step in range(2000)]
    assert drawn == [choose_widths(widths, 2, 1, step) for step in range(2000)]
    assert drawn != [choose_widths(widths, 2, 2, step) for step in range(2000)]
    assert all(len(w) == 3 and w[-1] == 768 and all(a < b for a, b in pairwise(w)) for w in drawn)
    share = [np.mean([width in w for w in drawn]) for width in widths[:-1]]
    np.testing.assert_allclose(share, 0.5, atol=0.05)


def test_l1_and_half_and_half_are_what_they_are_called() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 6, generator=generator)
    torch.testing.assert_close(BY_NAME["l1"](x, y), (x - y).abs().mean(-1))
    cos = torch.nn.functional.cosine_similarity(x, y, dim=-1)
    smooth = torch.nn.functional.smooth_l1_loss(x, y, reduction="none").mean(-1)
    torch.testing.assert_close(BY_NAME["smooth_l1_half"](x, y), 0.5 * (1 - cos) + 0.5 * smooth)
    torch.testing.assert_close(BY_NAME["smooth_l1_mix"](x, y), 0.9 * (1 - cos) + 0.1 * smooth)
