"""Slides by attention and segmentation by tokens, against loops, scikit-learn and finite arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, jaccard_score

from pathryoshka.evaluate.folds import Fold, make_folds
from pathryoshka.evaluate.protocols import mil, segment
from pathryoshka.evaluate.protocols.rows import ProtocolError
from tests.blobs import unit


def slides_with_a_few_tumour_tiles(num: int = 48) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x [N, 16], slide of each tile, labels of slides, tiles that carry the label: 2 of some 16, every other slide."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(12, 21, num)
    slides = np.repeat(np.arange(num), sizes)
    x = rng.standard_normal((len(slides), 16))
    key = np.zeros(len(slides), bool)
    for s in range(0, num, 2):
        key[np.flatnonzero(slides == s)[:2]] = True
    x[key] += 4 * rng.standard_normal(16)
    return unit(x), slides, np.where(np.arange(num) % 2, "normal", "tumour"), key


def test_attention_finds_the_tiles_that_make_the_label() -> None:
    x, slides, labels, key = slides_with_a_few_tumour_tiles()
    groups = np.arange(48) // 2
    folds = make_folds(labels, groups.astype(str), 2)
    found = mil.slide_labels(x, slides, labels, groups, folds)
    assert found.slides.score.value > 0.85
    assert found.slides.score.value == pytest.approx(balanced_accuracy_score(labels, found.slides.predicted))
    np.testing.assert_allclose(np.bincount(slides, found.attention), 1, rtol=1e-5)
    tumour = np.isin(slides, np.flatnonzero(labels == "tumour"))
    assert found.attention[key].mean() > 2 * found.attention[tumour & ~key].mean()
    again = mil.slide_labels(x, slides, labels, groups, folds)
    np.testing.assert_array_equal(found.slides.probabilities, again.slides.probabilities)
    other = mil.slide_labels(x, slides, labels, groups, folds, seed=1)
    assert (found.slides.probabilities != other.slides.probabilities).any()


def test_gated_attention_is_the_formula_and_padding_is_no_tile() -> None:
    torch.manual_seed(0)
    model = mil.GatedAttention(5, 2).double()
    bags = [torch.randn(3, 5).double(), torch.randn(6, 5).double()]
    x, rows = torch.cat(bags), [np.arange(3), np.arange(3, 9)]
    logits, attention = model(*mil.padded(x, rows))
    for s, bag in enumerate(bags):
        scores = []
        for z in bag:
            hidden = torch.tanh(model.value.weight @ z + model.value.bias)
            gate = 1 / (1 + torch.exp(-(model.gate.weight @ z + model.gate.bias)))
            scores.append((model.score.weight[0] @ (hidden * gate) + model.score.bias).item())
        weight = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(attention[s, : len(bag)].detach(), weight, rtol=1e-9)
        assert not attention[s, len(bag) :].any()
        pooled = sum(w * z for w, z in zip(weight, bag, strict=True))
        np.testing.assert_allclose(
            logits[s].detach(), (model.head.weight @ pooled + model.head.bias).detach(), rtol=1e-9
        )


def test_the_epoch_with_the_lowest_loss_on_val_is_kept() -> None:
    x, slides, labels, _ = slides_with_a_few_tumour_tiles()
    rows = np.arange(48)
    fold = Fold(rows[:24], rows[24:36], rows[36:])
    found = mil.slide_labels(x, slides, labels, rows, [fold])
    assert 1 <= found.slides.chosen[0] <= mil.EPOCHS
    assert np.isnan(found.slides.probabilities[:36]).all() and np.isnan(found.attention[slides < 36]).all()
    bare = mil.slide_labels(x, slides, labels, rows, [Fold(rows[:36], rows[:0], rows[36:])])
    assert bare.slides.chosen == (float(mil.FIXED),)
    state = torch.random.get_rng_state()
    mil.slide_labels(x, slides, labels, rows, [Fold(rows[:4], rows[:0], rows[36:])])
    assert torch.equal(state, torch.random.get_rng_state())  # nobody else's draws are moved


def test_slides_without_tiles_are_refused() -> None:
    x, slides, labels, _ = slides_with_a_few_tumour_tiles()
    folds = make_folds(labels, np.arange(48).astype(str), 2)
    with pytest.raises(ProtocolError, match="slide 3 has no tile"):
        mil.slide_labels(x[slides != 3], slides[slides != 3], labels, np.arange(48), folds)
    with pytest.raises(ProtocolError, match="embeddings hold NaN or infinity"):
        mil.slide_labels(x * np.nan, slides, labels, np.arange(48), folds)


def images_of_tokens(num: int = 24, noise: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [N, 16, 12], their classes with some void ones, groups of three images."""
    rng = np.random.default_rng(2)
    labels = rng.choice([0, 0, 0, 1, 1, 2], (num, 16))
    tokens = rng.standard_normal((3, 12))[labels] + noise * rng.standard_normal((num, 16, 12))
    labels[rng.random(labels.shape) < 0.1] = segment.VOID
    return tokens, labels, np.arange(num) // 3


def test_dice_and_iou_are_scikit_learns_over_tested_tokens() -> None:
    tokens, labels, groups = images_of_tokens()
    rows = np.arange(24)
    folds = [Fold(rows[:12], rows[12:15], rows[15:])]
    found = segment.segment(tokens, labels, groups, folds)
    known = labels[15:] != segment.VOID
    truth, predicted = labels[15:][known], found.predicted[15:][known]
    assert (found.predicted[:15] == segment.VOID).all() and (found.predicted[15:][~known] == segment.VOID).all()
    assert found.dice.value == pytest.approx(f1_score(truth, predicted, average="macro"))  # Dice of a class is its F1
    assert found.iou.value == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    assert 0.6 < found.iou.value < found.dice.value < 1 and found.chosen[0] in segment.PENALTIES


def test_tokens_are_drawn_evenly_and_void_ones_never() -> None:
    _, labels, _ = images_of_tokens()
    images = np.array([1, 5, 9])
    drawn = segment.draw(labels, images, 12, np.random.default_rng(0))
    assert (labels.reshape(-1)[drawn] != segment.VOID).all()
    assert np.bincount(drawn // 16, minlength=24)[images].tolist() == [4, 4, 4] and len(set(drawn)) == 12
    every = segment.draw(labels, images, None, np.random.default_rng(0))
    assert len(every) == (labels[images] != segment.VOID).sum()
    tokens, labels, groups = images_of_tokens()
    folds = [Fold(np.arange(12), np.arange(12, 15), np.arange(15, 24))]
    few, same = (segment.segment(tokens, labels, groups, folds, max_tokens=60) for _ in range(2))
    np.testing.assert_array_equal(few.predicted, same.predicted)
    assert few.dice.value > 0.5


def test_a_token_has_the_class_of_most_of_its_pixels() -> None:
    mask = np.zeros((1, 4, 6), int)
    mask[0, :2, 3:] = 2
    mask[0, 2:, :2] = 1
    mask[0, 2:, 4:] = -7  # void, however it is written
    np.testing.assert_array_equal(segment.token_labels(mask, 2, 2), [[0, 2, 1, -1]])
    with pytest.raises(ProtocolError, match="masks of 4 x 6 pixels do not divide into 3 x 2 tokens"):
        segment.token_labels(mask, 3, 2)


def test_images_of_one_class_are_refused_and_constant_tokens_are_worth_little() -> None:
    tokens, labels, groups = images_of_tokens()
    folds = [Fold(np.arange(12), np.arange(12, 15), np.arange(15, 24))]
    with pytest.raises(ProtocolError, match="the training images of fold 0 show fewer than two classes"):
        segment.segment(tokens, np.where(np.arange(24)[:, None] < 12, 0, labels), groups, folds)
    with pytest.raises(ProtocolError, match="give one label a token"):
        segment.segment(tokens, labels[:, 1:], groups, folds)
    flat = segment.segment(np.ones_like(tokens), labels, groups, folds)
    assert flat.dice.value < 0.3
