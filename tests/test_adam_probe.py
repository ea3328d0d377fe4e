"""The eva-style probe, against torch's own layer and optimiser in a plain loop with the same batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from pathryoshka.evaluate import adam_probe as ap
from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.protocols.rows import ProtocolError

NUM_TRAIN, NUM_VAL, NUM_TEST, DIM = 70, 30, 40, 12
WIDTHS = (3, 12)


def rows(num_classes: int, seed: int = 0, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray, Fold]:
    """Overlapping classes of unequal size around random centres."""
    rng = np.random.default_rng(seed)
    num = NUM_TRAIN + NUM_VAL + NUM_TEST
    codes = np.concatenate([np.tile(np.arange(num_classes), 2), rng.integers(0, num_classes, num)])[:num]
    codes[rng.random(num) < 0.2] = 0
    x = rng.standard_normal((num, DIM)) + apart * rng.standard_normal((num_classes, DIM))[codes]
    parts = np.split(rng.permutation(num), [NUM_TRAIN, NUM_TRAIN + NUM_VAL])
    return x, np.array([f"class {c}" for c in codes]), Fold(*(np.sort(part) for part in parts))


def plain_loop(
    x: torch.Tensor,
    y: torch.Tensor,
    val_x: torch.Tensor,
    val_y: torch.Tensor,
    num_classes: int,
    widths: Sequence[int],
    which: int,
    seed: int,
    patience: int,
    num_epochs: int,
    batch: int,
) -> tuple[torch.nn.Linear, int, int]:
    """eva's loop for one seed and one width -> the best layer, its epoch, the number of epochs."""
    draw = torch.Generator().manual_seed(seed)
    num_outputs = num_classes if num_classes > 2 else 1
    began = ap.start(x.shape[1], widths, num_outputs, seed, x.dtype)
    width = widths[which]
    layer = torch.nn.Linear(width, num_outputs, dtype=x.dtype)
    with torch.no_grad():
        layer.weight.copy_(began[:width, which].T)
        layer.bias.copy_(began[-1, which])
    optimiser = torch.optim.AdamW(layer.parameters(), lr=3e-4)
    best_score, best, best_state, waiting = -1.0, 0, {}, 0
    for epoch in range(1, num_epochs + 1):
        for picked in torch.randperm(len(x), generator=draw).split(batch):
            out = layer(x[picked][:, :width])
            if num_outputs == 1:
                loss = torch.nn.functional.binary_cross_entropy_with_logits(out[:, 0], y[picked].to(x.dtype))
            else:
                loss = torch.nn.functional.cross_entropy(out, y[picked])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            out = layer(val_x[:, :width])
        said = out.argmax(1) if num_outputs > 1 else (out[:, 0] > 0).long()
        score = round(balanced_accuracy_score(val_y, said), 12)
        if score > best_score:
            best_score, best, waiting = score, epoch, 0
            best_state = {key: value.clone() for key, value in layer.state_dict().items()}
        else:
            waiting += 1
            if waiting >= patience:
                break
    layer.load_state_dict(best_state)
    return layer, best, epoch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_it_is_torchs_layer_and_optimiser_in_a_plain_loop(num_classes: int, dtype: torch.dtype) -> None:
    x, labels, fold = rows(num_classes)
    classes, codes = np.unique(labels, return_inverse=True)
    assert len(classes) == num_classes
    x_all, y_all = torch.from_numpy(x).to(dtype), torch.from_numpy(codes)
    parts = (x_all[fold.train], y_all[fold.train], x_all[fold.val], y_all[fold.val])
    fitted = ap.fit(*parts, num_classes, WIDTHS, False, 15, (3, 4), max_steps=300, batch=32)
    ends = set()
    for s, seed in enumerate((3, 4)):
        for w, width in enumerate(WIDTHS):
            layer, best, num_epochs = plain_loop(*parts, num_classes, WIDTHS, w, seed, 15, 100, 32)
            assert (fitted.best_SW[s, w], fitted.num_epochs_SW[s, w]) == (best, num_epochs)
            torch.testing.assert_close(fitted.weight_SWKD[s, w, :, :width], layer.weight.data, rtol=0, atol=1e-5)
            torch.testing.assert_close(fitted.bias_SWK[s, w], layer.bias.data, rtol=0, atol=1e-5)
            assert not fitted.weight_SWKD[s, w, :, width:].any()
            ends.add(num_epochs)
    assert len(ends) > 1, "all stopped together, so nothing was shown of those that go on alone"


def test_unit_rows_are_those_of_cut_and_normalised_embeddings() -> None:
    x, labels, fold = rows(3)
    groups = np.arange(len(x))
    both = ap.adam_probe(x, labels, groups, (fold,), widths=WIDTHS, unit=True, max_steps=60, batch=32, seeds=(0,))
    cut = x[:, :3] / np.linalg.norm(x[:, :3], axis=1, keepdims=True)
    alone = ap.adam_probe(cut, labels, groups, (fold,), max_steps=60, batch=32, seeds=(0,))
    np.testing.assert_allclose(both[0][0].probabilities, alone[0][0].probabilities, atol=1e-12)
    assert both[0][0].chosen == alone[0][0].chosen


def test_predictions_are_of_test_rows_and_scored_by_balanced_accuracy() -> None:
    x, labels, fold = rows(3, apart=2)
    found = ap.adam_probe(x, labels, np.arange(len(x)), (fold,), max_steps=3000, batch=32, patience=200)
    assert len(found) == 1 and len(found[0]) == ap.NUM_SEEDS
    for each in found[0]:
        np.testing.assert_allclose(each.probabilities[fold.test].sum(1), 1)
        assert np.isnan(each.probabilities[fold.fit]).all()
        want = balanced_accuracy_score(labels[fold.test], each.predicted[fold.test])
        assert each.score.value == pytest.approx(want)
        assert want > 0.7
    assert len({each.probabilities[fold.test].tobytes() for each in found[0]}) == ap.NUM_SEEDS


def test_the_same_seed_gives_the_same_bytes_alone_or_not_and_another_does_not() -> None:
    x, labels, fold = rows(4)
    given = (x.astype(np.float32), labels, np.arange(len(x)), (fold,))
    one, two = (ap.adam_probe(*given, max_steps=90, batch=32, seeds=(7, 8))[0] for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert a.probabilities.tobytes() == b.probabilities.tobytes()
    alone = ap.adam_probe(*given, max_steps=90, batch=32, seeds=(8,))[0][0]
    np.testing.assert_allclose(alone.probabilities, one[1].probabilities, atol=1e-6)
    assert not np.allclose(one[0].probabilities, one[1].probabilities, atol=1e-4, equal_nan=True)


def test_it_stops_after_patience_epochs_without_a_better_score_and_keeps_the_best() -> None:
    """Validation labels that nothing can learn: the score soon rises no more."""
    x, labels, fold = rows(2)
    codes = np.unique(labels, return_inverse=True)[1]
    x_all, y_all = torch.from_numpy(x), torch.from_numpy(codes)
    noise = torch.arange(len(fold.val)) % 2
    given = (x_all[fold.train], y_all[fold.train], x_all[fold.val], noise, 2, (DIM,), False)
    fitted = ap.fit(*given, patience=5, seeds=(0, 1, 2), max_steps=3000, batch=32)
    assert (fitted.num_epochs_SW == fitted.best_SW + 5).all()
    longer = ap.fit(*given, patience=10**6, seeds=(0, 1, 2), max_steps=3000, batch=32)
    assert (longer.num_epochs_SW == 1000).all(), "three batches an epoch"
    assert (longer.val_score_SW >= fitted.val_score_SW).all()


def test_without_rows_to_choose_on_the_last_weights_are_kept() -> None:
    x, labels, fold = rows(3)
    bare = Fold(fold.train, fold.val[:0], fold.test)
    (found,) = ap.adam_probe(x, labels, np.arange(len(x)), (bare,), max_steps=30, batch=32, seeds=(0,))[0]
    assert found.chosen == (10.0,)


def test_fewer_steps_than_an_epoch_are_all_taken() -> None:
    x, labels, fold = rows(3)
    given = (x, labels, np.arange(len(x)), (fold,))
    one, two = (ap.adam_probe(*given, max_steps=num, batch=32, seeds=(0,))[0][0].probabilities for num in (1, 2))
    assert not np.array_equal(one, two, equal_nan=True)


@pytest.mark.parametrize(
    ("num_train", "patience"),
    [(268, 1250), (3657, 167), (1132, 500), (100_000, 7), (15_303, 42), (2175, 278), (262_144, 3), (6270, 100)],
)
def test_patience_is_what_evas_configs_hold(num_train: int, patience: int) -> None:
    assert ap.patience_of(num_train) == patience


def test_a_width_beyond_the_rows_is_refused() -> None:
    x, labels, fold = rows(3)
    with pytest.raises(ProtocolError, match="have 12 numbers; got widths 3, 13"):
        ap.adam_probe(x, labels, np.arange(len(x)), (fold,), widths=(3, 13))


def test_the_start_is_that_of_a_linear_layer() -> None:
    began = ap.start(400, (400,), 50, 0, torch.float64)[:, 0]
    layer = torch.nn.Linear(400, 50)
    assert began.abs().max() <= 1 / math.sqrt(400)
    assert began[:-1].std() == pytest.approx(float(layer.weight.detach().std()), rel=0.02)
