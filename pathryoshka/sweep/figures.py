"""The drawings of a sweep's report: learning curves, parallel coordinates, the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from pathryoshka.evaluate.pictures import STYLE, furnish, light
from pathryoshka.sweep.record import Trial
from pathryoshka.sweep.space import Objective, Sweep, short
from pathryoshka.sweep.worth import finished, loss_of, pareto, position

NUM_LABELS = 6


def colour(trial: Trial, winner: Trial | None) -> str:
    if winner is not None and trial.id == winner.id:
        return light("student")
    return light({"finished": "teacher1", "stopped": "random", "failed": "teacher2", "running": "pca"}[trial.status])


def canvas(narrow: bool, height: float = 3.6) -> Figure:
    return Figure(figsize=(4.1 if narrow else 9.4, height), layout="constrained", facecolor=light("paper"))


def curves(trials: Sequence[Trial], winner: Trial | None, *, narrow: bool = False) -> Figure:
    """Fraction unexplained against views, a line a trial; the winner's is thick."""
    with mpl.rc_context(STYLE):
        figure = canvas(narrow)
        ax = figure.subplots()
        for trial in trials:
            if trial.curve:
                views, shares = zip(*trial.curve, strict=True)
                thick = winner is not None and trial.id == winner.id
                mark = "x" if trial.status in ("stopped", "failed") else "o"
                ax.plot(views, shares, color=colour(trial, winner), linewidth=2.4 if thick else 1.1, zorder=3 + thick,
                        marker=mark, markevery=[len(views) - 1], markersize=5, alpha=1 if thick else 0.7)  # fmt: skip
                if len(trials) <= NUM_LABELS or thick:
                    ax.annotate(str(trial.number), (views[-1], shares[-1]), (5, 0), textcoords="offset points",
                                va="center", fontsize=9, color=colour(trial, winner))  # fmt: skip
        ax.set_xlabel("views", color=light("faint"))
        ax.set_ylabel("fraction unexplained", color=light("faint"))
        furnish(ax)
    return figure


def parallel(trials: Sequence[Trial], sweep: Sweep, winner: Trial | None, *, narrow: bool = False) -> Figure:
    """One axis a parameter and one for the first objective, best on top; one line a finished trial."""
    objective, done = sweep.objective[0], finished(trials)
    losses = [loss_of(t, objective) for t in done]
    low, high = min(losses), max(losses)
    keys = list(sweep.space)
    with mpl.rc_context(STYLE):
        figure = canvas(narrow, 4.2)
        ax = figure.subplots()
        for trial in sorted(done, key=lambda t: winner is not None and t.id == winner.id):
            heights = [position(key, trial.point[key], sweep) for key in keys]
            heights.append(1 - (loss_of(trial, objective) - low) / ((high - low) or 1))
            thick = winner is not None and trial.id == winner.id
            ax.plot(range(len(heights)), heights, color=colour(trial, winner), linewidth=2.6 if thick else 1.1,
                    alpha=1 if thick else 0.2 + 0.6 * heights[-1], zorder=3 + thick)  # fmt: skip
        for i, key in enumerate(keys):
            ax.axvline(i, color=light("line"), linewidth=0.9, zorder=1)
            for height, text in ticks(key, sweep):
                ax.annotate(text, (i, height), (3, 0), textcoords="offset points", fontsize=8.5, va="center",
                            color=light("ink"), zorder=6)  # fmt: skip
        sign = 1 if objective.mode == "min" else -1
        ax.axvline(len(keys), color=light("line"), linewidth=0.9, zorder=1)
        for height, value in ((1, low), (0, high)):
            ax.annotate(short(sign * value), (len(keys), height), (3, 0), textcoords="offset points", fontsize=8.5,
                        va="center", color=light("ink"), zorder=6)  # fmt: skip
        names = [*keys, objective.metric]
        ax.set_xticks(range(len(names)), names, rotation=30 if narrow or len(names) > 5 else 0,
                      ha="right" if narrow or len(names) > 5 else "center")  # fmt: skip
        ax.set_xlim(-0.2, len(keys) + 0.45)
        ax.set_yticks([])
        furnish(ax)
        ax.spines["left"].set_visible(False)
    return figure


def ticks(key: str, sweep: Sweep) -> list[tuple[float, str]]:
    """(height, words) of an axis: each choice, or both ends of a range."""
    axis = sweep.space[key]
    return [(position(key, value, sweep), short(value)) for value in axis.values or axis.corners]


def front(
    trials: Sequence[Trial], score: Objective, cost: Objective, winner: Trial | None, *, narrow: bool = False
) -> Figure:
    """A score against a cost, the trials that no other one beats joined by a line."""
    with mpl.rc_context(STYLE):
        figure = canvas(narrow)
        ax = figure.subplots()
        best = sorted(pareto(trials, (score, cost)), key=lambda t: t.values[cost.metric])
        ax.plot([t.values[cost.metric] for t in best], [t.values[score.metric] for t in best],
                color=light("student"), linewidth=1.4, drawstyle="steps-post", zorder=2)  # fmt: skip
        for trial in finished(trials):
            x, y = trial.values[cost.metric], trial.values[score.metric]
            ax.plot([x], [y], marker="o", markersize=6, color=colour(trial, winner), zorder=3)
            if trial in best:
                ax.annotate(str(trial.number), (x, y), (5, 5), textcoords="offset points", fontsize=9)
        ax.set_xlabel(cost.metric.replace("_", " "), color=light("faint"))
        ax.set_ylabel(score.metric, color=light("faint"))
        furnish(ax)
    return figure
