"""What people get wrong, by the real command: one sentence that says what to do, a non-zero exit, nothing lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray.experimental.internal_kv as internal_kv
import torch
import yaml
from PIL import Image
from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
from ray.core.generated import autoscaler_pb2

from pathryoshka import cli, config, storage
from pathryoshka.runs.devices import refuse_too_few_devices
from pathryoshka.session import ray_session
from pathryoshka.storage.lease import Lease
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.phantom import write_phantom
from tests.runs import settings, short_tmp

pytestmark = pytest.mark.timeout(600)

Command = Callable[..., tuple[int, str]]


@dataclass(frozen=True)
class World:
    """A finished run `good` over the data set `tiles`, below `root` on a real S3 server."""

    root: str
    tiles: str
    tmp: Path

    def config(self, **over: Any) -> str:
        tree = config.overlay(settings(f"{self.root}/runs", self.tiles), {"plan": {"num_views": 192}, **over})
        file = self.tmp / "run.yaml"
        file.write_text(yaml.safe_dump(tree))
        return str(file)

    def files(self) -> dict[str, int]:
        """Everything that must not change: tiles and the good run, but for the notes of who came by."""
        kept = storage.list_files(self.root, config.Storage())
        return {name: size for name, size in kept.items() if name.startswith(("tiles/", "runs/good/")) and
                not name.startswith(("runs/good/lease", "runs/good/attempts"))}  # fmt: skip


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command line in this process; (exit code, what it said on stderr)."""
    monkeypatch.delenv("PATHRYOSHKA_DEBUG", raising=False)

    def call(*args: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(args)
        return int(ended.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def world(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    os.environ["RAY_TMPDIR"] = str(short_tmp())
    root = f"s3://{s3.bucket}/bad"
    write_phantom(f"{root}/tiles", config.Storage(), num_tiles=128, num_patients=8, num_sites=2, size=48)
    world = World(root, f"{root}/tiles", tmp_path_factory.mktemp("bad"))
    with ray_session(10):
        with pytest.raises(SystemExit) as ended:
            cli.main(["distill", "--config", world.config(name="good")])
        assert not ended.value.code
        yield world


def refused(world: World, command: Command, code: int, words: str, *args: str) -> None:
    before = world.files()
    assert before
    ended, said = command(*args)
    ours = [line for line in said.splitlines() if line.startswith(("pathryoshka: ", "Error: "))]
    assert ended == code and len(ours) == 1 and words in ours[0] and "Traceback" not in said, (ended, said)
    assert before.items() <= world.files().items()


LESS = {"teachers": {"models": {"x": {"replicas": 2}}}, "train": {"device": "cpu"}}
MOCK = {"device": "mock", "batch_size": 16}


@pytest.mark.parametrize(
    ("over", "code", "words"),
    [
        ({"loss": {"weigths": {}}}, 2, "unknown key loss.weigths; did you mean loss.weights?"),
        ({"student": {"widths": [32, 16, 48]}}, 2, "student.widths"),
        ({"student": {"widths": [16, 32]}}, 1, "must end at the 48 numbers"),
        ({"student": {"model": "vit_tny_patch16_224"}}, 1, "did you mean vit_tiny_patch16_224"),
        ({"views": {"size": 45}}, 1, "set views.size=48"),
        ({"plan": {"num_views": 0}}, 2, "plan.num_views"),
        ({"train": {"micro_batch": 24, "global_batch": 48}}, 2, "train.micro_batch=24 does not divide"),
        ({"train": {"device": "cuda"}}, 1, "the pools need 2 GPU and this machine has 0"),
        ({"data": {"tiles": []}}, 2, "data.tiles is empty"),
        ({"data": {"tiles": ["s3://tiles/bad/nothing"]}}, 1, "s3://tiles/bad/nothing"),
        ({"storage": {"root": "s3://no-such-bucket/runs"}}, 1, "no-such-bucket"),
        ({"teachers": {"models": {"x": {"model": "efficientnet_lite9"}}}}, 1, "did you mean efficientnet_lite"),
        (
            {"teachers": {"models": {"x": {"model": "timm:vit_tiny_patch16_224", "input_size": 100, "device": "cpu"}}}},
            1,
            "set its input_size to 96",
        ),
        ({"name": "good", "optim": {"lr": 0.5}}, 2, "use another name"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_run_that_cannot_be(world: World, command: Command, over: dict[str, Any], code: int, words: str) -> None:
    refused(world, command, code, words, "distill", "--config", world.config(**{"name": "never", **over}))


def test_a_cluster_that_cannot_grow_to_what_the_pools_need(
    world: World, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The autoscaler's maximum stands in Ray's own store, where an autoscaler writes it."""
    monkeypatch.setenv("RAY_ADDRESS", "the session that this test is in")
    pools = {"models": {"x": {"model": "mock", "device": "cuda", "replicas": 3}}}
    run = config.make_run({"teachers": pools})
    refuse_too_few_devices(run)  # no autoscaler has said its maximum: waited for
    group = {"resources": {"GPU": 1}, "max_count": 2}
    growth = autoscaler_pb2.ClusterConfig(node_group_configs=[autoscaler_pb2.NodeGroupConfig(**group)])
    where = {"namespace": GCS_AUTOSCALER_STATE_NAMESPACE.encode()}
    key = GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode()
    internal_kv._internal_kv_put(key, growth.SerializeToString(), **where)
    try:
        file = world.config(
            name="never", teachers={"models": {"x": {"model": "mock", "device": "cuda", "replicas": 3}}}
        )
        refused(world, command, 1, "need 3 GPU and the cluster can grow to 2", "distill", "--config", file)
        refuse_too_few_devices(config.make_run(config.overlay(run.model_dump(), LESS)))
    finally:
        internal_kv._internal_kv_del(key, **where)


def test_weights_of_another_model(world: World, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"blocks.0.weight": torch.zeros(3)}, file)
    teacher = {"model": "efficientnet_lite0", "weights": str(file), "device": "cpu", "input_size": 64}
    args = world.config(name="never", teachers={"models": {"lite": teacher}})
    refused(world, command, 1, "teacher lite failed to start 3 times; its last error", "distill", "--config", args)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(world: World, command: Command) -> None:
    args = world.config(name="diverges", optim={"lr": 1e30}, train={"checkpoint_every": 1, "log_every": 1})
    refused(world, command, 1, "the loss was not finite", "distill", "--config", args)


def test_a_run_that_another_driver_writes(world: World, command: Command) -> None:
    cfg = config.Storage(lease_ttl_s=2)
    with Lease.acquire(f"{world.root}/runs/taken", cfg, "somebody@else"):
        words = "is being written by somebody@else"
        refused(world, command, 1, words, "distill", "--config", world.config(name="taken"))


def test_no_permission(world: World, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    file = world.config(name="never")
    before = world.files()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    code, said = command("distill", "--config", file)
    monkeypatch.undo()
    assert code == 1 and "pathryoshka: " in said and "the server does not accept these credentials" in said, said
    assert before.items() <= world.files().items()


def test_a_wrong_endpoint(world: World, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    file = world.config(name="never", storage={"max_attempts": 1})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, said = command("distill", "--config", file)
    assert code == 1 and said.startswith("pathryoshka: ") and "nothing answers at the endpoint" in said, said


def test_tiles_that_distillation_saw(world: World, command: Command) -> None:
    args = world.config(name="good", evaluate={"tiles": [world.tiles]})
    refused(world, command, 1, "distillation saw", "evaluate", "--config", args)


@pytest.mark.parametrize("verb", ["evaluate", "report", "export"])
def test_what_is_not_there_yet(world: World, command: Command, verb: str) -> None:
    args = world.config(name="never", evaluate={"tiles": [world.tiles]})
    refused(world, command, 1, "pathryoshka", verb, "--config", args)


def test_a_folder_that_is_no_export(world: World, command: Command, tmp_path: Path) -> None:
    refused(world, command, 1, str(tmp_path), "verify", str(tmp_path))


def test_an_empty_folder_of_images(world: World, command: Command, tmp_path: Path) -> None:
    refused(world, command, 1, "no image below", "tiles", "import", str(tmp_path), f"{world.root}/new")


def test_too_many_truncated_images(world: World, command: Command, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "pink").save(tmp_path / "whole.png")
    for i in range(3):
        (tmp_path / f"cut{i}.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    refused(world, command, 1, "3 of 4", "tiles", "import", str(tmp_path), f"{world.root}/new")
    assert not storage.list_files(f"{world.root}/new", config.Storage())


def test_a_sheet_without_a_column_of_tiles(world: World, command: Command, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "pink").save(tmp_path / "a.png")
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("file,label\na.png,x\n")
    args = ("tiles", "import", str(tmp_path), f"{world.root}/new", "--csv", str(sheet))
    refused(world, command, 1, "tile", *args)


def test_a_flipped_byte(world: World, command: Command, tmp_path: Path) -> None:
    cfg = config.Storage()
    write_phantom(str(tmp_path / "set"), cfg, num_tiles=16, num_patients=2, num_sites=1, size=32)
    shard = next((tmp_path / "set").rglob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, said = command("tiles", "verify", str(tmp_path / "set"))
    assert code == 1 and shard.name in said
