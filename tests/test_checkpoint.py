"""One chooser: the last whole checkpoint on the line of attempts that leads to now."""

from pathlib import Path

import pytest

from pathryoshka import config, storage
from pathryoshka.distill import checkpoint
from pathryoshka.distill.checkpoint import CheckpointError, Ref, Uploader

CFG = config.Storage()


def write(run: str, step: int, token: int, world: int = 2, ranks: tuple[int, ...] = (0, 1), group: str = "g") -> Ref:
    """A checkpoint whose `ranks` have finished their upload."""
    ref = Ref(step, token)
    for rank in ranks:
        local = Path(run) / "local" / f"{step}-{token}-{rank}"
        (local / "engine").mkdir(parents=True)
        (local / "engine" / f"shard_{rank}.pt").write_bytes(bytes([step % 256, rank]) * 100)
        if rank == 0:
            (local / "state.json").write_text("{}")
        with Uploader(run, rank, world, group, CFG) as uploader:
            uploader.submit(ref, local)
        assert not local.exists()
    return ref


def attempt(run: str, token: int) -> Ref | None:
    return checkpoint.record_attempt(run, token, CFG)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def test_nothing_yet(run: str) -> None:
    assert checkpoint.choose(run, CFG) is None
    assert attempt(run, 1) is None
    assert checkpoint.choose(run, CFG) is None


def test_a_checkpoint_is_whole_once_every_rank_has_finished(run: str) -> None:
    attempt(run, 1)
    first = write(run, 5, 1)
    write(run, 10, 1, ranks=(0,))
    assert checkpoint.choose(run, CFG) == first
    write(run, 10, 1, ranks=(1,))
    assert checkpoint.choose(run, CFG) == Ref(10, 1)


def test_ranks_of_two_worker_groups_make_no_checkpoint(run: str) -> None:
    attempt(run, 1)
    first = write(run, 5, 1)
    write(run, 10, 1, ranks=(0,), group="killed in the middle")
    write(run, 10, 1, ranks=(1,), group="restarted")
    assert checkpoint.choose(run, CFG) == first
    write(run, 10, 1, ranks=(0,), group="restarted")
    assert checkpoint.choose(run, CFG) == Ref(10, 1)


@pytest.mark.parametrize("harm", ["truncate", "delete", "empty"])
def test_a_torn_checkpoint_is_not_chosen(run: str, harm: str) -> None:
    attempt(run, 1)
    first, last = write(run, 5, 1), write(run, 10, 1)
    victim = Path(checkpoint.folder(run, last)) / "engine" / "shard_1.pt"
    data = victim.read_bytes()
    {
        "truncate": lambda: victim.write_bytes(data[:-1]),
        "delete": victim.unlink,
        "empty": lambda: victim.write_bytes(b""),
    }[harm]()
    assert checkpoint.choose(run, CFG) == first


def test_a_run_goes_on_from_where_another_stands(run: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    with pytest.raises(CheckpointError, match="has no checkpoint that"):
        checkpoint.take_over(run, 1, other, CFG)
    for where, steps in ((run, (5, 10)), (other, (10,))):
        attempt(where, 1)
        for step in steps:
            write(where, step, 1)
    (Path(checkpoint.folder(other, Ref(10, 1))) / "engine" / "theirs.pt").write_bytes(b"not in its record")
    checkpoint.write_best(run, {"checkpoint": Ref(5, 1).name, "loss": 0.1}, CFG)
    mine = checkpoint.take_over(run, 2, other, CFG)
    assert mine == Ref(10, 2) == checkpoint.choose(run, CFG) and checkpoint.best(run, CFG) is None
    copied = checkpoint.fetch(run, mine, tmp_path / "copied", CFG)
    shards = [root / "engine" / "shard_1.pt" for root in (copied, Path(checkpoint.folder(other, Ref(10, 1))))]
    assert shards[0].read_bytes() == shards[1].read_bytes()
    write(run, 15, 1)  # by whoever lost the run's lease
    assert attempt(run, 3) == mine
    assert checkpoint.choose(other, CFG) == Ref(10, 1), "the other one is left as it was"


def test_a_copy_that_was_cut_off_is_not_gone_on_from(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = str(tmp_path / "other")
    for where in (run, other):
        attempt(where, 1)
        write(where, 10 if where == other else 5, 1)

    def killed(uri: str, cfg: config.Storage) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.take_over(run, 2, other, CFG)
    assert Ref(10, 2) in checkpoint.complete(run, CFG) and checkpoint.choose(run, CFG) == Ref(5, 1)


def test_a_flipped_bit_is_found_when_fetched(run: str, tmp_path: Path) -> None:
    attempt(run, 1)
    last = write(run, 10, 1)
    checkpoint.fetch(run, last, tmp_path / "ok", CFG)
    victim = Path(checkpoint.folder(run, last)) / "engine" / "shard_0.pt"
    data = bytearray(victim.read_bytes())
    data[7] ^= 1
    victim.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"shard_0.pt is damaged; delete .*00000010-000001"):
        checkpoint.fetch(run, last, tmp_path / "bad", CFG)


def test_a_driver_that_lost_its_lease_writes_on_a_branch_nobody_follows(run: str) -> None:
    attempt(run, 1)
    write(run, 5, 1)
    assert attempt(run, 2) == Ref(5, 1)  # takes over while attempt 1 is only asleep
    write(run, 20, 1)  # attempt 1 wakes up and goes on
    assert checkpoint.choose(run, CFG) == Ref(5, 1)
    write(run, 10, 2)
    assert checkpoint.choose(run, CFG) == Ref(10, 2)
    assert attempt(run, 3) == Ref(10, 2)


def test_falls_back_along_the_line_when_the_parent_is_torn(run: str) -> None:
    attempt(run, 1)
    first, second = write(run, 5, 1), write(run, 10, 1)
    assert attempt(run, 2) == second
    storage.delete(storage.join(checkpoint.folder(run, second), "state.json"), CFG)
    write(run, 15, 1)  # of the lost branch
    assert checkpoint.choose(run, CFG) == first


def test_prune_keeps_the_last_the_best_and_what_is_being_written(run: str) -> None:
    attempt(run, 1)
    refs = [write(run, step, 1) for step in (5, 10, 15, 20)]
    write(run, 25, 1, ranks=(0,))
    checkpoint.prune(run, 2, refs[0], CFG)
    assert checkpoint.complete(run, CFG) == [refs[0], refs[2], refs[3]]
    assert storage.exists(storage.join(checkpoint.folder(run, Ref(25, 1)), "rank_0000.json"), CFG)


def test_an_upload_that_fails_stops_training_at_the_next(run: str, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    uploader = Uploader(str(blocked), 0, 1, "g", config.Storage(max_attempts=1))
    local = tmp_path / "share"
    local.mkdir()
    (local / "x").write_text("x")
    uploader.submit(Ref(1, 1), local)
    with pytest.raises(storage.StorageError):
        uploader.__exit__(None, None, None)


def test_a_run_in_a_folder_is_found_from_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = config.Run(name="a", storage=config.Storage(root="out/runs"))
    assert checkpoint.uri_of(run) == str(tmp_path / "out/runs/a")
    assert checkpoint.uri_of(config.Run(name="a", storage=config.Storage(root="s3://b/runs"))) == "s3://b/runs/a"
