"""The mirror of a checkpoint store: another machine goes on from it, and no run is lost because of it."""

from __future__ import annotations

import json
import logging
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from kedro_aat.errors import CheckpointError, MissingRunError, StorageError
from kedro_aat.testing.store_saving import IDENTITY, checkpoint
from kedro_aat.training.checkpoints import CheckpointStore, Mirror, RunCheckpoints
from tests.servers import ObjectStore

EVERYWHERE = ["memory", "file", "s3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("azure", "google"))]


@pytest.fixture(
    params=["memory", *(pytest.param(name, marks=pytest.mark.slow) for name in ("file", "s3", "azure", "google"))]
)
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mirror]:
    match request.param:
        case "s3" | "azure" | "google":
            store: ObjectStore = request.getfixturevalue(request.param)
            yield Mirror(f"{store.bucket(f'mirror-{uuid.uuid4().hex}')}/of/project/", store.options)
        case "file":
            yield Mirror(f"file://{tmp_path}/mirror")
        case _:
            name = uuid.uuid4().hex
            yield Mirror(f"memory://{name}")
            MemoryFileSystem.store.clear()


@pytest.fixture
def machine(tmp_path: Path, mirror: Mirror) -> Callable[[str], CheckpointStore]:
    """Makes the store of a machine, whose disk is empty at first."""
    return lambda name: CheckpointStore(tmp_path / name / "checkpoints", pickle.loads(pickle.dumps(mirror)))


def files(mirror: Mirror, folder: Path) -> set[str]:
    """The files of a run in the mirror, but for the mark of the mirror itself."""
    return {name for name in mirror.files(folder.name) if name != "mirror.json"}


def on_disk(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.parametrize("mirror", EVERYWHERE, indirect=True)
def test_another_machine_goes_on(machine: Callable[[str], CheckpointStore]) -> None:
    with machine("one").open(IDENTITY) as run:
        for number in range(3):
            run.save(checkpoint(number), keep=[0], wait=False)
        expected = run.load(2)
    with machine("two").open(IDENTITY) as run:
        assert run.numbers == [0, 2]
        assert not run.is_finished
        found = run.load(2)
        assert found.state == expected.state
        assert all(torch.equal(found.model[name], value) for name, value in expected.model.items())
        run.save(checkpoint(3), keep=[0])
        run.finish()
    with machine("three").open(IDENTITY) as run:
        assert run.is_finished
        assert run.numbers == [0, 3]
    with machine("one").open(IDENTITY) as run:  # which has less than the mirror
        assert run.is_finished
        assert run.numbers == [0, 3]


def test_mirror_has_what_the_disk_has(machine: Callable[[str], CheckpointStore], mirror: Mirror) -> None:
    with machine("one").open(IDENTITY) as run:
        run.save(checkpoint(0))
        run.save(checkpoint(1), keep=[0], keep_optimizers=[])
        run.save(checkpoint(2), keep=[1], keep_optimizers=[])
    assert files(mirror, run.folder) == on_disk(run.folder)
    with machine("one").open(IDENTITY) as run:
        run.save(checkpoint(3), keep=[2])
        run.finish()
    assert files(mirror, run.folder) == on_disk(run.folder)
    with machine("one").open(IDENTITY) as run:
        run.reopen(after=2)
    assert files(mirror, run.folder) == on_disk(run.folder)
    assert not machine("two").open(IDENTITY).is_finished


def test_other_runs_are_not_copied(machine: Callable[[str], CheckpointStore]) -> None:
    for seed in range(2):
        with machine("one").open({"seed": seed}) as run:
            run.save(checkpoint(seed))
    fresh = machine("two")
    with fresh.open({"seed": 1}) as run:
        assert run.numbers == [1]
    assert [path.name for path in fresh.root.iterdir() if path.is_dir()] == [run.folder.name]


def test_run_with_more_epochs_is_found(machine: Callable[[str], CheckpointStore]) -> None:
    with machine("one").open({"epochs": 3, "seed": 0}) as run:
        run.save(checkpoint(3))
    with machine("two").open({"epochs": 5, "seed": 0}, may_differ=["epochs"]) as run:
        assert run.numbers == [3]


def test_result_names_a_run_of_another_machine(machine: Callable[[str], CheckpointStore], tmp_path: Path) -> None:
    with machine("one").open(IDENTITY) as run:
        run.save(checkpoint(4))
    name = run.folder.name
    fresh = machine("two")
    fresh.require(name)
    assert fresh.numbers_of(name) == [4]
    assert fresh.load(name, 4).number == 4
    with pytest.raises(MissingRunError, match=f"{tmp_path}/three does not have the run {name}.*`mirror`"):
        CheckpointStore(tmp_path / "three").require(name)


def test_what_runs_share_is_copied_too(machine: Callable[[str], CheckpointStore], mirror: Mirror) -> None:
    store = machine("one")
    for name in ("estimates/a.json", "finished_steps/b.json"):
        (store.root / name).parent.mkdir(parents=True)
        (store.root / name).write_text(name)
    store.push_shared()
    fresh = machine("two")
    fresh.fetch_shared()
    assert on_disk(fresh.root) == {"estimates/a.json", "finished_steps/b.json"}
    (store.root / "estimates/a.json").unlink()
    (store.root / "estimates/c.json").write_text("c")
    with store.open(IDENTITY) as run:  # a search pushes it at once, not at the end of its node
        run.save(checkpoint(0))
    assert {*mirror.files("estimates")} == {"c.json"}
    assert {*mirror.files("finished_steps")} == {"b.json"}


@pytest.mark.parametrize("mirror", ["memory"], indirect=True)
def test_processes_of_one_disk_copy_what_runs_share_at_the_same_time(
    machine: Callable[[str], CheckpointStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, fresh = machine("one"), machine("two")
    (one.root / "ledgers").mkdir(parents=True)
    (one.root / "ledgers/a.json").write_text("a")
    one.push_shared()
    get_file, is_first = MemoryFileSystem.get_file, iter([True])

    def get_while_another_does(fs: MemoryFileSystem, source: str, target: str, **kwargs: Any) -> None:
        get_file(fs, source, target, **kwargs)
        if next(is_first, False):
            fresh.fetch_shared()

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_while_another_does)
    fresh.fetch_shared()
    assert on_disk(fresh.root) == {"ledgers/a.json"}


def test_torn_upload_is_damage_like_any_other(machine: Callable[[str], CheckpointStore], mirror: Mirror) -> None:
    """A machine may end between any two files of an upload."""
    with machine("one").open(IDENTITY) as run:
        run.save(checkpoint(0))
        run.save(checkpoint(1))
    with mirror.opened() as (fs, root):
        fs.rm_file(f"{root}/{run.folder.name}/checkpoint-000001/manifest.json")
    with machine("two").open(IDENTITY) as run:
        latest = run.latest()
        assert latest is not None
        assert latest.number == 0


# --- order, and what goes wrong ----------------------------------------------------------------------------------


class Watched(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A storage that notes what is written and removed, and fails or waits on demand."""

    protocol = "watched"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    calls: ClassVar[list[str]] = []
    fails = False
    waits = threading.Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("watched://", "memory://")))

    def _note(self, what: str, path: str) -> None:
        assert self.waits.wait(60)
        if self.fails:
            raise PermissionError("the token has expired")
        self.calls.append(f"{what} {path.partition('/run/')[2] or path}")

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self._note("put", rpath)
        super().put_file(lpath, rpath, **kwargs)

    def rm_file(self, path: str) -> None:
        self._note("remove", path)
        super().rm_file(path)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._note("put", path)
        super().pipe_file(path, value, mode, **kwargs)


@pytest.fixture
def watched(tmp_path: Path) -> CheckpointStore:
    fsspec.register_implementation("watched", Watched, clobber=True)
    Watched.store.clear()
    Watched.calls.clear()
    Watched.fails = False
    Watched.waits.set()
    return CheckpointStore(tmp_path / "checkpoints", Mirror("watched://mirror"))


def calls_of(run: RunCheckpoints) -> list[str]:
    """What was done in the mirror of a run since the last time."""
    found = [call.replace(f"/mirror/{run.folder.name}/", "") for call in Watched.calls]
    Watched.calls.clear()
    return found


def test_manifest_is_last_and_old_checkpoints_go_after_it(watched: CheckpointStore) -> None:
    with watched.open(IDENTITY) as run:
        run.save(checkpoint(0))
    calls_of(run)
    with watched.open(IDENTITY) as run:
        run.save(checkpoint(1), keep=[])
    calls = [call for call in calls_of(run) if "checkpoint" in call]
    new = [call for call in calls if "checkpoint-000001" in call]
    old = [call for call in calls if "checkpoint-000000" in call]
    assert calls == new + old
    assert new[-1] == "put checkpoint-000001/manifest.json"
    assert old[0] == "remove checkpoint-000000/manifest.json"


def test_replaced_checkpoint_is_never_a_mixture(watched: CheckpointStore) -> None:
    with watched.open(IDENTITY) as run:
        run.save(checkpoint(0))
        run.save(checkpoint(1))
        run.finish()
    calls_of(run)
    with watched.open(IDENTITY) as run:
        run.reopen(after=-1)
        run.save(checkpoint(0))
    calls = calls_of(run)
    first_put = next(index for index, call in enumerate(calls) if call.startswith("put checkpoint"))
    assert {"remove finished", "remove checkpoint-000001/manifest.json", "remove checkpoint-000000/manifest.json"} <= {
        *calls[:first_put]
    }


def test_training_does_not_wait_for_the_mirror_and_skips_what_is_removed_meanwhile(watched: CheckpointStore) -> None:
    with watched.open(IDENTITY) as run:
        run.save(checkpoint(0))
    Watched.waits.clear()
    with watched.open(IDENTITY) as run:
        for number in range(1, 9):
            run.save(checkpoint(number), keep=[0])
        assert run.numbers == [0, 8]
        Watched.waits.set()
    manifests = {call for call in Watched.calls if call.startswith("put") and call.endswith("manifest.json")}
    assert len(manifests) <= 4  # of 9 checkpoints
    assert files(Mirror("watched://mirror"), run.folder) == on_disk(run.folder)


def test_failed_upload_is_one_warning_and_is_made_up_for(
    watched: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    with watched.open(IDENTITY) as run:
        run.save(checkpoint(0))
    Watched.fails = True
    with watched.open(IDENTITY) as run:
        for number in range(1, 4):
            run.save(checkpoint(number))
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "The mirror watched://mirror lacks what was saved last (PermissionError: the token has expired)" in warning
    assert f"everything is in {run.folder}" in warning
    Watched.fails = False
    with watched.open(IDENTITY) as run:
        assert run.numbers == [0, 1, 2, 3]
    assert files(Mirror("watched://mirror"), run.folder) == on_disk(run.folder)


def test_mirror_that_cannot_be_read_is_an_error_before_a_search_begins_anew(
    watched: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise PermissionError("the token has expired")

    monkeypatch.setattr(Watched, "find", fails)
    with pytest.raises(CheckpointError, match=r"watched://mirror: cannot read .*token has expired.*`credentials`"):
        watched.open(IDENTITY)


def test_two_machines_at_a_time_do_not_mix_their_checkpoints(
    machine: Callable[[str], CheckpointStore], mirror: Mirror, caplog: pytest.LogCaptureFixture
) -> None:
    with machine("one").open(IDENTITY) as run:
        run.save(checkpoint(0))
        while files(mirror, run.folder) != on_disk(run.folder) or mirror.last_upload(run.folder.name) is None:
            time.sleep(0.01)
        with machine("two").open(IDENTITY) as other:
            assert other.numbers == [0]
            other.save(checkpoint(1))
        run.save(checkpoint(1))
        run.save(checkpoint(2))
    assert "another process writes this run, too, so nothing is copied there any more" in caplog.text
    assert run.numbers == [0, 1, 2]
    assert files(mirror, run.folder) == on_disk(other.folder)


@pytest.mark.parametrize("url", ["nothing://bucket/folder", "s3x://bucket"])
def test_unknown_protocol_is_an_error_at_once(url: str) -> None:
    with pytest.raises(StorageError, match=f"{url} cannot be used: Protocol not known"):
        Mirror(url)


def test_state_of_the_mirror_may_be_lost(machine: Callable[[str], CheckpointStore], mirror: Mirror) -> None:
    with machine("one").open(IDENTITY) as run:
        run.save(checkpoint(0))
        run.save(checkpoint(1))
    (run.folder / ".mirror").write_text("{")
    with machine("one").open(IDENTITY) as run:
        run.save(checkpoint(2), keep=[1])
    assert files(mirror, run.folder) == on_disk(run.folder)
    with mirror.opened() as (fs, root):
        fs.rm(f"{root}/{run.folder.name}", recursive=True)
    with machine("one").open(IDENTITY) as run:
        run.save(checkpoint(3), keep=[2])
    assert files(mirror, run.folder) == on_disk(run.folder)
    with mirror.opened() as (fs, root):
        assert json.loads(fs.cat_file(f"{root}/{run.folder.name}/mirror.json")).keys() == {"upload"}
