"""A rehearsal goes through every stage of the real path, says what each costs, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.phantom import write_phantom
from tests.runs import Driver, settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_one_step_one_resume_one_export(s3: S3Server, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket}/rehearsal"
    write_phantom(f"{uri}/tiles", config.Storage(), num_tiles=200, num_patients=4, num_sites=1, size=48)
    tree = settings(f"{uri}/runs", f"{uri}/tiles")
    driver = Driver(tree, tmp_path, verb=("distill", "--rehearse")).start()
    assert driver.wait(400) == 0, driver.text()[-3000:]
    said = driver.text()
    assert "rehearsal: started, trained a step, wrote a checkpoint" in said
    assert "rehearsal: resumed from it, trained another" in said
    assert re.search(r"rehearsal: .*mock0 \d+ tiles/s, \d+ MiB; mock1 .*student \d+ tiles/s, \d+ MiB", said)
    assert re.search(r"rehearsal: exported and checked in \d+ s; the run may start", said)
    cfg = config.Storage(**tree["storage"])
    assert not [name for name in storage.list_files(f"{uri}/runs", cfg) if "rehearsal" in name]
    assert checkpoint.choose(f"{uri}/runs/debug", cfg) is None
