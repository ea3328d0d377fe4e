"""The report of a sweep as one HTML file, and its winner as a file for `distill --config`."""

from __future__ import annotations

from html import escape
from typing import Any

import yaml

from pathryoshka import config, storage
from pathryoshka.changes import differences
from pathryoshka.evaluate.pictures import to_svg
from pathryoshka.evaluate.report import duration
from pathryoshka.page import drawing, page, table
from pathryoshka.sweep import figures
from pathryoshka.sweep.record import Record, Trial, read_record, sweep_uri, trials_root
from pathryoshka.sweep.space import METRICS, Objective, Sweep, describe, run_of, short
from pathryoshka.sweep.worth import Importance, best, finished, importance, pareto

COSTS = ("num_params", "gflops", "full_width", "seconds")


def report_sweep(sweep: Sweep, base: config.Run) -> list[str]:
    """Writes `<sweep>/report.html` and, where a trial finished, `<sweep>/best.yaml`; returns where.

    Raises:
        ConfigError: the sweep has no trial yet.
    """
    record = read_record(base)
    if not record.trials:
        raise config.ConfigError(f"sweep {sweep_uri(base)} has no trial yet; run `pathryoshka sweep` first")
    uri = storage.join(sweep_uri(base), "report.html")
    storage.write_bytes(uri, render(sweep, base, record).encode(), base.storage)
    written, winner = [uri], best(list(record.trials.values()), sweep.objective[0])
    if winner:
        uri = storage.join(sweep_uri(base), "best.yaml")
        storage.write_bytes(uri, best_yaml(sweep, base, winner).encode(), base.storage)
        written.append(uri)
    return written


def best_yaml(sweep: Sweep, base: config.Run, winner: Trial) -> str:
    """The winner's run whole, under a name of its own, with what distinguishes it from the base as a comment."""
    run = run_of(base, winner.point).model_copy(update={"name": f"{base.name}-best"})
    changed = differences(base.model_dump(mode="json"), run.model_dump(mode="json"))
    said = "".join(f"#   {key}: {value!r} (base: {old!r})\n" for key, old, value in changed if key != "name")
    if winner.taken:
        said += (
            "# Its values changed while it trained; these are the last, and a run that begins with them is another.\n"
            f"# The student that was measured is {trials_root(base)}/{winner.id}.\n"
        )
    values = ", ".join(f"{o.metric} {short(winner.values[o.metric])}" for o in sweep.objective)
    head = f"# Trial {winner.number} of sweep {base.name}: {values}. pathryoshka distill --config best.yaml\n{said}"
    return head + yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False)


def render(sweep: Sweep, base: config.Run, record: Record) -> str:
    """The page as text."""
    trials = sorted(record.trials.values(), key=lambda t: t.number)
    winner = best(trials, sweep.objective[0])
    parts = [
        f"<h1>Pathryoshka &middot; sweep {escape(base.name)}</h1>",
        f'<p class="lead">{headline(sweep, record, winner)}</p>',
        *(f'<p class="warn">{escape(note)}</p>' for note in warnings(sweep, base, trials)),
    ]
    if winner:
        parts += ["<h2>The winner</h2>", winner_part(sweep, base, winner)]
    if len(finished(trials)) > 1:
        says = "Parallel coordinates: one line a finished trial, from its parameters to its objective, best on top."
        parts += ["<h2>What the trials were and what came of them</h2>"]
        parts.append(draw("parallel", says, lambda narrow: figures.parallel(trials, sweep, winner, narrow=narrow)))
    if sweep.scheduler != "pbt":  # values that a trial ended with are not what made it good
        parts += ["<h2>How much each parameter matters</h2>", importance_part(importance(trials, sweep), sweep)]
    parts += front_part(sweep, trials, winner)
    says = "Fraction unexplained on training views against views, one line a trial; a cross ends one that was stopped."
    if any(trial.curve for trial in trials):
        parts.append("<h2>How they learned</h2>")
        parts.append(draw("curves", says, lambda narrow: figures.curves(trials, winner, narrow=narrow)))
    parts += ["<h2>All trials</h2>", trial_table(sweep, record, trials, winner), "<h2>What to keep in mind</h2>"]
    parts.append(f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in remarks(sweep, base))}</ul>")
    trees = {"sweep": sweep.model_dump(mode="json", exclude_none=True), **base.model_dump(mode="json")}
    text = escape(yaml.safe_dump(trees, sort_keys=False))
    parts.append(f"<details><summary>The sweep and its base</summary><pre>{text}</pre></details>")
    return page(f"Pathryoshka: sweep {base.name}", "\n".join(parts))


def draw(name: str, says: str, make: Any) -> str:
    return drawing(to_svg(make(False), f"{name}-0"), to_svg(make(True), f"{name}-1"), says, says)


def headline(sweep: Sweep, record: Record, winner: Trial | None) -> str:
    counts = {status: len(record.with_status(status)) for status in ("finished", "stopped", "failed", "running")}  # type: ignore[arg-type]
    said = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    text = f"{len(record.trials)} trials: {said}; {record.views:,} views in {duration(record.seconds)}"
    if sweep.cost_per_hour:
        text += f", cost {record.trial_hours * sweep.cost_per_hour:.2f}"
    if not winner:
        return f"{text}. None has finished, so there is no winner."
    objective = sweep.objective[0]
    value = short(winner.values[objective.metric])
    return f"{text}. Trial {winner.number} is best with {escape(objective.metric)} <b>{value}</b>."


def warnings(sweep: Sweep, base: config.Run, trials: list[Trial]) -> list[str]:
    found = []
    failed = [trial for trial in trials if trial.status == "failed"]
    if failed:
        found.append(f"{len(failed)} of {len(trials)} trials failed; the table says why. The others are what is left.")
    if sweep.objective[0].metric == "unexplained":
        found.append(
            "The objective is measured on views that were being trained on. With several epochs it rewards fitting "
            "them; set sweep.validation.tiles and choose by validation, or by probe."
        )
    return found


def winner_part(sweep: Sweep, base: config.Run, winner: Trial) -> str:
    rows = [("", [escape(key), escape(short(value))]) for key, value in winner.point.items()]
    rows += [("", [escape(key), short(value)]) for key, value in winner.values.items()]
    said = (
        "<code>best.yaml</code> beside this page is its whole config, as run "
        f"{escape(base.name)}-best: <code>pathryoshka distill --config best.yaml</code>"
    )
    if winner.taken:
        said += (
            ". Its values changed while it trained, so that is another run; the student that was measured is "
            f"<code>trials/{escape(winner.id)}</code>"
        )
    return f"<p>{said}.</p>{table(['trial ' + str(winner.number), ''], rows)}"


def importance_part(found: Importance | str, sweep: Sweep) -> str:
    if isinstance(found, str):
        return f"<p>{escape(found)}</p>"
    bar = '<span class="bar" style="width:{:.2f}rem;background:var(--student)"></span>{:.0%}'
    rows = [("", [escape(key), bar.format(12 * share, share)]) for key, share in found.share.items()]
    doubt = "" if found.explained > 0.5 else " That is little: do not read much into the shares."
    said = (
        f"Share of what a random forest loses in predicting {sweep.objective[0].metric} where one parameter is "
        f"shuffled, on trials it did not learn from. It explains {max(0.0, found.explained):.0%} of their "
        f"variance.{doubt}"
    )
    return table(["parameter", "share"], rows, said)


def front_part(sweep: Sweep, trials: list[Trial], winner: Trial | None) -> list[str]:
    """The first objective against each other one, and against each cost in which the finished trials differ."""
    score, done = sweep.objective[0], finished(trials)
    others = {o.metric: o for o in sweep.objective[1:]} | {name: Objective(metric=name, mode="min") for name in COSTS}
    parts = []
    for name, cost in others.items():
        if name == score.metric or len({t.values[name] for t in done if name in t.values}) < 2:
            continue
        best_ones = ", ".join(str(t.number) for t in pareto(trials, (score, cost)))
        says = f"{score.metric} against {METRICS[name.partition('/')[0]]}. No other trial beats {best_ones} in both."

        def make(narrow: bool, cost: Objective = cost) -> Any:
            return figures.front(trials, score, cost, winner, narrow=narrow)

        parts.append(draw(f"front-{name}", says, make))
    return ["<h2>What better costs</h2>", *parts] if parts else []


def history(record: Record, trial: Trial) -> str:
    """What a trial was before it took over a better one, last first."""
    steps = reversed(trial.taken)
    was = [f"{t.views:,} views: from trial {record.trials[t.of].number}; was {describe(t.before)}" for t in steps]
    return "".join(f"<br><small>{escape(line)}</small>" for line in was)


def trial_table(sweep: Sweep, record: Record, trials: list[Trial], winner: Trial | None) -> str:
    metrics = list(dict.fromkeys([o.metric for o in sweep.objective] + ["unexplained", "num_params"]))
    rows = []
    for trial in trials:
        shown = [short(trial.values[m]) if m in trial.values else "" for m in metrics]
        last = "" if not trial.curve else short(trial.curve[-1][1])
        values = [
            v or (f"<small>{last}</small>" if m == "unexplained" else "") for m, v in zip(metrics, shown, strict=True)
        ]
        status = trial.status + (f", {trial.failures} failures" if trial.failures else "")
        point = escape(describe(trial.point)) + history(record, trial)
        cells = [f"{trial.number} <small>{escape(trial.id)}</small>", status, point, *values]
        cells += [f"{trial.views:,}", duration(trial.seconds), escape(trial.error)]
        rows.append(("student" if winner is not None and trial.id == winner.id else "", cells))
    head = ["trial", "status", "point", *metrics, "views", "time", "error"]
    return table(head, rows, "Small figures are of trials that did not finish.")


def remarks(sweep: Sweep, base: config.Run) -> list[str]:
    notes = [f"{o.metric}: {METRICS[o.metric.partition('/')[0]]}." for o in sweep.objective]
    notes.append("One seed a trial: train the best few with other seeds before you believe a small difference.")
    if sweep.scheduler == "pbt":
        notes.append("Values are those that a trial ended with; what it had before, and from whom, the table says.")
    elif sweep.scheduler != "none":
        notes.append("Trials are compared in the middle of their schedules: what learns slowly at first is stopped.")
    return notes
