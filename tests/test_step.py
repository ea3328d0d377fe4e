"""The training step with a plain PyTorch engine: its sums, its ranks, what it must survive and what it must not do."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import start_processes
from torch.utils._python_dispatch import TorchDispatchMode

from pathryoshka import config
from pathryoshka.distill import step as step_module
from pathryoshka.distill.losses import LossError
from pathryoshka.distill.model import Distiller, Ema
from pathryoshka.distill.step import reduce_metrics, train_step
from pathryoshka.student.encoder import build_student
from pathryoshka.student.heads import Heads
from tests.ports import free_port

DIMS = {"a.b": {"summary": 10, "tokens": 6}, "c": {"summary": 7, "tokens": 9}}
KEYS = [(teacher, kind) for teacher in DIMS for kind in ("summary", "tokens")]


class Engine:
    """What a training engine must be able to do: average over ranks and micro-batches, step when a batch is whole."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, num_micro: int = 1):
        self.module, self.optimizer, self.num_micro, self.seen = module, optimizer, num_micro, 0

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def backward(self, loss: torch.Tensor) -> None:
        (loss / self.num_micro).backward()

    def step(self) -> None:
        self.seen += 1
        if self.seen % self.num_micro:
            return
        for parameter in self.module.parameters():
            if dist.is_initialized():
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()  # type: ignore[operator]
        self.optimizer.step()
        self.optimizer.zero_grad()


@dataclass(frozen=True, eq=False)
class Plain:
    """A standardiser that does nothing."""

    kind: str = "none"
    dispersion: float = 2.0
    inverse: np.ndarray | None = None

    def apply(self, y: torch.Tensor) -> torch.Tensor:
        return y


PLAIN = {key: Plain() for key in KEYS}


def make_run(**loss: Any) -> config.Run:
    student = config.Student(
        model="vit_tiny_patch16_224", model_args={"patch_size": 8, "embed_dim": 24, "depth": 1}, widths=(6, 12, 24)
    )
    return config.Run(student=student, views=config.Views(size=32), loss=config.Loss(**loss))


def make_engine(run: config.Run, num_micro: int = 1, lr: float = 0.1) -> Engine:
    torch.manual_seed(0)
    student = build_student(run.student, run.views.size)
    module = Distiller(student, Heads(run.student.widths, DIMS, run.student.heads, student.token_width))
    return Engine(module, torch.optim.SGD(module.parameters(), lr=lr), num_micro)


def make_batch(num: int, seed: int = 0, num_tokens: int = 5) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    batch = {
        "views": torch.randint(0, 256, (num, 32, 32, 3), dtype=torch.uint8, generator=g),
        "seq": torch.arange(num) + 1000 * seed,
        "weight": torch.where(torch.arange(num) % 4 == 1, 0.0, 1.0),
        "token_pos": torch.stack([torch.randperm(16, generator=g)[:num_tokens].sort()[0] for _ in range(num)]).int(),
    }
    for teacher, kind in KEYS:
        shape = (num, DIMS[teacher][kind]) if kind == "summary" else (num, num_tokens, DIMS[teacher][kind])
        batch[f"{teacher}.{kind}"] = torch.randn(shape, generator=g).half()
    return batch


def part(batch: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in batch.items()}


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


VARIED = {"teacher_drop": 0.4, "widths_per_step": 1, "token_widths_per_step": 1, "weights": {}, "widths": {12: 0.5}}


def two_steps(num_micro: int, rows: slice = slice(None)) -> tuple[torch.Tensor, dict[str, float]]:
    """Weights and metrics after two steps on this slice of two batches of 16, cut into micro-batches."""
    run = make_run(**VARIED)
    engine = make_engine(run, num_micro)
    metrics = []
    for step in range(2):
        mine = part(make_batch(16, seed=step), rows)
        size = len(mine["seq"]) // num_micro
        micro = [part(mine, slice(k * size, (k + 1) * size)) for k in range(num_micro)]
        metrics.append(train_step(engine, micro, PLAIN, run, step))
    return flat(engine.module), reduce_metrics(metrics)


def rank_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(two_steps(2, slice(8 * rank, 8 * rank + 8)), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", autouse=True)
def forkserver() -> None:
    """Importing torch and timm takes seconds: once for both ranks, and while the other tests run."""
    multiprocessing.set_forkserver_preload([__name__])
    multiprocessing.forkserver.ensure_running()


def test_the_loss_is_the_weighted_mean_and_the_metrics_say_what_of() -> None:
    """One step against its definition, written out in float64."""
    run = make_run(
        summary="mse", weights={}, kinds={"summary": 2.0, "tokens": 1.0}, widths={24: 3.0}, token_widths_per_step=0
    )
    engine = make_engine(run)
    batch = make_batch(8, num_tokens=16)
    with torch.no_grad():
        (preds,) = engine.module(batch["views"], batch["token_pos"], (6, 12, 24), (6, 12, 24))
    values = reduce_metrics([train_step(engine, [batch], PLAIN, run, 0)])
    weight = batch["weight"].double().numpy()
    share = {6: 0.2, 12: 0.2, 24: 0.6}
    total = 0.0
    for teacher, kind in KEYS:
        y = batch[f"{teacher}.{kind}"].double().numpy()
        for width in share:
            x = preds[width][teacher][kind].double().numpy()
            term = ((x - y) ** 2).reshape(8, -1).mean(1)
            mean = (weight * term).sum() / weight.sum()
            assert values[f"unexplained/{teacher}/{kind}/{width}"] == pytest.approx(mean, rel=1e-5)
            total += mean * share[width] * (2.0 if kind == "summary" else 1.0)
    assert values["loss"] == pytest.approx(total, rel=1e-5)
    both = [values[f"unexplained/c/{kind}/24"] for kind in ("summary", "tokens")]
    assert values["unexplained/c"] == pytest.approx(np.mean(both))
    assert {k: v for k, v in values.items() if "nonfinite" in k} == {
        f"nonfinite/{n}": 0.0 for n in ("a.b", "c", "loss")
    }


def test_terms_without_a_unit_are_not_called_fractions() -> None:
    run = make_run(summary="cosine", relation=0.1)
    values = reduce_metrics([train_step(make_engine(run), [make_batch(8)], PLAIN, run, 0)])
    assert {"term/c/summary/24", "term/c/relation/24", "unexplained/c/tokens/24"} <= values.keys()
    assert values["unexplained/c"] == values["unexplained/c/tokens/24"]
    assert not [k for k in values if k.startswith("unexplained/c/summary")]


def test_tokens_are_taken_where_the_teachers_took_them() -> None:
    module = make_engine(make_run()).module.eval()
    batch, positions = make_batch(4), torch.tensor([[0, 7, 15], [1, 2, 3], [4, 8, 12], [5, 5, 5]])
    with torch.no_grad():
        (some,) = module(batch["views"], positions.int(), (24,), (6, 24))
        (every,) = module(batch["views"], torch.arange(16).expand(4, -1).int(), (24,), (6, 24))
    for width in (6, 24):
        got, tokens = some[width]["c"]["tokens"], every[width]["c"]["tokens"]
        want = torch.stack([tokens[b, positions[b]] for b in range(4)])
        np.testing.assert_allclose(got.numpy(), want.numpy(), atol=1e-6)


def test_a_padding_row_changes_nothing() -> None:
    """Rows of weight 0 full of rubbish against the same batch without them."""
    run = make_run(summary="spectrum", relation=0.2, teacher_drop=0.3)
    batch = make_batch(8)
    for name in (f"{teacher}.{kind}" for teacher, kind in KEYS):
        batch[name][batch["weight"] == 0] = float("nan")
    results = []
    for mine in (batch, part(batch, batch["weight"] > 0)):  # type: ignore[arg-type]
        engine = make_engine(run)
        results.append((reduce_metrics([train_step(engine, [mine], PLAIN, run, 0)]), flat(engine.module)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    np.testing.assert_allclose(results[0][1].numpy(), results[1][1].numpy(), atol=1e-6)
    assert results[0][0]["nonfinite/c"] == 0


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_left_out_and_counted(rubbish: float) -> None:
    run = make_run()
    bad, good = make_batch(8), make_batch(8)
    bad["c.tokens"][2, 3, 1] = rubbish
    bad["c.summary"][3, 0] = rubbish
    engine = make_engine(run)
    values = reduce_metrics([train_step(engine, [bad], PLAIN, run, 0)])
    assert (values["nonfinite/c"], values["nonfinite/a.b"], values["nonfinite/loss"]) == (2, 0, 0)
    assert np.isfinite(list(values.values())).all() and bool(flat(engine.module).isfinite().all())
    clean = reduce_metrics([train_step(make_engine(run), [good], PLAIN, run, 0)])
    assert values["unexplained/a.b"] == clean["unexplained/a.b"] and values["unexplained/c"] != clean["unexplained/c"]


def test_a_loss_that_is_not_finite_moves_nothing_and_is_counted() -> None:
    run = make_run()
    engine = make_engine(run, num_micro=2)
    batch = make_batch(16)
    broken = nn.Module.__call__

    class Overflow(Engine):
        def __call__(self, *args: Any) -> Any:
            (preds,) = broken(self.module, *args)
            if self.seen == 0:
                preds[24]["c"]["summary"] = preds[24]["c"]["summary"] * float("inf")
            return (preds,)

    sick = Overflow(engine.module, engine.optimizer, 2)
    before = flat(engine.module)
    metrics = train_step(sick, [part(batch, slice(8)), part(batch, slice(8, 16))], PLAIN, run, 0)
    after = flat(engine.module)
    assert reduce_metrics([metrics])["nonfinite/loss"] == 1 and bool(after.isfinite().all())
    # exactly the second micro-batch's share of the step was made
    other = make_engine(run)
    train_step(other, [part(batch, slice(8, 16))], PLAIN, run, 0)
    np.testing.assert_allclose((after - before).numpy(), (flat(other.module) - before).numpy() / 2, atol=1e-6)


def test_an_angle_without_a_dispersion_is_refused() -> None:
    run = make_run()
    unmeasured = {key: Plain(dispersion=float("nan")) for key in KEYS}
    with pytest.raises(LossError, match="dispersion of a.b's summaries, which is nan; .* or set loss.summary=cosine"):
        train_step(make_engine(run), [make_batch(4)], unmeasured, run, 0)


def test_a_kind_of_weight_zero_needs_no_features() -> None:
    run = make_run(kinds={"summary": 1.0, "tokens": 0.0})
    batch = {name: value for name, value in make_batch(8).items() if not name.endswith(".tokens")}
    values = reduce_metrics([train_step(make_engine(run), [batch], PLAIN, run, 0)])
    assert values["loss"] > 0 and not [name for name in values if "/tokens" in name]


def test_whitened_targets_bring_their_variances() -> None:
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 7)))[0]
    deviations = np.geomspace(3, 0.1, 7)
    standardiser = Plain(kind="pca_whiten", inverse=rotation * deviations)
    got = step_module.whitened(standardiser, torch.device("cpu"))
    assert got is not None
    np.testing.assert_allclose(got.numpy(), deviations**2, rtol=1e-6)
    assert step_module.whitened(Plain(), torch.device("cpu")) is None


@contextmanager
def no_host_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forbids every way by which a number leaves the device: on CUDA each would wait for it."""

    class Forbid(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            masked = func is torch.ops.aten.index.Tensor and any(
                i is not None and i.dtype == torch.bool for i in args[1]
            )
            if masked or func.name().split("::")[1].split(".")[0] in COPYING:
                raise AssertionError(f"{func.name()} waits for the device")
            return func(*args, **(kwargs or {}))

    def refuse(name: str) -> Callable[..., Any]:
        def method(*_: Any, **__: Any) -> Any:
            raise AssertionError(f"Tensor.{name} waits for the device")

        return method

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__"):
            patch.setattr(torch.Tensor, name, refuse(name))
        with Forbid():
            yield


COPYING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_consecutive"}


@pytest.mark.parametrize(
    "loss",
    [{}, {"summary": "cosine", "tokens": "cosine"}, {"summary": "spectrum", "tokens": "spectrum", "relation": 0.1},
     {"summary": "smooth_l1_mix", "tokens": "smooth_l1_mix", "teacher_drop": 0.5, "widths_per_step": 1}],
)  # fmt: skip
def test_a_step_never_waits_for_the_device(loss: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(**loss)
    engine = make_engine(run, num_micro=2)
    ema = Ema(engine.module, 0.9)
    micro = [make_batch(8, seed) for seed in range(2)]
    micro[1]["c.tokens"][0, 0, 0] = float("nan")
    with no_host_reads(monkeypatch):
        metrics = [train_step(engine, micro, PLAIN, run, step) for step in range(2)]
        ema.update(engine.module)
    assert reduce_metrics(metrics)["nonfinite/c"] == 2


@pytest.mark.parametrize(
    "wait", [torch.Tensor.item, torch.Tensor.tolist, bool, float, torch.nonzero, lambda x: x[x > 0]]
)
def test_the_guard_against_waiting_catches_it(wait: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name = getattr(wait, "__name__", "")
    with pytest.raises(AssertionError, match="waits for the device"), no_host_reads(monkeypatch):
        x = torch.ones(1)
        (getattr(x, name) if name in ("item", "tolist") else lambda: wait(x))()


class Linear(nn.Module):
    """A student that is linear in its pixels: z from all 48 of them, tokens from patches of 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.patch = nn.Linear(48, 8), nn.Linear(12, 8)

    def normalise(self, views: torch.Tensor) -> torch.Tensor:
        return (views.float() - 127.5) / 73.9

    def forward(self, x_BHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.all(x_BHWC.flatten(1)), self.patch(patches(x_BHWC))


def patches(x_BHWC: torch.Tensor) -> torch.Tensor:
    b = x_BHWC.unfold(1, 2, 2).unfold(2, 2, 2)  # B 2 2 C 2 2
    return b.flatten(1, 2).flatten(2)


@pytest.mark.parametrize("kind", ["separate", "tied"])
def test_linear_heads_reach_the_floor_of_pca_at_every_width(kind: str) -> None:
    """Where teacher and student are linear in the pixels, PCA from numpy is the best that any width can do."""
    rng, n, num_steps = np.random.default_rng(0), 256, 400
    g = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (n, 4, 4, 3), dtype=torch.uint8, generator=g)
    toy = Linear()
    x = toy.normalise(views)
    maps = {"summary": (x.flatten(1), 20), "tokens": (patches(x), 14)}
    batch = {"views": views, "weight": torch.ones(n), "token_pos": torch.arange(4).expand(n, -1).int()}
    floors: dict[str, dict[int, float]] = {}
    widths = (2, 4, 8)
    for name, (pixels, dim) in maps.items():
        basis = [np.linalg.qr(rng.normal(size=(size, 12)))[0] for size in (pixels.shape[-1], dim)]
        y = pixels.double().numpy() @ (basis[0] * np.geomspace(3, 0.3, 12)) @ basis[1].T
        flat_y = y.reshape(-1, dim) - y.reshape(-1, dim).mean(0)
        spectrum = np.linalg.eigvalsh(flat_y.T @ flat_y)[::-1]
        floors[name] = {w: spectrum[w:].sum() / spectrum.sum() for w in widths}
        y = (y - y.reshape(-1, dim).mean(0)) / np.sqrt(flat_y.var(0).mean())
        batch[f"t.{name}"] = torch.from_numpy(y).float()
    torch.manual_seed(0)
    cfg = config.Heads(kind=kind)  # type: ignore[arg-type]
    module = Distiller(Linear(), Heads(widths, {"t": {"summary": 20, "tokens": 14}}, cfg, 8))  # type: ignore[arg-type]
    run = config.Run(student=config.Student(widths=widths), loss=config.Loss(summary="mse", token_widths_per_step=0))
    standardisers = {("t", name): Plain() for name in maps}
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    engine = Engine(module, optimizer)
    for step in range(num_steps):
        metrics = train_step(engine, [batch], standardisers, run, step)
        schedule.step()
    values = reduce_metrics([metrics])
    for name, by_width in floors.items():
        for width, floor in by_width.items():
            got = values[f"unexplained/t/{name}/{width}"]
            assert floor * 0.9999 <= got <= floor * 1.05, (name, width)
    assert 0.01 < floors["summary"][8] < floors["summary"][4] < floors["summary"][2] < 0.5


def test_two_ranks_and_two_micro_batches_are_one_batch(tmp_path: Path) -> None:
    """Also with teachers dropped and widths drawn: neither may depend on who holds a view."""
    start_processes(rank_of_two, (free_port(), str(tmp_path)), nprocs=2, start_method="forkserver")
    whole, values = two_steps(1)
    halves, half_values = two_steps(2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    assert not torch.equal(whole, flat(make_engine(make_run(**VARIED)).module))
    for weights, measured in ((halves, half_values), results[0]):
        np.testing.assert_allclose(weights.numpy(), whole.numpy(), atol=2e-6)
        assert measured == pytest.approx(values, rel=1e-5)
