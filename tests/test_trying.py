"""Teachers tried before a run: what `check` measures, what `tune` chooses, and how the rows are shown."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pathryoshka import config, trying
from pathryoshka.teachers import check as checking
from pathryoshka.teachers.check import peak_memory_bytes, views_per_second
from pathryoshka.teachers.encoder import EncoderError, load_encoder, with_precision
from pathryoshka.teachers.listing import show, table
from pathryoshka.teachers.trunk import Trunk, network
from pathryoshka.teachers.tune import Probe, best_of, goes_on, tune
from pathryoshka.teachers.zoo import ROWS, row_by_name
from pathryoshka.tiles.phantom import write_phantom

LITE = config.Teacher(model="efficientnet_lite0", device="cpu", batch_size=4)
PRECISIONS = ("auto", "fp32")
TINY = config.Teacher(model="timm:test_vit", device="cpu")


def test_check_says_what_the_features_are(tmp_path: Path) -> None:
    write_phantom(str(tmp_path / "tiles"), config.Storage(), num_tiles=6, num_patients=2, num_sites=1, size=64, seed=0)
    found = trying.check_teacher(LITE, config.Storage(), str(tmp_path / "tiles"), 5)
    views = trying.views_of(str(tmp_path / "tiles"), config.Storage(), 5, 224)
    features = load_encoder("a", LITE, (7, 7), "cpu")(views)
    norms = np.sqrt((features["tokens"].numpy().astype(np.float64) ** 2).sum(-1))
    assert (found.summary_shape, found.token_shape, found.own_grid) == ((5, 1280), (5, 49, 1280), (7, 7))
    np.testing.assert_allclose(found.token_norm, (norms.mean(), norms.std()), rtol=1e-4)
    assert found.finite and found.views_per_s > 1 and found.memory_mib > 50 and found.precision == "fp32"


def test_a_rate_is_that_of_the_clock() -> None:
    slow = config.Teacher(model="mock", device="mock", mock_seconds=0.01, batch_size=8)
    rate = views_per_second(load_encoder("a", slow, (4, 4), "cpu"), np.zeros((8, 32, 32, 3), np.uint8), 0.3)
    assert 70 < rate <= 101  # a hundred a second at most; less on a busy machine


PEAK = """
import numpy as np, torch
from pathryoshka.teachers.check import peak_memory_bytes
before = peak_memory_bytes(torch.device("cpu"))
held = np.ones(512 << 20, np.uint8)
print(peak_memory_bytes(torch.device("cpu")) - before)
"""


def test_peak_memory_is_that_of_this_process() -> None:
    """In one of its own: what other tests have held and the system takes back would be in the figure."""
    grown = int(subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout)
    assert 400 << 20 < grown < 560 << 20  # what was freed since the start is used again first


def test_the_smallest_of_the_quickest_within_the_budget_is_best() -> None:
    probes = [Probe(1, 10, 100), Probe(2, 19, 120), Probe(4, 30, 160), Probe(8, 30.5, 240), Probe(16, 60, 900)]
    assert best_of("a", probes, 1000).batch_size == 16
    assert best_of("a", probes, 500).batch_size == 4
    assert best_of("a", probes, 130).batch_size == 2
    with pytest.raises(EncoderError, match="teacher a does not fit into 50 MiB: one view takes 100 MiB"):
        best_of("a", probes, 50)
    with pytest.raises(EncoderError, match="ended by the system"):
        best_of("a", [], 50)


def test_a_size_that_will_not_fit_or_not_pay_is_not_tried() -> None:
    probes = [Probe(4, 30, 160), Probe(8, 31, 240)]  # 80 MiB for four more views: 16 will take 400
    assert goes_on(probes, 400) and not goes_on(probes, 399) and not goes_on(probes, 200)
    assert not goes_on([*probes, Probe(16, 20, 400)], 10_000)


def test_tune_keeps_to_its_budget_and_leaves_nothing_here() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    tuned = tune("tiny", TINY, 160, "cpu", 1200, seconds=0.1)  # torch alone takes up to 900
    assert [p.batch_size for p in tuned.probes] == [2**n for n in range(len(tuned.probes))] and len(tuned.probes) > 2
    assert tuned.best in tuned.probes and tuned.best.memory_mib <= 1200
    assert max(p.memory_mib for p in tuned.probes) < 2400 and all(p.views_per_s > 0 for p in tuned.probes)
    assert peak_memory_bytes(torch.device("cpu")) - before < 16 << 20
    with pytest.raises(EncoderError, match="does not fit into 20 MiB: one view takes"):
        tune("tiny", TINY, 160, "cpu", 20, seconds=0.01)


def test_the_table_has_every_row_and_a_page_every_fact() -> None:
    lines = table(ROWS.values())
    assert [line.split()[0] for line in lines[1:]] == list(ROWS)
    words = next(line.split() for line in lines if line.startswith("virchow2 "))
    assert " ".join(words) == "virchow2 631.2 M 2560 1280 14 @ 224 cc-by-nc-nd-4.0 yes teaches"
    page = "\n".join(show(ROWS["virchow2"]))
    assert all(f"\n{key} " in f"\n{page}" for key in vars(ROWS["virchow2"])) and "students of it" in page


def test_precision_is_settled_by_device_and_row_and_stands_in_the_fingerprint() -> None:
    auto, cuda, cpu = config.Teacher(model="virchow2"), torch.device("cuda"), torch.device("cpu")
    assert with_precision(auto, ROWS["virchow2"], cuda).precision == "fp16"
    assert with_precision(auto, ROWS["uni2_h"], cuda).precision == "bf16"
    assert with_precision(auto, ROWS["virchow2"], cpu).precision == "fp32"
    said = config.Teacher(model="virchow2", precision="bf16")
    assert with_precision(said, ROWS["virchow2"], cuda) is said
    settled, fp32 = (load_encoder("a", LITE.model_copy(update={"precision": p}), (7, 7), "cpu") for p in PRECISIONS)
    assert settled.digest == fp32.digest and fp32.fingerprint["precision"] == "fp32"


def test_attention_is_the_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of a transformer calls PyTorch's scaled_dot_product_attention, which picks the card's best kernel."""
    row = row_by_name("timm:test_vit")  # its facts are measured by running it
    calls, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    with torch.inference_mode():
        Trunk(network(row, "cpu"), row)(torch.zeros(1, 3, row.input_size, row.input_size))
    assert len(calls) == row.depth
    for name in ("virchow2", "uni2_h", "h_optimus_1", "midnight_12k", "phikon_v2"):
        blocks = network(ROWS[name], "meta").blocks
        assert all(block.attn.fused_attn for block in blocks) and len(blocks) == ROWS[name].depth


def test_check_waits_for_no_longer_than_asked() -> None:
    encoder = load_encoder("a", config.Teacher(model="mock"), (4, 4), "cpu")
    started = time.perf_counter()
    checking.check(encoder, np.zeros((2, 32, 32, 3), np.uint8), seconds=0.2)
    assert time.perf_counter() - started < 5
