"""Standardisers from a fixed sample: the first views of the plan, through the real stream and the real teachers.

Fitted once a run, before training, saved beside it with the teachers' fingerprints; a run that continues uses the same
file, and a teacher whose fingerprint changed is refused.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pathryoshka import config, storage
from pathryoshka.distill.learner import Entrant
from pathryoshka.distill.stream import Stream, make_dataset, micro_batch_of
from pathryoshka.teachers import standardize
from pathryoshka.teachers.standardize import Moments, StandardiseError, Standardiser
from pathryoshka.tiles.ledger import Ledger

TOKENS_PER_VIEW = 8
"""Tokens of one view are much alike; more of them cost time (D**2 each) and say little about the distribution."""


Key = tuple[str, str]
"""A teacher and a kind of feature."""
Sample = tuple[dict[Key, Moments], dict[Key, np.ndarray]]
"""Moments of features, and some of the features themselves."""


class FingerprintError(RuntimeError):
    """A teacher is not the one that this run was started with."""


def fit_standardisers(entrants: Sequence[Entrant], stream: Stream, fingerprints: dict[str, dict[str, Any]]) -> None:
    """Writes `<run>/standardisers.safetensors` and `.json` of each run unless they are there and fit.

    Raises:
        FingerprintError: they were fitted on another teacher, by field.
    """
    sampled: dict[int, Sample] = {}  # runs in lock-step look at the same sample once,
    fitted: dict[config.Standardise, dict[Key, Standardiser]] = {}  # and fit once what they want alike
    for entrant in entrants:
        run, facts = entrant.run, storage.join(entrant.run_uri, "standardisers.json")
        if storage.exists(facts, run.storage):
            refuse_other_teachers(storage.read_json(facts, run.storage)["teachers"], fingerprints)
            continue
        how = run.standardise
        if how not in fitted:
            if how.num_views not in sampled:
                sampled[how.num_views] = sample(run, stream)
            moments, kept = sampled[how.num_views]
            kinds = {"summary": how.summary, "tokens": how.tokens}
            fitted[how] = {key: standardize.fit(m, kinds[key[1]], kept[key]) for key, m in moments.items()}
        write(entrant, fitted[how], fingerprints)


def write(entrant: Entrant, fitted: dict[Key, Standardiser], fingerprints: dict[str, dict[str, Any]]) -> None:
    run, uri = entrant.run, storage.join(entrant.run_uri, "standardisers.safetensors")
    facts = storage.join(entrant.run_uri, "standardisers.json")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "standardisers.safetensors"
        standardize.save(fitted, path)
        data = path.read_bytes()
    storage.write_bytes(uri, data, run.storage)
    record = {"teachers": fingerprints, "sha256": hashlib.sha256(data).hexdigest(), "views": run.standardise.num_views}
    storage.write_json(facts, record, run.storage)


def sample(run: config.Run, stream: Stream) -> Sample:
    """One pass over the first `standardise.num_views` views of the plan; their order does not matter."""
    num_views = min(run.standardise.num_views, stream.source.plan.num_views)
    sample = replace(stream, source=replace(stream.source, plan=replace(stream.source.plan, num_views=num_views)))
    moments: dict[tuple[str, str], Moments] = {}
    kept: dict[tuple[str, str], list[np.ndarray]] = {}
    for row in make_dataset(sample, Ledger()).iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=1):
        batch = micro_batch_of(row)
        real = batch["weight"] > 0
        for name in stream.dims:
            summary = batch[f"{name}.summary"][real].astype(np.float64)
            tokens = batch[f"{name}.tokens"][real]
            spread = np.linspace(0, tokens.shape[1] - 1, min(TOKENS_PER_VIEW, tokens.shape[1])).astype(int)
            tokens = tokens[:, spread].reshape(-1, tokens.shape[-1]).astype(np.float64)
            for kind, x in (("summary", summary), ("tokens", tokens)):
                if kind not in run.kinds:
                    continue
                try:
                    moments.setdefault((name, kind), Moments(x.shape[1])).update(x)
                except StandardiseError as error:
                    raise StandardiseError(f"teacher {name}, {kind}: {error}") from None
                kept.setdefault((name, kind), []).append(x[:256].astype(np.float32))
    return moments, {key: np.concatenate(parts)[:4096] for key, parts in kept.items()}


def refuse_other_teachers(saved: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> None:
    for name, facts in json.loads(json.dumps(now)).items():
        old = saved.get(name, {})
        for key in sorted(facts.keys() | old.keys()):
            if facts.get(key) != old.get(key):
                raise FingerprintError(
                    f"teacher {name} is not the one this run began with: {key} was {old.get(key)!r}, is "
                    f"{facts.get(key)!r}; use the old one or another run name"
                )
