"""A user's own encoder: named in the config, made in the driver and in real actors, refused in a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from pathryoshka import config
from pathryoshka.session import ray_session
from pathryoshka.teachers import own
from pathryoshka.teachers.encoder import EncoderError, load_encoder
from pathryoshka.teachers.pool import TeacherPool
from pathryoshka.teachers.zoo import row_by_name

VIEWS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
SOURCE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((1,), scale))

    def forward(self, x):
        cells = torch.nn.functional.avg_pool2d(x, 8).flatten(2).transpose(1, 2)  # [B, 16, 3]
        return self.scale * x.mean((2, 3)), self.scale * cells

FACTS = {"input_size": 32, "mean": [0.5, 0.25, 0.0], "std": [0.5, 0.5, 1.0], "licence": "MIT"}

def make(): return Net(), FACTS
def other(): return Net(2.0), FACTS
def newer(): return Net(), {**FACTS, "version": "2"}
def alone(): return Net()
def nameless(): return Net(), {k: v for k, v in FACTS.items() if k != "licence"}
def misspelt(): return Net(), {**FACTS, "men": 1}
def breaks(): raise OSError("my.pth is not there")
def small(): return torch.nn.Conv2d(4, 1, 1), FACTS
def flat(): return torch.nn.Flatten(), FACTS
class Cls(torch.nn.Module):
    def forward(self, x): return x.mean((2, 3)), x.flatten(2).transpose(1, 2)[:, :17]
def with_cls(): return Cls(), FACTS
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a user, with `lab_encoder.py` in it."""
    (tmp_path / "lab_encoder.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "lab_encoder", raising=False)
    row_by_name.cache_clear()
    return tmp_path


def by_hand(views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = (views / 255 - np.array([0.5, 0.25, 0.0])) / np.array([0.5, 0.5, 1.0])
    return x.mean((1, 2)), x.reshape(len(x), 4, 8, 4, 8, 3).mean((2, 4)).reshape(len(x), 16, 3)


def teacher(function: str, **over: object) -> config.Teacher:
    return config.Teacher.model_validate({"model": f"lab_encoder:{function}", "device": "cpu", **over})


def test_an_encoder_of_ones_own_works_in_the_driver_and_in_actors(folder: Path) -> None:
    encoder = load_encoder("mine", teacher("make"), (4, 4), "cpu")
    features, (summary, tokens) = encoder(VIEWS), by_hand(VIEWS)
    np.testing.assert_allclose(features["summary"], summary, atol=1e-5)
    np.testing.assert_allclose(features["tokens"], tokens, atol=1e-5)
    row = row_by_name("lab_encoder:make")
    assert (row.summary_dim, row.token_dim, row.stride, row.num_params, row.licence) == (3, 3, 8, 1, "mit")
    models = config.Teachers(models={"mine": teacher("make")}, start_timeout_s=120)
    with ray_session(3, say=lambda _: None), TeacherPool("own", models, (2, 2), 32, config.Storage()) as pool:
        facts = pool.wait_ready()["mine"]
        assert facts.fingerprint["weights_sha256"] == encoder.fingerprint["weights_sha256"]
        assert facts.terms["derivatives"] is True and facts.terms["licence"] == "mit"
        pos = np.tile(np.arange(4, dtype=np.int32), (3, 1))
        summary_f16, tokens_f16, _ = ray.get(pool.members[0].actor.embed.remote(VIEWS, pos))
    np.testing.assert_allclose(summary_f16, summary, atol=2e-3)
    quarters = tokens.reshape(3, 2, 2, 2, 2, 3).mean((2, 4)).reshape(3, 4, 3)
    np.testing.assert_allclose(tokens_f16, quarters, atol=2e-3)


def test_its_fingerprint_knows_weights_and_version(folder: Path) -> None:
    digests = [load_encoder("a", teacher(f), (4, 4), "cpu").digest for f in ("make", "make", "other", "newer")]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_an_entry_point_gives_it_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = folder / "lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pathryoshka.teachers]\nlab_net = lab_encoder:make\n")
    with pytest.raises(EncoderError, match="unknown teacher 'lab_net'"):
        row_by_name("lab_net")
    monkeypatch.syspath_prepend(str(folder))
    encoder = load_encoder("a", config.Teacher(model="lab_net", device="cpu"), (4, 4), "cpu")
    np.testing.assert_allclose(encoder(VIEWS)["summary"], by_hand(VIEWS)[0], atol=1e-5)
    assert row_by_name("lab_net").source == "own:lab_encoder:make"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no_such_lab:make", "there is no module no_such_lab; start in the folder it lies in"),
        ("lab_encoder:mak", "module lab_encoder has no function mak"),
        ("lab_encoder:number", "number is a int; name a function"),
        ("lab_encoder:alone", r"must return \(torch module, mapping of facts\), not a Net"),
        ("lab_encoder:nameless", "fact licence: Field required; facts are input_size"),
        ("lab_encoder:misspelt", "fact men: Extra inputs are not permitted"),
        ("lab_encoder:breaks", "could not be made: OSError: my.pth is not there"),
        ("lab_encoder:small", r"fails on fp32 \[2, 3, 32, 32\]"),
        ("lab_encoder:flat", "must answer with .summary .B, Ds., tokens .B, N, Dt.., not a Tensor"),
        ("lab_encoder:with_cls", "gives 17 tokens, which lie on no square grid; leave out CLS"),
    ],
)
def test_what_is_no_encoder_is_refused(model: str, words: str, folder: Path) -> None:
    with pytest.raises(EncoderError, match=words):
        load_encoder("a", config.Teacher(model=model, device="cpu"), (4, 4), "cpu")


def test_weights_and_another_size_are_its_own_affair(folder: Path) -> None:
    for over in ({"weights": "a.pth"}, {"input_size": 64}):
        with pytest.raises(EncoderError, match="sees to its weights and input_size itself"):
            load_encoder("a", teacher("make", **over), (4, 4), "cpu")


def test_the_digest_of_tensors_sees_name_type_shape_and_value() -> None:
    def digest(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return own.sha256_of(module)

    ones = torch.ones(2, 3)
    different = [
        digest(a=ones),
        digest(b=ones),
        digest(a=ones.T.contiguous()),
        digest(a=ones.half()),
        digest(a=2 * ones),
    ]
    assert len(set(different)) == 5 and digest(a=torch.ones(3, 2).T) == different[0]
    assert digest(n=torch.tensor(3)) != digest(n=torch.tensor(4))
