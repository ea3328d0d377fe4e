"""Moments, standardisers and Hadamard matrices against numpy in fp64."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pathryoshka.teachers.hadamard import hadamard, jacobsthal
from pathryoshka.teachers.standardize import (
    Moments,
    StandardiseError,
    Standardiser,
    fit,
    fold,
    load,
    save,
)

KINDS = ("none", "global", "per_channel", "phi_s", "pca_whiten")
WIDTHS = (192, 288, 384, 512, 768, 1024, 1152, 1280, 1408, 1536, 1664, 2560, 3072)


def features(num: int, dim: int, seed: int = 0) -> np.ndarray:
    """Correlated, not centred, with variances over four decades, as encoders have them."""
    rng = np.random.default_rng(seed)
    spectrum = np.geomspace(30, 0.3, dim)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return (rng.standard_normal((num, dim)) * spectrum) @ rotation + rng.uniform(-20, 20, dim)


def moments_of(x_ND: np.ndarray) -> Moments:
    out = Moments(x_ND.shape[1])
    out.update(x_ND)
    return out


@pytest.mark.parametrize("n", WIDTHS)
def test_hadamard_is_orthogonal_with_equal_entries(n: int) -> None:
    matrix = hadamard(n)
    assert np.array_equal(np.unique(np.abs(matrix)), [1 / np.sqrt(n)])
    signs = np.sign(matrix).astype(np.float32)  # integers up to 3072 are exact in fp32
    assert np.array_equal(signs @ signs.T, n * np.eye(n, dtype=np.float32))


def test_every_small_width_that_is_built_is_a_hadamard_matrix() -> None:
    built = []
    for n in range(1, 129):
        try:
            matrix = hadamard(n)
        except ValueError:
            continue
        built.append(n)
        assert np.abs(matrix @ matrix.T - np.eye(n)).max() < 1e-12
    assert built == [1, 2, *(n for n in range(4, 129, 4) if n not in (92, 116))]  # what Paley and Sylvester reach


@pytest.mark.parametrize(("q", "square"), [(9, 1), (25, 1), (27, -1), (49, 1)])
def test_prime_powers_have_their_field(q: int, square: int) -> None:
    """Jacobsthal matrices of GF(q): Q Q^T = q I - J, and -1 is a square just when q = 1 mod 4."""
    core = jacobsthal(q).astype(int)
    assert np.array_equal(core @ core.T, q * np.eye(q, dtype=int) - 1)
    assert np.array_equal(core, square * core.T)


@pytest.mark.parametrize("n", [0, 3, 92, 1022])
def test_width_without_a_matrix_is_refused_with_the_nearest(n: int) -> None:
    nearest = {0: "1", 3: "2 and 4", 92: "88 and 96", 1022: "1020 and 1024"}[n]
    with pytest.raises(ValueError, match=f"width {n} .*{nearest}\\).*per_channel"):
        hadamard(n)


def test_moments_in_any_order_equal_the_batch_covariance() -> None:
    x_ND = features(1000, 24) + 1000  # a mean far from zero shows a naive sum of squares up
    parts = [Moments(24) for _ in range(3)]
    for i, chunk in enumerate(np.split(x_ND, [1, 7, 350, 350, 351, 900])):
        parts[i % 3].update(chunk.astype(np.float64))
    total = Moments(24)  # an empty one merges, too
    for part in (parts[2], parts[0], parts[1], Moments(24)):
        total.merge(part)
    assert total.n == 1000
    np.testing.assert_allclose(total.mean, x_ND.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.covariance(), np.cov(x_ND.T), rtol=1e-9, atol=1e-9)


def test_moments_take_half_precision_and_refuse_what_is_broken() -> None:
    x_ND = features(50, 8).astype(np.float16)
    np.testing.assert_allclose(moments_of(x_ND).covariance(), np.cov(x_ND.astype(np.float64).T), rtol=1e-9)
    with pytest.raises(StandardiseError, match="NaN or infinity"):
        Moments(8).update(np.full((4, 8), np.inf, np.float16))
    with pytest.raises(StandardiseError, match=r"\[4, 7\]"):
        Moments(8).update(np.zeros((4, 7)))
    with pytest.raises(StandardiseError, match="num_views"):
        fit(moments_of(x_ND[:1]), "phi_s")
    with pytest.raises(StandardiseError, match="alike"):
        fit(moments_of(np.ones((10, 8))), "phi_s")
    with pytest.raises(StandardiseError, match="nearest widths"):
        fit(moments_of(features(20, 7)), "phi_s")


def test_phi_s_makes_every_channel_variance_one_and_keeps_relative_lengths() -> None:
    x_ND = features(3000, 48)
    s = fit(moments_of(x_ND), "phi_s")
    y_ND = s.apply(torch.from_numpy(x_ND)).double().numpy()
    np.testing.assert_allclose(y_ND.var(0, ddof=1), 1, atol=1e-3)
    np.testing.assert_allclose(y_ND.mean(0), 0, atol=1e-4)
    phi = np.sqrt(np.trace(np.cov(x_ND.T)) / 48)
    np.testing.assert_allclose(s.scale, phi, rtol=1e-12)
    # a rotation: the mean squared error is that of centred features / phi, for any prediction
    guess_ND = y_ND + np.random.default_rng(1).standard_normal(y_ND.shape)
    raw_ND = s.invert(torch.from_numpy(guess_ND)).double().numpy()
    np.testing.assert_allclose(((guess_ND - y_ND) ** 2).mean(), (((raw_ND - x_ND) / phi) ** 2).mean(), rtol=1e-5)
    assert s.forward is not None
    np.testing.assert_allclose(s.forward @ s.forward.T, np.eye(48) / phi**2, atol=1e-12)


@pytest.mark.parametrize("kind", ["per_channel", "phi_s", "pca_whiten"])
def test_a_predictor_of_the_mean_has_an_error_of_one(kind: str) -> None:
    x_ND = features(4000, 20)
    y = fit(moments_of(x_ND), kind).apply(torch.from_numpy(x_ND))  # type: ignore[arg-type]
    assert abs(float((y**2).mean()) - 1) < 1e-3


def test_each_kind_is_what_its_formula_says() -> None:
    x_ND = features(500, 12)
    m = moments_of(x_ND)
    x = torch.from_numpy(x_ND)
    sigma = np.cov(x_ND.T)
    np.testing.assert_array_equal(fit(m, "none").apply(x).numpy(), x_ND.astype(np.float32))
    spread = np.sqrt(np.trace(sigma) / 12 + x_ND.mean(0).var())
    np.testing.assert_allclose(fit(m, "global").apply(x).numpy(), (x_ND - x_ND.mean()) / spread, atol=1e-4)
    per_channel = (x_ND - x_ND.mean(0)) / x_ND.std(0, ddof=1)
    np.testing.assert_allclose(fit(m, "per_channel").apply(x).numpy(), per_channel, atol=1e-4)
    whitened = fit(m, "pca_whiten").apply(x).double().numpy()
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(12), atol=1e-4)
    values, vectors = np.linalg.eigh(sigma)
    coefficients = (x_ND - x_ND.mean(0)) @ vectors / np.sqrt(values)
    np.testing.assert_allclose(np.abs(whitened), np.abs(coefficients[:, ::-1]), atol=1e-3)
    phi_s = fit(m, "phi_s").apply(x).double().numpy()
    mixed = whitened * np.sqrt(values[::-1]) @ hadamard(12).T / np.sqrt(values.mean())
    np.testing.assert_allclose(phi_s, mixed, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_undoes_forward_and_folding_changes_nothing(kind: str) -> None:
    x_ND = features(800, 20)
    s = fit(moments_of(x_ND), kind)  # type: ignore[arg-type]
    x_BND = torch.from_numpy(x_ND[:40].reshape(4, 10, 20))
    np.testing.assert_allclose(s.invert(s.apply(x_BND)).numpy(), x_BND.numpy(), atol=2e-3)
    rng = np.random.default_rng(2)
    weight, bias, z_BH = rng.standard_normal((20, 6)), rng.standard_normal(20), rng.standard_normal((5, 6))
    folded_weight, folded_bias = fold(torch.from_numpy(weight), torch.from_numpy(bias), s)
    assert folded_weight.dtype == torch.float64
    predicted = z_BH @ weight.T + bias
    by_hand = predicted * s.scale + s.mean if s.inverse is None else predicted @ s.inverse.T + s.mean
    np.testing.assert_allclose(z_BH @ folded_weight.numpy().T + folded_bias.numpy(), by_hand, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(s.invert(torch.from_numpy(predicted)).numpy(), by_hand, rtol=1e-3, atol=1e-3)


def test_rank_deficient_features_stay_finite_and_dead_channels_come_back() -> None:
    x_ND = features(12, 48)  # fewer samples than channels
    x_ND[:, 5] = 3.25  # and a channel that never moves
    for kind in KINDS:
        s = fit(moments_of(x_ND), kind)  # type: ignore[arg-type]
        y = s.apply(torch.from_numpy(x_ND))
        assert torch.isfinite(y).all() and (s.eigenvalues >= 0).all()
        np.testing.assert_allclose(s.invert(y).numpy(), x_ND, atol=2e-3)
    s = fit(moments_of(x_ND), "phi_s")
    np.testing.assert_allclose(s.apply(torch.from_numpy(x_ND)).numpy().var(0, ddof=1), 1, atol=1e-3)


def test_floor_is_what_principal_components_leave() -> None:
    x_ND = features(2000, 16)
    for kind in KINDS:
        s = fit(moments_of(x_ND), kind)  # type: ignore[arg-type]
        y_ND = s.apply(torch.from_numpy(x_ND)).double().numpy()
        centred = y_ND - y_ND.mean(0)
        basis = np.linalg.svd(centred, full_matrices=False)[2][:5]
        left = ((centred - centred @ basis.T @ basis) ** 2).sum() / (centred**2).sum()
        assert abs(s.floor(5) - left) < 1e-4
        assert s.floor(0) == pytest.approx(1) and s.floor(16) == 0 and s.floor(99) == 0
    assert fit(moments_of(x_ND), "pca_whiten").floor(5) == pytest.approx(11 / 16)


@pytest.mark.parametrize("kind", ["phi_s", "pca_whiten"])
def test_neither_sample_order_nor_the_signs_of_eigenvectors_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND = features(600, 32)
    one, other = Moments(32), Moments(32)
    one.update(x_ND)
    for chunk in np.array_split(x_ND[::-1], 7):
        other.update(chunk)
    first = fit(one, kind).forward  # type: ignore[arg-type]
    eigh = np.linalg.eigh

    def turned(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = eigh(matrix)
        return values, vectors * np.where(np.arange(32) % 3, -1, 1)

    monkeypatch.setattr(np.linalg, "eigh", turned)
    np.testing.assert_allclose(fit(other, kind).forward, first, atol=1e-8)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_dispersion_makes_the_best_constant_direction_cost_one(kind: str) -> None:
    x_ND = features(1500, 20)
    s = fit(moments_of(x_ND), kind, x_ND)  # type: ignore[arg-type]
    y_ND = s.apply(torch.from_numpy(x_ND)).double().numpy()
    unit = y_ND / np.linalg.norm(y_ND, axis=1, keepdims=True)
    direction = unit.mean(0) / np.linalg.norm(unit.mean(0))
    angles = np.arccos(np.clip(unit @ direction, -1, 1))
    assert s.dispersion == pytest.approx((angles**2).mean(), rel=1e-4)
    assert np.isnan(fit(moments_of(x_ND), kind).dispersion)  # type: ignore[arg-type]


def test_dispersion_of_symmetric_features_is_defined() -> None:
    x_ND = features(100, 4) - features(100, 4).mean(0)
    x_ND = np.concatenate([x_ND, -x_ND])  # the mean of the unit vectors is exactly zero
    assert fit(moments_of(x_ND), "phi_s", x_ND).dispersion > 1


def test_apply_takes_half_precision_and_ignores_autocast() -> None:
    x_ND = features(300, 64).astype(np.float16)
    s = fit(moments_of(x_ND), "phi_s")
    x = torch.from_numpy(x_ND)
    with torch.autocast("cpu", torch.bfloat16):
        inside = s.apply(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, s.apply(x))
    assert s.forward is not None
    exact = (x_ND.astype(np.float64) - s.mean) @ s.forward.T
    np.testing.assert_allclose(inside.numpy(), exact, atol=1e-4)


def test_saved_standardisers_come_back_and_bytes_repeat(tmp_path) -> None:
    x_ND = features(200, 12)
    made = {
        (teacher, kind): fit(moments_of(x_ND), how, x_ND, fingerprint="ab" * 32)  # type: ignore[arg-type]
        for teacher, kind, how in [
            ("a/b", "tokens", "phi_s"),
            ("a/b", "summary", "per_channel"),
            ("c", "tokens", "none"),
        ]
    }
    made["c", "summary"] = fit(moments_of(x_ND), "pca_whiten")
    save(made, tmp_path / "one.safetensors")
    save(dict(reversed(made.items())), tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    back = load(tmp_path / "one.safetensors")
    assert back.keys() == made.keys()
    for key, s in made.items():
        other = back[key]
        assert (other.kind, other.n, other.fingerprint) == (s.kind, s.n, s.fingerprint)
        assert other.dispersion == s.dispersion or (np.isnan(other.dispersion) and np.isnan(s.dispersion))
        assert torch.equal(other.apply(torch.from_numpy(x_ND)), s.apply(torch.from_numpy(x_ND)))
        np.testing.assert_array_equal(other.eigenvalues, s.eigenvalues)


def test_a_damaged_or_foreign_file_is_refused(tmp_path) -> None:
    path = tmp_path / "s.safetensors"
    with pytest.raises(StandardiseError, match="cannot read standardisers"):
        load(path)
    save({("a", "tokens"): fit(moments_of(features(40, 8)), "phi_s")}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StandardiseError, match="fit them again"):
        load(path)
    path.write_bytes(whole)
    save_file(load_file(path), tmp_path / "other.safetensors", {"pathryoshka": '{"version": 99}'})
    with pytest.raises(StandardiseError, match="version"):
        load(tmp_path / "other.safetensors")


def test_pickling_leaves_the_buffers_of_a_device_behind() -> None:
    s = fit(moments_of(features(40, 8)), "phi_s")
    s.apply(torch.zeros(1, 8))
    other: Standardiser = pickle.loads(pickle.dumps(replace(s, n=7)))
    assert not pickle.loads(pickle.dumps(s)).buffers and s.buffers
    assert other.n == 7 and torch.equal(other.apply(torch.ones(2, 8)), s.apply(torch.ones(2, 8)))
