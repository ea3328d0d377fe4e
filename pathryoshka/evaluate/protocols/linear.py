"""Linear probe: multinomial logistic regression by L-BFGS, its penalty chosen on validation, then fitted on all."""

from __future__ import annotations

import math

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from pathryoshka.evaluate.folds import Fold

GRID = (0.01, 0.1, 1.0, 10.0)
DEFAULT = 1.0
SMALLEST_SPREAD = 1e-3


def fitted(
    x_ND: np.ndarray, labels: np.ndarray, c: float, start: LogisticRegression | None = None
) -> LogisticRegression:
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=1000, tol=1e-4, warm_start=start is not None)
    if start is not None:
        model.coef_, model.intercept_, model.classes_ = start.coef_, start.intercept_, start.classes_
    return model.fit(x_ND, labels)


def linear_probe(x_ND: np.ndarray, labels: np.ndarray, fold: Fold) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels [M], probabilities [M, C], classes [C]) of the rows `fold.test`."""

    def scaled(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, spread = x_ND[rows].mean(0), x_ND[rows].std(0)
        least = SMALLEST_SPREAD * math.sqrt(np.mean(spread**2)) + 1e-12
        return mean, np.maximum(spread, least) * math.sqrt(x_ND.shape[1])

    c = DEFAULT
    if len(fold.val):
        mean, spread = scaled(fold.train)
        train, val = (x_ND[fold.train] - mean) / spread, (x_ND[fold.val] - mean) / spread
        scores = {}
        for one in GRID:
            said = fitted(train, labels[fold.train], one).predict(val)
            scores[one] = balanced_accuracy_score(labels[fold.val], said)
        c = max(GRID, key=lambda one: (round(scores[one], 9), -one))
    mean, spread = scaled(fold.fit)
    model = fitted((x_ND[fold.fit] - mean) / spread, labels[fold.fit], c)
    test = (x_ND[fold.test] - mean) / spread
    return model.predict(test), model.predict_proba(test), model.classes_
