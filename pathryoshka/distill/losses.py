"""What the student is asked for: loss terms a (width, teacher, kind), each a number a view, and their weighted sum.

Targets are standardised, so terms of different teachers are of one size. `mse`, `angle` and `spectrum` are 1 for a
predictor of the mean: they read as the fraction unexplained. The others have no such unit.

  mse            mean over channels of (x - y)**2; with PHI-S the fraction of variance unexplained
  angle          T(x, y)**2 / E[T(y, mean direction)**2], T the angle between them (C-RADIOv4)
  cosine         1 - cos(x, y)
  l1             mean over channels of |x - y| (LiteFM)
  smooth_l1_mix  0.9 (1 - cos) + 0.1 smooth L1 (AM-RADIO)
  smooth_l1_half the same halves and halves (UNIC, DUNE)
  spectrum       sum_k (e_k + eps)**(1/3), e_k the batch's mean squared error along direction k (SpecMatch)
  relation       squared error of the cosine similarities of all pairs of views in the batch

A view whose weight is 0 contributes exactly nothing, whatever its features hold: it is cut out with `where`, because
0 * nan is nan, both as a loss and, one derivative later, as a gradient. Which teachers a view is asked for is decided
by its weights too (`teacher_weights`), so that batch statistics see the same views as the sum.

Letters: B views, N tokens, D channels, T teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from pathryoshka import config


class LossError(ValueError):
    """A loss that is not defined for what it is given."""


Preds = Mapping[int, Mapping[str, Mapping[str, torch.Tensor]]]
Targets = Mapping[str, Mapping[str, torch.Tensor]]
Key = tuple[int, str, str]
Terms = dict[Key, torch.Tensor]

FRACTIONS = ("angle", "mse", "spectrum")
"""Terms that are 1 for a predictor of the mean."""
BETA = 1 / 3
EPS = 1e-6
"""Of a mean variance of 1: above what float16 features can resolve, below the directions that matter."""


def distill_terms(
    preds: Preds,
    targets: Targets,
    cfg: config.Loss,
    dispersion: Mapping[str, float],
    weight_TB: Mapping[str, torch.Tensor] | None = None,
    variances: Mapping[tuple[str, str], torch.Tensor] | None = None,
) -> Terms:
    """Loss terms {(width, teacher, "summary" | "tokens" | "relation"): [B]}, in fp32.

    Args:
        preds: width -> teacher -> kind -> [B, D] or [B, N, D]; whatever is there becomes a term.
        targets: teacher -> kind -> the same shape, standardised.
        dispersion: teacher -> E[angle(y, mean direction)**2] of its standardised summaries.
        weight_TB: teacher -> [B]; none = 1. Views of weight 0 count in no statistic and get a term of 0.
        variances: (teacher, kind) -> [D], for `spectrum` on whitened targets: what each channel's variance was, of any
            scale. Without them, channels are taken as they come.
    """
    terms: Terms = {}
    clean: dict[tuple[str, str], torch.Tensor] = {}
    for width, by_teacher in preds.items():
        for teacher, by_kind in by_teacher.items():
            for kind, pred in by_kind.items():
                weight_B = torch.ones(len(pred), device=pred.device) if weight_TB is None else weight_TB[teacher]
                if (teacher, kind) not in clean:
                    # 1, not 0: a dummy needs a direction.
                    clean[teacher, kind] = torch.where(rows(weight_B > 0, pred), targets[teacher][kind].float(), 1.0)
                x, y = pred.float(), clean[teacher, kind]
                name = getattr(cfg, kind)
                if name == "spectrum":
                    scale = (variances or {}).get((teacher, kind))
                    loss_B = spectrum(x, y, weight_B, scale).expand(len(x))
                else:
                    loss_B = BY_NAME[name](x, y)
                    loss_B = loss_B / positive(dispersion[teacher], teacher) if name == "angle" else loss_B
                    loss_B = loss_B.flatten(1).mean(1) if loss_B.ndim > 1 else loss_B
                terms[width, teacher, kind] = torch.where(weight_B > 0, loss_B, 0.0)
                if kind == "summary" and cfg.relation:
                    terms[width, teacher, "relation"] = torch.where(weight_B > 0, relation(x, y, weight_B), 0.0)
    return terms


def positive(dispersion: float, teacher: str) -> float:
    if not dispersion > 0:
        raise LossError(
            f"loss.summary=angle divides by the dispersion of {teacher}'s summaries, which is {dispersion}; fit its "
            "standardiser with a sample that varies, or set loss.summary=cosine"
        )
    return dispersion


def combine(terms: Terms, weight_TB: Mapping[str, torch.Tensor], cfg: config.Loss) -> torch.Tensor:
    """Scalar: sum over views and terms of weight * coefficient * term; the caller divides by all ranks' weights."""
    scales = coefficients(terms, cfg)
    return torch.stack([torch.dot(weight_TB[key[1]], term) * scales[key] for key, term in terms.items()]).sum()


def coefficients(terms: Iterable[Key], cfg: config.Loss) -> dict[Key, float]:
    """Weight of each term: teacher x kind x width, the widths' shares adding up to 1 in each (teacher, kind).

    So neither the number of widths nor how many of them are drawn in a step changes the size of the loss.
    """
    keys = list(terms)
    kinds: dict[str, float] = {str(kind): weight for kind, weight in cfg.kinds.items()} | {"relation": cfg.relation}
    totals: dict[tuple[str, str], float] = {}
    for width, teacher, kind in keys:
        totals[teacher, kind] = totals.get((teacher, kind), 0.0) + cfg.widths.get(width, 1.0)
    return {
        (width, teacher, kind): cfg.weights.get(teacher, 1.0)
        * kinds.get(kind, 1.0)
        * (cfg.widths.get(width, 1.0) / totals[teacher, kind] if totals[teacher, kind] else 0.0)
        for width, teacher, kind in keys
    }


def angle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared angle in radians between vectors: [..., D] -> [...].

    2 atan2(|x - y|, |x + y|) of unit vectors is exact where arccos of a cosine is not, and its gradient is finite at 0
    and pi.
    """
    x, y = unit(x), unit(y)
    apart, along = (x - y).square().sum(-1), (x + y).square().sum(-1)
    return (2 * torch.atan2((apart + 1e-12).sqrt(), (along + 1e-12).sqrt())).square()


def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 1 - (unit(x) * unit(y)).sum(-1)


def mse(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).square().mean(-1)


def l1(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).abs().mean(-1)


def smooth_l1_mix(x: torch.Tensor, y: torch.Tensor, share: float = 0.1) -> torch.Tensor:
    """(1 - share) of the cosine distance and `share` of smooth L1."""
    smooth = torch.nn.functional.smooth_l1_loss(x, y, reduction="none").mean(-1)
    return (1 - share) * cosine(x, y) + share * smooth


BY_NAME: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "angle": angle,
    "cosine": cosine,
    "mse": mse,
    "l1": l1,
    "smooth_l1_mix": smooth_l1_mix,
    "smooth_l1_half": partial(smooth_l1_mix, share=0.5),
}


def spectrum(
    x: torch.Tensor, y: torch.Tensor, weight_B: torch.Tensor, variances: torch.Tensor | None = None
) -> torch.Tensor:
    """SpecMatch: sum_k (e_k + eps)**beta, over the same of a predictor of the mean, 0. Scalar: it is one for the batch.

    Its directions are principal ones, so it is meant for whitened targets, whose channels they are; `variances` [D]
    then gives back the size that whitening took. On rotated targets (PHI-S) every channel is alike and it is close to
    `mse`. beta 1 is the isotropic error, beta 0 whitening; 1/3 is the paper's.
    """
    size = torch.ones_like(y.flatten(0, -2)[0]) if variances is None else variances / variances.mean()

    def along(residual: torch.Tensor) -> torch.Tensor:
        squared_BD = residual.square() if residual.ndim == 2 else residual.square().mean(1)
        e_D = (weight_B @ squared_BD) / weight_B.sum().clamp_min(1e-12)
        return (size * e_D + EPS).pow(BETA).sum()

    return along(x - y) / along(torch.where(rows(weight_B > 0, y), y, 0.0))


def relation(x_BD: torch.Tensor, y_BD: torch.Tensor, weight_B: torch.Tensor) -> torch.Tensor:
    """For each view, the weighted mean over the others of (cos(x_i, x_j) - cos(y_i, y_j))**2: [B]."""
    x, y = unit(x_BD), unit(y_BD)
    others_BB = weight_B * (1 - torch.eye(len(x), device=x.device))
    squared_BB = (x @ x.T - y @ y.T).square()
    return (squared_BB * others_BB).sum(1) / others_BB.sum(1).clamp_min(1e-12)


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x, dim=-1, eps=1e-6)


def rows(mask_B: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] -> [B, 1, ...], to stand beside `like`."""
    return mask_B.view(-1, *[1] * (like.ndim - 1))


def teacher_weights(
    weight_B: torch.Tensor,
    lost_TB: Mapping[str, torch.Tensor],
    cfg: config.Loss,
    key_B: torch.Tensor | None,
    seed: int,
    step: int,
) -> dict[str, torch.Tensor]:
    """teacher -> [B]: the view's weight where that teacher is asked, else 0.

    Each teacher is left out of a view with chance `cfg.teacher_drop`, but never all of them: the luckiest stays. What
    is kept is scaled up, so that a view weighs the same whoever is left out of it. The draw is a hash of (seed, step,
    key, teacher) with `key_B` the view's number in the plan: no generator, no copy, the same on any number of ranks.

    Args:
        lost_TB: teacher -> [B] bool, whether its features of that view cannot be used.
    """
    names = list(lost_TB)
    live = torch.stack([~lost_TB[name] & (weight_B > 0) for name in names])
    if not cfg.teacher_drop:
        return {name: torch.where(live[t], weight_B, 0.0) for t, name in enumerate(names)}
    assert key_B is not None, "loss.teacher_drop draws by the views' seq"
    luck = torch.where(live, uniform(key_B, len(names), seed, step), -1.0)
    kept = live & ((luck >= cfg.teacher_drop) | (luck == luck.amax(0)))
    share = torch.stack([torch.full_like(weight_B, cfg.weights.get(name, 1.0)) for name in names])
    before, after = (share * live).sum(0), (share * kept).sum(0)
    scaled_B = torch.where(after > 0, weight_B * before / after, 0.0)
    return {name: torch.where(kept[t], scaled_B, 0.0) for t, name in enumerate(names)}


def uniform(key_B: torch.Tensor, num: int, seed: int, step: int) -> torch.Tensor:
    """[num, B] numbers in [0, 1): splitmix64 of the key, the row and (seed, step), in int64 arithmetic that wraps."""
    start = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    rows_T1 = torch.arange(1, num + 1, device=key_B.device, dtype=torch.int64)[:, None]
    x = key_B.long() * signed(0x9E3779B97F4A7C15) + rows_T1 * signed(0xD1342543DE82EF95) + signed(start)
    for _ in range(2):
        x = (x ^ right(x, 30)) * signed(0xBF58476D1CE4E5B9)
        x = (x ^ right(x, 27)) * signed(0x94D049BB133111EB)
        x = x ^ right(x, 31)
    return right(x, 40).float() / 2**24


def right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift; torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def choose_widths(widths: Sequence[int], num: int, seed: int, step: int) -> tuple[int, ...]:
    """The widths of a step: all of them for num=0, else the full one and `num` of the others, ascending.

    Drawn on the host from (seed, step), because every rank must build the same graph.
    """
    others = list(widths[:-1])
    if not num or num >= len(others):
        return tuple(widths)
    drawn = np.random.default_rng([seed, step]).choice(len(others), num, replace=False)
    return (*(others[i] for i in sorted(drawn)), widths[-1])
