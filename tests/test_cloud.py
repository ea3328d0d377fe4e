"""End to end without a cloud: Ray's own AWS provider and autoscaler start spot and on-demand instances in moto, workers
join as their boot scripts would, jobs run with a token, and idle instances end. What moto is not: IAM, quotas, capacity."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pathryoshka import config
from pathryoshka.tiles.phantom import write_phantom
from tests import cloud
from tests.cloud import Cloud

pytestmark = pytest.mark.slow
NAME = "lab"
ROLE = "import os, ray; ray.init(); f = ray.remote(num_gpus=1, resources={'teacher': 0.001})(lambda: os.environ['RAY_CLOUD_INSTANCE_ID']); print('ran on', ray.get(f.remote()))"


def cluster_yaml(ami: str, subnet: str, group: str) -> dict[str, Any]:
    worker = {"ImageId": ami, "SubnetIds": [subnet], "SecurityGroupIds": [group]}
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}}
    commands = ["setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray"]
    return {
        "cluster_name": NAME,
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "provider": {"type": "aws", "region": cloud.REGION, "use_internal_ips": True, "cache_stopped_nodes": False,
                     "disable_node_updaters": True},
        "auth": {"ssh_user": "ubuntu"},
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
        "rsync_exclude": [], "rsync_filter": [],
        **{f"{name}_commands": [] for name in commands},
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0,
                     "node_config": {"InstanceType": "m7i.xlarge", **worker}},
            "teacher": {"resources": {"CPU": 4, "GPU": 4, "teacher": 1}, "min_workers": 0, "max_workers": 1,
                        "node_config": {"InstanceType": "g6e.12xlarge", **worker, **spot}},
            "student": {"resources": {"CPU": 8, "GPU": 8, "student": 1}, "min_workers": 0, "max_workers": 1,
                        "node_config": {"InstanceType": "p4d.24xlarge", **worker}},
        },
    }  # fmt: skip


@pytest.fixture
def lab() -> Iterator[Cloud]:
    """A fresh account with a network and a head, its autoscaler on."""
    with tempfile.TemporaryDirectory(prefix="pry-", dir="/tmp") as name, cloud.moto(Path(name)) as endpoint:
        lab = Cloud(Path(name), endpoint, NAME)
        vpc = lab.ec2.create_vpc(CidrBlock="10.42.0.0/16")["Vpc"]["VpcId"]
        subnet = lab.ec2.create_subnet(VpcId=vpc, CidrBlock="10.42.0.0/20")["Subnet"]["SubnetId"]
        group = lab.ec2.create_security_group(GroupName="lab", Description="lab", VpcId=vpc)["GroupId"]
        ami = lab.ec2.describe_images()["Images"][0]["ImageId"]
        tags = {"ray-cluster-name": NAME, "ray-node-type": "head", "ray-user-node-type": "head",
                "ray-node-status": "up-to-date"}  # fmt: skip
        head = lab.ec2.run_instances(
            ImageId=ami, MinCount=1, MaxCount=1, InstanceType="m7i.xlarge", SubnetId=subnet,
            TagSpecifications=[{"ResourceType": "instance",
                                "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}],
        )["Instances"][0]["InstanceId"]  # fmt: skip
        types = cluster_yaml(ami, subnet, group)
        file = lab.folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(types))

        def boot(instance: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
            kind = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}["ray-user-node-type"]
            has = types["available_node_types"][kind]["resources"]
            return [f"--address=127.0.0.1:{lab.gcs}", f"--num-cpus={has['CPU']}", f"--num-gpus={has['GPU']}",
                    f'--resources={{"{kind}": 1}}'], {}  # fmt: skip

        try:
            lab.start_head(file, head)
            lab.watch(boot)
            yield lab
        finally:
            lab.close()


def test_a_job_starts_its_machines_and_leaves_none(lab: Cloud, tmp_path: Path) -> None:
    jobs = lab.address + "/api/jobs/"
    assert (cloud.status(jobs), cloud.status(jobs, "w" * 43), cloud.status(jobs, lab.token)) == (401, 403, 200)
    assert not lab.instances("worker")

    root = lab.folder / "shared"
    write_phantom(str(root / "tiles"), config.Storage(root=str(root)), num_tiles=160, num_patients=4, num_sites=2, size=32)
    mock = {"model": "mock", "device": "mock", "batch_size": 8, "num_gpus": 1, "resources": {"teacher": 0.001}}
    tree = {
        "recipe": "debug",
        "name": NAME,
        "data": {"tiles": [str(root / "tiles")]},
        "plan": {"num_views": 320, "window": 2},
        "teachers": {"models": {"mock0": mock, "mock1": mock}},
        "standardise": {"num_views": 64},
        "train": {"num_workers": 1, "global_batch": 16, "micro_batch": 8,
                  "resources_per_worker": {"student": 0.001, "CPU": 1}},
        "storage": {"root": str(root / "runs")},
    }  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree))
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": lab.token, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pathryoshka.cli", "submit", "distill", "--no-rehearse", "--no-check", "--address", lab.address,
         "--config", str(file)],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "trained on 320 of 320 views, each exactly once" in done.stdout
    assert [(i["InstanceType"], i.get("InstanceLifecycle")) for i in lab.started] == []
    cloud.wait_until("idle instances end", lambda: not lab.instances("worker"), 90)
