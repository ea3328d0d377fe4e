"""The EC2 stack, applied to moto: what is there then, what is nowhere (the token), what a teardown leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests import cloud
from tests.terraform import Terraform, copy_of_infra

pytestmark = pytest.mark.slow
TOKEN = "planted-token-0123456789abcdef-0123456789"
BUCKET = "your-lab-pathryoshka"
# What moto is not: it has no budgets, takes a policy's Deny without reading its condition, and forgets the descriptions
# of rules; the provider waits a minute for a lifecycle to look the same everywhere. All of it is in the modules' tests.
OVERRIDES = {
    "modules/aws_cost": 'resource "aws_budgets_budget" "monthly" {\n  count = 0\n}\n',
    "modules/aws_storage": 'resource "aws_s3_bucket_policy" "tls_only" {\n  count = 0\n}\n'
    'resource "aws_s3_bucket_lifecycle_configuration" "this" {\n  count = 0\n}\n',
    "stacks/aws-ec2": 'provider "aws" {\n  s3_use_path_style = true\n}\n',
}


@dataclass
class Account:
    stack: Terraform
    env: dict[str, str]
    said: list[str]

    def client(self, service: str) -> Any:
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        url = self.env["AWS_ENDPOINT_URL"]
        return boto3.client(service, endpoint_url=url, region_name=cloud.REGION, **keys)

    def script(self, name: str, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        if not shutil.which("aws"):
            pytest.skip("NO AWS CLI ON PATH: quota and teardown were not run")
        env = {**os.environ, **self.env, "TF_CLI_ARGS": "-no-color"}
        env["PATH"] = f"{path}:{env['PATH']}" if path else env["PATH"]
        return subprocess.run(
            [f"infra/{name}", "infra/stacks/aws-ec2", *words, "-var-file=example.tfvars"],
            cwd=self.stack.folder.parents[2], env=env, text=True, capture_output=True, timeout=300,
        )  # fmt: skip


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """The example, applied."""
    folder = tmp_path_factory.mktemp("stack")
    stack = copy_of_infra(folder, "stacks/aws-ec2")
    for place, text in OVERRIDES.items():
        (folder / "infra" / place / "override.tf").write_text(text)
    with cloud.moto(folder) as endpoint:
        env = {**cloud.NO_KEYS, "AWS_ENDPOINT_URL": endpoint, "TF_VAR_ray_token": TOKEN}
        stack.env = env
        account = Account(stack, env, [])
        ami = account.client("ec2").describe_images()["Images"][0]["ImageId"]  # the provider asks for its root device
        example = stack.folder / "example.tfvars"
        example.write_text(example.read_text().replace("ami-0123456789abcdef0", ami))
        stack.init_with_aws()
        plan = stack.run("plan", "-input=false", "-var-file=example.tfvars", "-out=plan.bin")
        done = stack.run("apply", "-input=false", "-auto-approve", "-var-file=example.tfvars")
        account.said = [plan.stdout, plan.stderr, done.stdout, done.stderr]
        yield account


def test_nothing_lets_anybody_in(account: Account) -> None:
    """Asked of the account, not of Terraform."""
    ec2, s3 = account.client("ec2"), account.client("s3")
    groups = ec2.describe_security_groups(Filters=[{"Name": "tag:ray-cluster-name", "Values": ["lab"]}])
    for rule in [rule for group in groups["SecurityGroups"] for rule in group["IpPermissions"]]:
        assert not rule["IpRanges"] and not rule["Ipv6Ranges"] and not rule["PrefixListIds"], rule
        assert rule["UserIdGroupPairs"], rule
    head = ec2.describe_instances(InstanceIds=[account.stack.outputs()["head_instance_id"]])
    head = head["Reservations"][0]["Instances"][0]
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert not head.get("PublicIpAddress")
    assert {tag["Key"]: tag["Value"] for tag in head["Tags"]}["ray-node-type"] == "head"
    block = s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]
    assert len(block) == 4 and all(block.values())


def test_workers_find_the_head(account: Account) -> None:
    ec2, outputs = account.client("ec2"), account.stack.outputs()
    head = ec2.describe_instances(InstanceIds=[outputs["head_instance_id"]])["Reservations"][0]["Instances"][0]
    config = account.client("s3").get_object(Bucket=BUCKET, Key="config/cluster.yaml")["Body"].read().decode()
    assert config == outputs["cluster_yaml"]
    assert f"{head['PrivateIpAddress']}:6379" in config


def test_the_token_is_in_its_parameter_and_nowhere_else(account: Account, tmp_path: Path) -> None:
    stack = account.stack
    kept = account.client("ssm").get_parameter(Name="/lab/ray-token", WithDecryption=True)["Parameter"]
    assert kept["Value"] == TOKEN  # so it went through all that is searched below
    with zipfile.ZipFile(stack.folder / "plan.bin") as plan:
        plan.extractall(tmp_path / "plan")
    shown = stack.run("show", "-json", "plan.bin").stdout + stack.run("show", "-json").stdout
    texts = {"plan and state as JSON": shown, "outputs": json.dumps(stack.outputs())}
    texts |= {f"log {number}": said for number, said in enumerate(account.said)}
    files = [p for p in stack.folder.iterdir() if p.is_file()]
    files += [p for p in (tmp_path / "plan").rglob("*") if p.is_file()]
    texts |= {str(path): path.read_bytes().decode(errors="replace") for path in files}
    bucket = account.client("s3")
    for one in bucket.list_objects_v2(Bucket=BUCKET)["Contents"]:
        texts[one["Key"]] = bucket.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read().decode()
    texts["instances"] = json.dumps(account.client("ec2").describe_instances(), default=str)
    assert len(texts) > 12 and "lab" in texts["plan and state as JSON"]
    assert [where for where, text in texts.items() if TOKEN in text] == []


def test_a_second_apply_changes_nothing(account: Account) -> None:
    """But for what moto says wrongly: descriptions of rules, and that the head asked for a public address."""
    account.stack.run("plan", "-input=false", "-var-file=example.tfvars", "-out=again.bin")
    again = json.loads(account.stack.run("show", "-json", "again.bin").stdout)
    changes = {one["address"]: one["change"] for one in again["resource_changes"]}
    changes = {name: change for name, change in changes.items() if change["actions"] != ["no-op"]}
    assert {name for name in changes if "aws_vpc_security_group_" not in name} <= {"module.head.aws_instance.head"}
    for name, change in changes.items():
        before, after = change["before"], change["after"]
        wrong = {key for key in after if before.get(key) != after[key]}
        assert change.get("replace_paths") == [["associate_public_ip_address"]] or wrong == {"description"}, (
            name,
            wrong,
        )


@pytest.mark.parametrize(("vcpus", "enough"), [(0, False), (500, True)])
def test_quota_is_asked_for_before_the_first_run(account: Account, tmp_path: Path, vcpus: int, enough: bool) -> None:
    """Types and zones are moto's; it has no quotas of EC2, which a stand-in for that one service says."""
    aws = shutil.which("aws")
    stand_in = tmp_path / "aws"
    stand_in.write_text(
        f'#!/bin/bash\n[[ $1 == service-quotas ]] || exec {aws} "$@"\n'
        f'[[ "$*" == *QuotaName* ]] && echo "quota" || echo {vcpus}.0\n'
    )
    stand_in.chmod(0o755)
    if enough:
        account.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    done = account.script("quota.sh", path=tmp_path)
    assert (done.returncode == 0) == enough, done.stdout + done.stderr
    assert ("make its role once" in done.stdout) != enough
    if not enough:
        # four machines of at most 16 vCPUs at spot prices; the same on demand, and one of 48
        assert "--quota-code L-3819A6DF --desired-value 64" in done.stdout
        assert "--quota-code L-DB2E81BA --desired-value 112" in done.stdout


def test_a_teardown_leaves_nothing_but_the_data(account: Account) -> None:
    ec2, s3 = account.client("ec2"), account.client("s3")
    s3.put_object(Bucket=BUCKET, Key="runs/a", Body=b"a")

    def start(cluster: str) -> str:
        tags = [{"Key": "ray-cluster-name", "Value": cluster}, {"Key": "ray-node-type", "Value": "worker"}]
        spec = [{"ResourceType": "instance", "Tags": tags}]
        ami = ec2.describe_images()["Images"][0]["ImageId"]
        started = ec2.run_instances(ImageId=ami, MinCount=1, MaxCount=1, TagSpecifications=spec)
        return str(started["Instances"][0]["InstanceId"])

    ours, others = [start("lab"), start("lab")], start("other")
    done = account.script("teardown.sh", "--yes")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.endswith(f"nothing of lab bills any more, but s3://{BUCKET}\n")
    found = ec2.describe_instances(InstanceIds=[*ours, others])["Reservations"]
    states = {one["Instances"][0]["InstanceId"]: one["Instances"][0]["State"]["Name"] for one in found}
    assert states == {ours[0]: "terminated", ours[1]: "terminated", others: "running"}
    assert account.stack.run("state", "list").stdout == ""
    assert s3.get_object(Bucket=BUCKET, Key="runs/a")["Body"].read() == b"a"

    # the data is there for the next cluster, which closes its bucket again
    s3.delete_public_access_block(Bucket=BUCKET)
    account.stack.run("apply", "-input=false", "-auto-approve", "-var-file=example.tfvars", "-var=adopt_bucket=true")
    assert all(s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"].values())
    done = account.script("teardown.sh", "--yes", "--delete-bucket")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.endswith("nothing of lab bills any more\n")
    assert s3.list_buckets()["Buckets"] == []
