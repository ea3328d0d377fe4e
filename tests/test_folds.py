"""Folds: no group in two parts, every tile once, official splits as they are, leaks refused."""

from __future__ import annotations

import numpy as np
import pytest

from pathryoshka.evaluate.folds import FoldError, make_folds


def tiles(n: int = 240, num_patients: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of three unequal classes, patients."""
    rng = np.random.default_rng(seed)
    labels = np.array(["adipose", "stroma", "tumour"])[rng.choice(3, n, p=[0.5, 0.3, 0.2])]
    return labels, rng.integers(0, num_patients, n).astype(str)


def test_folds_split_patients_and_cover_every_tile_once() -> None:
    labels, patients = tiles()
    folds = make_folds(labels, patients, 5)
    assert len(folds) == 5
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(len(labels)))
    for fold in folds:
        parts = [set(patients[rows]) for rows in (fold.train, fold.val, fold.test)]
        assert all(parts) and sum(map(len, parts)) == 12
        assert sorted(np.concatenate([fold.fit, fold.test])) == list(range(len(labels)))
        assert set(labels[fold.test]) == set(labels[fold.train]) == set(labels)
        assert 0.05 < len(fold.val) / len(fold.fit) < 0.4


def test_folds_are_a_function_of_labels_groups_and_seed() -> None:
    labels, patients = tiles()
    one, same, other = (make_folds(labels, patients, 5, seed=seed) for seed in (0, 0, 1))
    assert all((a.test == b.test).all() and (a.val == b.val).all() for a, b in zip(one, same, strict=True))
    assert any(len(a.test) != len(b.test) or (a.test != b.test).any() for a, b in zip(one, other, strict=True))


def test_fewer_folds_where_a_class_has_fewer_patients() -> None:
    patients = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
    labels = np.array(["x", "y", "x", "y", "x", "y", "x", "x"])
    assert len(make_folds(labels, patients, 5)) == 3


def test_nothing_is_set_aside_where_a_class_would_be_lost() -> None:
    patients = np.array(["a", "b", "c", "d", "e", "f"])
    labels = np.array(["x", "x", "x", "x", "y", "y"])
    for fold in make_folds(labels, patients, 5):
        assert len(fold.val) == 0 and set(labels[fold.train]) == {"x", "y"}


def test_an_official_split_is_used_as_it_is() -> None:
    labels, patients = tiles()
    number = patients.astype(int)
    splits = np.where(number < 6, "train", np.where(number < 8, "val", np.where(number < 11, "test", "unused")))
    (fold,) = make_folds(labels, patients, 5, splits=splits)
    for rows, name in ((fold.train, "train"), (fold.val, "val"), (fold.test, "test")):
        np.testing.assert_array_equal(rows, np.flatnonzero(splits == name))
    (no_val,) = make_folds(labels, patients, splits=np.where(splits == "val", "train", splits))
    assert len(no_val.val) and not set(patients[no_val.val]) & set(patients[no_val.train])
    assert len(make_folds(labels, patients, 5, splits=np.full(len(labels), "test"))) == 5


@pytest.mark.parametrize("pair", [("train", "test"), ("val", "test"), ("train", "val")])
def test_a_patient_in_two_splits_is_refused(pair: tuple[str, str]) -> None:
    labels, patients = tiles()
    number = patients.astype(int)
    splits = np.where(number < 6, "train", np.where(number < 8, "val", "test"))
    planted = np.flatnonzero(splits == pair[0])[0]
    patients[planted] = patients[np.flatnonzero(splits == pair[1])[0]]
    with pytest.raises(FoldError, match=rf"1 patients are in split '{pair[0]}' and in split '{pair[1]}'"):
        make_folds(labels, patients, splits=splits)


def test_a_class_that_is_only_scored_is_refused() -> None:
    labels, patients = np.array(["x", "y", "x", "z"]), np.array(["a", "b", "c", "d"])
    with pytest.raises(FoldError, match="class 'z' is in split 'test' but not in split 'train'"):
        make_folds(labels, patients, splits=np.array(["train", "train", "test", "test"]))


def test_labels_that_cannot_be_scored_are_refused() -> None:
    patients = np.array(["a", "b", "c"])
    with pytest.raises(FoldError, match="all 3 tiles have the label 'x'"):
        make_folds(np.array(["x"] * 3), patients, 5)
    with pytest.raises(FoldError, match="only one patient has tiles of class 'y'"):
        make_folds(np.array(["x", "x", "y"]), patients, 5)
    with pytest.raises(FoldError, match="no tile has a label"):
        make_folds(np.array([], str), np.array([], str), 5)
