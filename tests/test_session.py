"""Two sessions on one machine: what runs in one must not ask the other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray

from pathryoshka.session import on_cluster, ray_session
from tests.runs import short_tmp

OTHER = """
import sys
from pathryoshka.session import ray_session
with ray_session(1, dashboard=True):
    print("up", flush=True)
    sys.stdin.read()
"""


class Watched:
    def lives(self) -> bool:
        """As Ray Train's PlacementGroupCleaner asks; where the answer is no, it takes the workers' places away."""
        from ray.train.v2._internal.state.util import is_actor_alive

        return is_actor_alive(ray.get_runtime_context().get_actor_id(), timeout=20)

    def address(self) -> tuple[str | None, bool]:
        return os.environ.get("RAY_ADDRESS"), on_cluster()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_beside_another_session_an_actor_is_known_to_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    env = os.environ | {"RAY_TMPDIR": str(short_tmp())}
    monkeypatch.setenv("RAY_TMPDIR", str(short_tmp()))
    with ray_session(2, dashboard=True):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", OTHER], env=env, text=True, **pipes) as other:
            assert other.stdin and other.stdout
            while line := other.stdout.readline():
                if line.strip() == "up":
                    break
            assert line, "the other session did not start"
            watched = ray.remote(num_cpus=0)(Watched).remote()
            assert ray.get(watched.lives.remote(), timeout=120)
            told, elsewhere = ray.get(watched.address.remote())
            assert told and told.split(":")[1] == ray.get_runtime_context().gcs_address.split(":")[1] and not elsewhere
            other.stdin.close()
    assert "RAY_ADDRESS" not in os.environ, "a command that follows starts a session of its own"
