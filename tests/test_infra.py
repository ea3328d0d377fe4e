"""What Terraform renders, read by those who will read it: Ray's schema and scheduler, KubeRay's CRDs and parser."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.terraform import copy_of_infra

ROOT = Path(__file__).parent.parent
CRDS = Path(__file__).parent / "data" / "kuberay"

needs_terraform = pytest.mark.skipif(
    not shutil.which("terraform"), reason="TERRAFORM IS NOT ON PATH: infra/ is untested"
)
pytestmark = needs_terraform


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Outputs of infra/tests/both: one list of groups through both renderings. No provider, no network."""
    both = copy_of_infra(tmp_path_factory.mktemp("infra"), "tests/both")
    both.run("init", "-input=false", "-backend=false")
    both.run("apply", "-auto-approve", "-input=false")
    outputs = both.outputs()
    return outputs | {k: yaml.safe_load(v) for k, v in outputs.items() if k.endswith("_yaml")}


def test_everything_that_needs_no_provider_passes_its_own_checks() -> None:
    done = subprocess.run([ROOT / "infra" / "check.sh", "--plain"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    passed, failed, _ = (int(part.split()[0]) for part in done.stdout.splitlines()[-1].split(","))
    refused = (ROOT / "infra/modules/worker_groups/tests/refused.tftest.hcl").read_text().count('run "refuses_')
    assert failed == 0 and passed >= 60 and refused >= 25


@pytest.mark.slow
def test_everything_passes_its_own_checks() -> None:
    """With the AWS provider where there is one ($TF_PLUGIN_DIR, or the registry), and checkov where it is installed."""
    done = subprocess.run([ROOT / "infra" / "check.sh"], capture_output=True, text=True, check=False)
    print(done.stdout)  # what was skipped is said
    assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------- EC2


def test_rays_own_schema_takes_the_cluster(rendered: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(rendered["cluster_yaml"]))
    typo = json.loads(json.dumps(rendered["cluster_yaml"]))
    typo["available_node_types"]["head"]["resource"] = {}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(typo)


def test_nothing_is_installed_on_boot(rendered: dict[str, Any]) -> None:
    """Missing command lists are filled with Ray's defaults, which install a nightly build."""
    from ray.autoscaler._private.util import prepare_config

    whole = prepare_config(rendered["cluster_yaml"])
    commands = [key for key in whole if key.endswith("_commands")]
    assert len(commands) >= 6 and not any(whole[key] for key in commands)


def launches(
    cluster: dict[str, Any], *demands: dict[str, float], failed: tuple[str, ...] = ()
) -> tuple[dict[str, int], int]:
    """(node type -> count, demands that fit nowhere), by Ray's v2 scheduler on an empty cluster."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    config = AutoscalingConfig(cluster, skip_content_hash=True)
    requests = [ResourceRequestUtil.make(demand) for demand in demands]
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            recoverable_resource_availabilities={name: 0.0 for name in failed},
        )
    )
    return {launch.instance_type: launch.count for launch in reply.to_launch}, len(reply.infeasible_resource_requests)


TEACHER, STUDENT = {"GPU": 1.0, "teacher": 0.001}, {"GPU": 8.0, "student": 0.008, "CPU": 8.0}
ALWAYS = {"readers": 1}
"""The one node that its group's min asks for."""


def test_each_demand_starts_machines_of_its_role(rendered: dict[str, Any]) -> None:
    found, infeasible = launches(rendered["cluster_yaml"], TEACHER, TEACHER, TEACHER, STUDENT)
    assert found == ALWAYS | {"teacher": 3, "student": 1} and infeasible == 0


def test_a_pool_grows_by_its_own_role_only(rendered: dict[str, Any]) -> None:
    assert launches(rendered["cluster_yaml"], STUDENT)[0] == ALWAYS | {"student": 1}
    assert launches(rendered["cluster_yaml"])[0] == ALWAYS


def test_a_group_never_grows_beyond_its_max(rendered: dict[str, Any]) -> None:
    found, infeasible = launches(rendered["cluster_yaml"], *[TEACHER] * 7)
    assert found == ALWAYS | {"teacher": 4} and infeasible == 3


def test_without_spot_capacity_the_next_type_and_then_on_demand(
    rendered: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An EC2 that refuses all but one way to start the group; what Ray's own node provider would ask of it."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    monkeypatch.syspath_prepend(ROOT / "infra" / "modules" / "render_ec2")
    from ec2_provider import Provider

    cluster = rendered["cluster_yaml"]
    asked: list[tuple[str, str]] = []
    accepted: list[tuple[str, str]] = []

    def create(self: Any, config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        asked.append((config["InstanceType"], config.get("InstanceMarketOptions", {}).get("MarketType", "on demand")))
        if asked[-1] not in accepted:
            raise NodeLaunchException("InsufficientInstanceCapacity", "none left", (None, None, None))
        return {"i-1": tags, "count": count}

    monkeypatch.setattr(AWSNodeProvider, "create_node", create)
    provider = object.__new__(Provider)
    provider.provider_config = cluster["provider"]
    config, tags = cluster["available_node_types"]["teacher"]["node_config"], {"ray-user-node-type": "teacher"}
    ways = [
        ("g6e.2xlarge", "spot"),
        ("g6e.4xlarge", "spot"),
        ("g6e.2xlarge", "on demand"),
        ("g6e.4xlarge", "on demand"),
    ]
    for number, way in enumerate(ways, start=1):
        asked.clear()
        accepted[:] = [way]
        assert provider.create_node(config, tags, 2) == {"i-1": tags, "count": 2} and asked == ways[:number]
    asked.clear()
    accepted.clear()
    with pytest.raises(NodeLaunchException):
        provider.create_node(config, tags, 2)
    assert asked == ways


def test_a_misspelt_role_starts_nothing(rendered: dict[str, Any]) -> None:
    found, infeasible = launches(rendered["cluster_yaml"], {"GPU": 1.0, "techer": 0.001})
    assert found == ALWAYS and infeasible == 1


def test_the_boot_scripts_are_shell_and_hold_no_token(rendered: dict[str, Any], tmp_path: Path) -> None:
    scripts = {"head": rendered["head_user_data"], **rendered["worker_user_data"]}
    assert len(scripts) == 4
    for name, text in scripts.items():
        file = tmp_path / f"{name}.sh"
        file.write_text(text)
        assert subprocess.run(["bash", "-n", file], capture_output=True).returncode == 0, name
        assert "RAY_AUTH_TOKEN=" not in text and "get-parameter" in text and len(text) < 16384


def test_nodes_certify_themselves(tmp_path: Path) -> None:
    """The boot script's part on TLS, run here with stand-ins for the parameter store and the machine's address."""
    text = (ROOT / "infra/modules/render_ec2/templates/tls.sh.tftpl").read_text()
    text = text.replace("${region}", "eu-central-1").replace("${ca_parameter}", "/lab/ray-ca")
    for there in ("/etc/ray", "/run"):
        text = text.replace(there, f"{tmp_path}{there}")
    (tmp_path / "run").mkdir()
    (tmp_path / "bin").mkdir()
    run = lambda *words: subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout  # noqa: E731
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=lab", "-keyout", "key", "-out", "crt")
    stand_ins = {"aws": f"cat {tmp_path}/key {tmp_path}/crt", "hostname": "echo 10.1.2.3 fe80::1", "chown": ":"}
    for name, does in stand_ins.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tls = tmp_path / "etc/ray/tls"
    assert run("openssl", "verify", "-CAfile", str(tls / "ca.crt"), str(tls / "tls.crt")).endswith("OK\n")
    seen = run("openssl", "x509", "-in", str(tls / "tls.crt"), "-noout", "-ext", "subjectAltName", "-pubkey")
    assert "IP Address:10.1.2.3" in seen and run("openssl", "pkey", "-in", str(tls / "tls.key"), "-pubout") in seen
    assert not list((tmp_path / "run").iterdir()) and (tls / "tls.key").stat().st_mode & 0o077 == 0
    # the authority's key is on no disk of the node
    secret = (tmp_path / "key").read_text().splitlines()[5]
    assert not [file for file in (tmp_path / "etc").rglob("*") if file.is_file() and secret in file.read_text()]


# ---------------------------------------------------------------- Kubernetes


def strict(schema: Any) -> Any:
    """A schema that refuses unknown fields: Kubernetes would drop them without a word, and a typo with them."""
    if isinstance(schema, dict):
        out = {key: strict(value) for key, value in schema.items()}
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
        return out
    return [strict(item) for item in schema] if isinstance(schema, list) else schema


def crd(name: str) -> Any:
    whole = yaml.safe_load(gzip.decompress((CRDS / f"ray.io_{name}.yaml.gz").read_bytes()))
    version = next(v for v in whole["spec"]["versions"] if v["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_the_manifests_fit_the_crd(rendered: dict[str, Any], kind: str) -> None:
    jsonschema.validate(rendered[f"{kind}_yaml"], crd(f"{kind}s"))


@pytest.mark.parametrize(
    "path", [("workerGroupSpecs", 0, "maxReplica"), ("autoscalerOptions", "idleTimeout"), ("authOption",)]
)
def test_a_typo_in_a_manifest_would_be_noticed(rendered: dict[str, Any], path: tuple[str | int, ...]) -> None:
    manifest = json.loads(json.dumps(rendered["raycluster_yaml"]))
    at = manifest["spec"]
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = 1
    with pytest.raises(jsonschema.ValidationError, match="Additional properties are not allowed"):
        jsonschema.validate(manifest, crd("rayclusters"))


def test_numbers_where_the_crd_wants_strings_would_be_noticed(rendered: dict[str, Any]) -> None:
    manifest = json.loads(json.dumps(rendered["raycluster_yaml"]))
    manifest["spec"]["workerGroupSpecs"][0]["resources"]["GPU"] = 1
    with pytest.raises(jsonschema.ValidationError, match="1 is not of type 'string'"):
        jsonschema.validate(manifest, crd("rayclusters"))


def test_both_renderings_mean_the_same(rendered: dict[str, Any]) -> None:
    """Ray's own parsers on both: the same resources, labels and limits for each group."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    parse = autoscaling_config._derive_autoscaling_config_from_ray_cr
    kube = parse(rendered["raycluster_yaml"])["available_node_types"]
    ec2 = rendered["cluster_yaml"]["available_node_types"]
    for name in rendered["groups"]:
        there = kube[name]
        resources = {k: v for k, v in there["resources"].items() if k != "memory"}
        for key, value in {**there, "resources": resources}.items():
            if key in ("resources", "labels", "min_workers", "max_workers"):
                assert ec2[name][key] == value, (name, key)


def test_only_rays_pods_reach_the_cluster(rendered: dict[str, Any]) -> None:
    (rule,) = rendered["network_policy_yaml"]["spec"]["ingress"]
    assert all("ipBlock" not in source for source in rule["from"]) and len(rule["from"]) == 2
