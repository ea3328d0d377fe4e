"""End to end without a cloud: the rendered cluster, Ray's own AWS provider and autoscaler, moto in EC2's place.

Spot and on-demand instances start for a job, join as their boot scripts would, work, and end when idle; with a token.
What moto is not: IAM, quotas, capacity, and a boot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
import yaml

from pathryoshka import config
from pathryoshka.tiles.phantom import write_phantom
from tests import cloud
from tests.cloud import Cloud
from tests.terraform import copy_of_infra

pytestmark = pytest.mark.slow
NAME = "lab"
KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
GROUPS = [
    {"name": "teacher", "role": "teacher", "instance_types": ["g6e.12xlarge"], "cpus": 4, "memory_gib": 8, "gpus": 4,
     "accelerator": "L40S", "max": 1, "spot": True},
    {"name": "student", "role": "student", "instance_types": ["p4d.24xlarge"], "cpus": 8, "memory_gib": 8, "gpus": 8,
     "accelerator": "A100", "max": 1},
    {"name": "reader", "role": "cpu", "instance_types": ["c7i.2xlarge"], "cpus": 2, "memory_gib": 8, "max": 1,
     "spot": True},
]  # fmt: skip
MAIN = """
module "groups" {
  source        = "../modules/worker_groups"
  worker_groups = var.worker_groups
  max_gpus      = 12
}

module "render" {
  source                      = "../modules/render_ec2"
  name                        = "lab"
  region                      = "eu-central-1"
  image                       = "registry.example/pathryoshka@sha256:${join("", [for i in range(64) : "0"])}"
  ami_id                      = var.ami_id
  groups                      = module.groups.groups
  max_workers                 = module.groups.max_workers
  subnet_ids                  = [var.subnet_id]
  security_group_ids          = [var.security_group_id]
  worker_instance_profile_arn = "arn:aws:iam::123456789012:instance-profile/lab-worker"
  head_private_ip             = "10.42.0.10"
  config_uri                  = "s3://lab-tiles/config/cluster.yaml"
  token_parameter             = "/lab/ray-token"
}

variable "worker_groups" { type = any }
variable "ami_id" { type = string }
variable "subnet_id" { type = string }
variable "security_group_id" { type = string }
output "cluster_yaml" { value = module.render.cluster_yaml }
output "head_user_data" { value = module.render.head_user_data }
"""


def rendered(folder: Path, **variables: Any) -> dict[str, Any]:
    """Outputs of the provider-free modules."""
    terraform = copy_of_infra(folder, "rendered")
    terraform.folder.mkdir()
    (terraform.folder / "main.tf").write_text(MAIN)
    (terraform.folder / "x.auto.tfvars.json").write_text(json.dumps(variables))
    terraform.run("init", "-input=false")
    terraform.run("apply", "-input=false", "-auto-approve")
    return terraform.outputs()


@pytest.fixture(scope="module")
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
        iam = boto3.client("iam", endpoint_url=endpoint, region_name=cloud.REGION, **KEYS)
        iam.create_role(RoleName="lab-worker", AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName="lab-worker")
        iam.add_role_to_instance_profile(InstanceProfileName="lab-worker", RoleName="lab-worker")
        made = rendered(lab.folder, worker_groups=GROUPS, ami_id=ami, subnet_id=subnet, security_group_id=group)
        # ten minutes of idling are six seconds here; and spot readers are refused, as by an EC2 without capacity
        quick = yaml.safe_load(made["cluster_yaml"]) | {"idle_timeout_minutes": 0.1}
        reader = quick["available_node_types"]["reader"]["node_config"]
        (on_demand,) = quick["provider"]["next_best"]["reader"]
        on_demand["IamInstanceProfile"] = reader["IamInstanceProfile"]
        reader["IamInstanceProfile"] = {"Arn": "arn:aws:iam::1:instance-profile/none"}
        file = lab.folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(quick))
        try:
            lab.start_head(made["head_user_data"], file, head)
            lab.watch()
            yield lab
        finally:
            lab.close()


def test_nobody_gets_in_without_the_token(lab: Cloud) -> None:
    jobs = lab.address + "/api/jobs/"
    assert (cloud.status(jobs), cloud.status(jobs, "w" * 43), cloud.status(jobs, lab.token)) == (401, 403, 200)


def run_on(lab: Cloud, resources: dict[str, float], gpus: int) -> tuple[str, str]:
    """Type and market of the instance on which a job's one task with these demands ran."""
    script = lab.folder / "job.py"
    script.write_text(
        "import os, ray\n"
        "ray.init()\n"
        f"where = ray.remote(num_gpus={gpus}, resources={resources})(lambda: os.environ['RAY_CLOUD_INSTANCE_ID'])\n"
        "print('ran on', ray.get(where.remote()))\n"
    )

    def jobs(path: str = "", **body: str) -> dict[str, Any]:
        """The Jobs API itself: Ray's client in this process has made up its mind about tokens already."""
        call = requests.post if body else requests.get
        headers = {"Authorization": f"Bearer {lab.token}"}
        answer = call(f"{lab.address}/api/jobs/{path}", json=body or None, headers=headers, timeout=30)
        return dict(answer.json()) if answer.ok else {}  # 500 until the agent that takes jobs is up

    job = cloud.wait_until("the head's agent", lambda: jobs(entrypoint=f"python {script}"), 60)["submission_id"]
    ended = ("SUCCEEDED", "FAILED", "STOPPED")
    state = cloud.wait_until("the job", lambda: (s := jobs(job)["status"]) in ended and s, 120)
    said = jobs(f"{job}/logs")["logs"]
    assert state == "SUCCEEDED", said
    (found,) = [one for one in lab.started if f"ran on {one}" in said]
    return lab.market(found)


def test_a_task_for_a_teacher_starts_one_at_the_spot_price(lab: Cloud) -> None:
    assert not lab.instances("worker")
    assert run_on(lab, {"teacher": 0.001}, gpus=1) == ("g6e.12xlarge", "spot")
    assert len(lab.started) == 1


def test_where_spot_is_refused_an_instance_on_demand_starts(lab: Cloud) -> None:
    assert run_on(lab, {"cpu": 0.001}, gpus=0) == ("c7i.2xlarge", "on demand")


def test_a_run_distils_on_machines_of_both_roles(lab: Cloud, tmp_path: Path) -> None:
    root = lab.folder / "shared"
    storage = config.Storage(root=str(root))
    write_phantom(str(root / "tiles"), storage, num_tiles=160, num_patients=4, num_sites=2, size=32)
    mock = {"model": "mock", "device": "mock", "batch_size": 8, "num_gpus": 1, "resources": {"teacher": 0.001}}
    tree = {
        "recipe": "debug",
        "name": NAME,
        "data": {"tiles": [str(root / "tiles")]},
        "plan": {"num_views": 160, "window": 2},
        "teachers": {"models": {"mock0": mock, "mock1": mock}},
        "standardise": {"num_views": 64},
        "train": {"num_workers": 1, "global_batch": 16, "micro_batch": 8,
                  "resources_per_worker": {"student": 0.001, "CPU": 1}},
        "storage": {"root": str(root / "runs")},
    }  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree))
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(lab.folder / "token")}
    for verb in (["distill", "--no-rehearse"], ["export"]):
        done = subprocess.run(
            [sys.executable, "-m", "pathryoshka.cli", "submit", *verb, "--address", lab.address, "--config", str(file)],
            env=env, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        print(done.stdout[-6000:], done.stderr[-1000:])  # shown where a later assertion fails
        if verb[0] == "distill":
            assert "trained on 160 of 160 views, each exactly once" in done.stdout
    assert (root / "runs" / NAME / "export" / "model.safetensors").exists()
    kinds = {lab.market(one) for one in lab.started}
    assert kinds - {("c7i.2xlarge", "on demand")} == {("g6e.12xlarge", "spot"), ("p4d.24xlarge", "on demand")}


def test_idle_machines_end_and_none_is_left(lab: Cloud) -> None:
    assert lab.started
    cloud.wait_until("the end of idle instances", lambda: not lab.instances("worker"), 90)
    everything = lab.ec2.describe_instances()["Reservations"]
    states = [one["State"]["Name"] for page in everything for one in page["Instances"]]
    assert sorted(states) == ["running", *["terminated"] * len(lab.started)]  # the head is the one that runs


def test_the_token_is_in_no_log(lab: Cloud) -> None:
    files = [p for p in lab.folder.rglob("*") if p.is_file() and p.name != "token" and not p.is_symlink()]
    assert any(p.name == "monitor.log" for p in files)
    assert [str(p) for p in files if lab.token.encode() in p.read_bytes()] == []
