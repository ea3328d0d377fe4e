"""Terraform on a copy of infra/, for tests: renders without any provider, applies to moto where the AWS provider is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

INFRA = Path(__file__).parent.parent / "infra"


@dataclass
class Terraform:
    """One folder of a copy of infra/."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str, ok: tuple[int, ...] = (0,), timeout: float = 300) -> subprocess.CompletedProcess[str]:
        quiet = {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "TF_CLI_ARGS": "-no-color"}
        done = subprocess.run(
            ["terraform", *words], cwd=self.folder, env={**os.environ, **quiet, **self.env}, text=True,
            capture_output=True, timeout=timeout,
        )  # fmt: skip
        assert done.returncode in ok, f"terraform {' '.join(words)}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done

    def outputs(self) -> dict[str, Any]:
        said = json.loads(self.run("output", "-json").stdout)
        return {name: one["value"] for name, one in said.items()}

    def init_with_aws(self) -> None:
        """From a mirror at $TF_PLUGIN_DIR, else from the registry; the test is skipped where there is neither."""
        mirror = os.environ.get("TF_PLUGIN_DIR")
        words = ["init", "-input=false", *([f"-plugin-dir={mirror}"] if mirror else [])]
        if self.run(*words, ok=(0, 1)).returncode:
            pytest.skip(
                "NO AWS PROVIDER: no stack was applied; set TF_PLUGIN_DIR to a mirror of it, or allow the registry"
            )


def copy_of_infra(to: Path, folder: str, **env: str) -> Terraform:
    """infra/ copied below `to`, without anybody's state; the test is skipped where terraform is not."""
    if not shutil.which("terraform"):
        pytest.skip("TERRAFORM IS NOT ON PATH: infra/ is untested")
    leave = shutil.ignore_patterns(".terraform", ".terraform.lock.hcl", "*.tfstate*")
    shutil.copytree(INFRA, to / "infra", ignore=leave, dirs_exist_ok=True)
    return Terraform(to / "infra" / folder, env)
