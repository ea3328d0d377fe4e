"""Container images without a daemon: buildah in a store of its own, and every byte that is pushed."""

from __future__ import annotations

import contextlib
import gzip
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "infra" / "docker"
BASE = "docker.io/library/python:3.11-slim-bookworm"
FLAGS = shlex.split(os.environ.get("IMAGE_BUILD_FLAGS", ""))
"""What this machine's network asks of `buildah bud` (a certificate mounted, --build-arg), and no Dockerfile should."""
CHUNK, LONGEST = 1 << 24, 200


@dataclass
class Store:
    """Images of one test, in `folder`; removed with it."""

    folder: Path
    driver: str = "vfs"

    def buildah(
        self, *words: str, env: Mapping[str, str] | None = None, timeout: int = 600
    ) -> subprocess.CompletedProcess[str]:
        places = ["--root", f"{self.folder}/root", "--runroot", f"{self.folder}/run", "--storage-driver", self.driver]
        done = subprocess.run(
            ["buildah", *places, *words], text=True, capture_output=True, timeout=timeout,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.folder), **(env or {})},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"buildah {' '.join(words)[:200]}: {done.stderr[-3000:]}")
        return done

    def build(
        self, dockerfile: Path, tree: Path, *flags: str, env: Mapping[str, str] | None = None, timeout: int = 600
    ) -> str:
        """The name of the image made of `tree`."""
        name = f"localhost/{dockerfile.name.lower()}"
        fixed = ["--pull-never", "--isolation", "chroot", "--network", "host", "--format", "docker"]
        self.buildah("bud", *fixed, *flags, "-t", name, "-f", str(dockerfile), str(tree), env=env, timeout=timeout)
        return name

    def pushed(self, image: str) -> Path:
        """A folder with what goes to a registry: layers (unpacked), manifest, the config with history and env."""
        folder = self.folder / "pushed"
        shutil.rmtree(folder, ignore_errors=True)
        self.buildah("push", "--disable-compression", image, f"dir:{folder}", timeout=3600)
        return folder

    def remove(self) -> None:
        """Layers that are mounted would stop a plain rmtree."""
        with contextlib.suppress(RuntimeError):
            self.buildah("rm", "--all")
            self.buildah("rmi", "--all", "--force")
        shutil.rmtree(self.folder, ignore_errors=True)

    def has(self, image: str) -> bool:
        try:
            return bool(self.buildah("images", "-q", image).stdout)
        except RuntimeError:
            return False

    def debians_python(self) -> None:
        """BASE from Debian's packages, where its registry is out of reach: the same Debian, its own Python 3.11."""
        root = self.folder / "debian"
        packages = (
            "ca-certificates,python3-venv,python3-pip,libpython3.11-dev"  # headers: DeepSpeed compiles against them
        )
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
        for name in ("python", "python3"):
            (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
        (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()  # the real image lets pip install into its Python
        container = self.buildah("from", "scratch").stdout.strip()
        self.buildah("add", container, str(root), "/")
        shutil.rmtree(root)
        places = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.buildah("config", "--env", f"PATH={places}", "--cmd", "python3", container)
        self.buildah("commit", "--rm", container, BASE)


def chunks(file: Path) -> Iterator[bytes]:
    """Each with the end of the one before, so that nothing hides on a border; a compressed layer is read unpacked."""
    with file.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
    with gzip.open(file, "rb") if packed else file.open("rb") as source:
        before = b""
        while piece := source.read(CHUNK):
            yield before + piece
            before = piece[-LONGEST:]


def found(folder: Path, planted: Mapping[str, str]) -> set[str]:
    """The names of those secrets of which a file in `folder` holds a byte-for-byte copy."""
    return {
        name
        for file in folder.iterdir()
        for chunk in chunks(file)
        for name, secret in planted.items()
        if secret.encode() in chunk
    }


def copies(dockerfile: Path) -> str:
    """Its lines that take something from the build's context, on an empty image."""
    lines = dockerfile.read_text().replace("\\\n", " ").splitlines()
    taken = [line for line in lines if line.startswith(("COPY", "ADD")) and "--from" not in line]
    return "\n".join(["FROM scratch", "WORKDIR /src", *taken, ""])
