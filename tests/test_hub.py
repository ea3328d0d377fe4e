"""Fetching weights from a hub on loopback with the real client: refusals, resumption, digests, and no network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors.torch import save

from pathryoshka import config
from pathryoshka.teachers import hub
from pathryoshka.teachers.encoder import EncoderError, load_encoder
from tests.fake_hub import FakeHub

VIT = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
FETCH = """
import sys
from dataclasses import replace
from pathlib import Path
from pathryoshka.teachers import hub
from pathryoshka.teachers.zoo import ROWS
row = replace(ROWS["kaiko_s16"], source="hf:" + sys.argv[1])
try:
    print(hub.fetch(row, Path(sys.argv[2]) if len(sys.argv) > 2 else None)[0])
except hub.EncoderError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def server() -> Iterator[FakeHub]:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT)
    with FakeHub(save(model.state_dict())) as running:
        yield running


def start(endpoint: str, home: Path, *args: str, **env: str) -> subprocess.Popen[str]:
    """A process of its own: the client reads its environment once, when it is imported."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **env}
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, *args],
        env={**clean, **settings}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def fetch(endpoint: str, home: Path, *args: str, **env: str) -> tuple[int, str]:
    """Exit code, and the path or the sentence."""
    process = start(endpoint, home, *args, **env)
    out, err = process.communicate(timeout=60)
    return process.returncode, (err if process.returncode else out).strip().splitlines()[-1]


def test_a_fetched_file_is_whole_has_its_digest_and_teaches(server: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "to"
    code, said = fetch(server.endpoint, tmp_path / "home", "me/ok", str(folder), HF_TOKEN="hf_secret")
    assert code == 0, said
    path = folder / "model.safetensors"
    assert Path(said) == path and path.read_bytes() == server.data
    assert all(token == "Bearer hf_secret" for *_, token in server.asked)
    record = json.loads(Path(f"{path}.fetched.json").read_text())
    digest = hashlib.sha256(server.data).hexdigest()
    assert record == {"repository": "me/ok", "revision": "c" * 40, "file": "model.safetensors",
                      "size": len(server.data), "sha256": digest}  # fmt: skip
    assert "hf_secret" not in "".join(p.read_text(errors="ignore") for p in folder.rglob("*") if p.is_file())
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": VIT,
                                                    "pretrained_cfg": {"input_size": [3, 64, 64]}}))  # fmt: skip
    teacher = config.Teacher(model="timm:vit_tiny_patch16_224", weights=str(folder), device="cpu")
    assert load_encoder("vit", teacher, (4, 4), "cpu").fingerprint["weights_sha256"] == digest
    changed = bytearray(server.data)
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(EncoderError, match="is not the file that was fetched from me/ok"):
        load_encoder("vit", teacher, (4, 4), "cpu")
    Path(f"{path}.fetched.json").write_text("{}")
    with pytest.raises(EncoderError, match="is no record of a download"):
        hub.checked_sha256(path)
    Path(f"{path}.fetched.json").unlink()
    assert load_encoder("vit", teacher, (4, 4), "cpu")


@pytest.mark.parametrize(
    ("repository", "token", "words"),
    [
        ("me/401", "", ["gives nothing without a token", "(401)", "HF_TOKEN", "/me/401"]),
        ("me/401-gated", "hf_x", ["refuses the token", "(401)", "ask for access at", "/me/401-gated"]),
        ("me/403-gated", "hf_x", ["no access to kaiko_s16 (403)", "ask for it at", "/me/403-gated"]),
        ("me/403", "hf_x", ["no access to kaiko_s16 (403)"]),
        ("me/404", "hf_x", ["does not exist, or not for this account (404)"]),
        ("me/empty", "", ["holds neither model.safetensors nor pytorch_model.bin"]),
        ("me/429", "", ["asked too often (429)", "goes on where it stopped"]),
        ("me/503", "", ["answered 503; try again later"]),
        ("me/lies", "", ["is not what the hub announced, and was deleted"]),
    ],
)
def test_every_refusal_is_one_sentence(
    repository: str, token: str, words: list[str], server: FakeHub, tmp_path: Path
) -> None:
    code, said = fetch(server.endpoint, tmp_path / "home", repository, str(tmp_path / "to"), HF_TOKEN=token)
    assert code == 1 and all(word in said for word in words), said
    assert "hf_x" not in said and not list(tmp_path.glob("to/*.safetensors"))


def test_a_token_does_not_follow_to_another_host(server: FakeHub, tmp_path: Path) -> None:
    with FakeHub(server.data) as elsewhere:
        server.elsewhere = elsewhere.endpoint
        code, said = fetch(server.endpoint, tmp_path / "home", "me/moved", str(tmp_path / "to"), HF_TOKEN="hf_x")
    assert code == 0 and Path(said).read_bytes() == server.data, said
    assert server.asked[-1][3] == "Bearer hf_x" and [token for *_, token in elsewhere.asked] == [""]


def test_a_download_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    half = 12 << 20
    with FakeHub(np.random.default_rng(0).bytes(2 * half)) as server:
        server.stop_after = half
        process = start(server.endpoint, tmp_path / "home", "me/ok", str(tmp_path / "to"))
        deadline = time.monotonic() + 60
        while sum(p.stat().st_size for p in tmp_path.glob("to/*.part")) < half // 2:
            assert process.poll() is None and time.monotonic() < deadline, "nothing was written"
            time.sleep(0.05)
        process.kill()
        process.communicate()
        server.go_on.set()
        server.stop_after = 2 * half
        code, said = fetch(server.endpoint, tmp_path / "home", "me/ok", str(tmp_path / "to"))
        assert code == 0, said
        assert Path(said).read_bytes() == server.data
        ranges = [given for method, _, given, _ in server.asked if method == "GET"]
        first = int(ranges[-1].removeprefix("bytes=").rstrip("-").split("-")[0])
        assert ranges[0] == "" and half // 2 <= first <= half, ranges


def test_without_a_network_the_cache_answers_or_the_sentence(server: FakeHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    nobody = "http://127.0.0.1:9"
    for endpoint, env in ((nobody, {}), (server.endpoint, {"HF_HUB_OFFLINE": "1"})):
        code, said = fetch(endpoint, home, "me/ok", **env)
        assert code == 1 and f"not on this machine and {endpoint}/me/ok cannot be reached" in said, said
    assert not server.asked
    code, said = fetch(server.endpoint, home, "me/ok")
    assert code == 0 and Path(said).read_bytes() == server.data
    asked = len(server.asked)
    for endpoint, env in ((nobody, {}), (server.endpoint, {"HF_HUB_OFFLINE": "1"})):
        assert fetch(endpoint, home, "me/ok", **env) == (0, said)
    assert len(server.asked) == asked
