"""The contract of all checkpoint stores (add a new one to `STORES`), and the files of `CheckpointStore`."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from torch import Tensor

import kedro_aat
from kedro_aat.errors import CheckpointError, DamagedCheckpointError
from kedro_aat.tensors import hash_tensors
from kedro_aat.testing.store_saving import IDENTITY, checkpoint
from kedro_aat.testing.stores import StoreContract
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore, RunCheckpoints

STORES: list[type[CheckpointStore]] = [CheckpointStore]


@pytest.mark.parametrize("store_type", STORES)
class TestEveryStore(StoreContract):
    pass


# --- the files ------------------------------------------------------------------------------------------------


def test_checkpoint_has_the_documented_files(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        run.save(checkpoint(12))
        folder = run.folder / "checkpoint-000012"
        assert sorted(path.name for path in folder.iterdir()) == [
            *("manifest.json", "model.safetensors", "state.json", "training.pt"),
        ]
        assert json.loads((folder / "state.json").read_text())["epoch"] == 12
        assert json.loads((folder / "manifest.json").read_text())["format_version"] == 3
        about = json.loads((run.folder / "run.json").read_text())["kedro_aat"]
        versions = {"version": kedro_aat.__version__, "format_version": 3, "identity_version": 2}
        assert about == versions | {"name": run.folder.name}


def test_what_others_put_into_a_run_is_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        run.save(checkpoint(0))
        (run.folder / "checkpoint-000099").write_text("a file")
        (run.folder / ".writing-000003").write_text("a file")
        (run.folder / "checkpoint-000000" / "folder").mkdir()
    with store.open(IDENTITY) as run:
        run.save(checkpoint(1), keep=())
        run.save(checkpoint(3), keep={1})
        assert run.numbers == [1, 3]


def test_folders_of_runs_have_the_names_of_earlier_versions(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        assert run.folder == tmp_path / "0139a700e195"
        with pytest.raises(Timeout):
            FileLock(run.folder / ".lock", timeout=0).acquire()
        run.finish()
    with store.open(IDENTITY, reuse_finished=False) as run:
        assert run.folder == tmp_path / "0139a700e195-2"
        run.finish()
    with store.open(IDENTITY, reuse_finished=False) as run:
        assert run.folder == tmp_path / "0139a700e195-3"


def test_paths_in_an_identity_distinguish_runs(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open({"data": Path("one")}) as one, store.open({"data": Path("other")}) as other:
        assert one.folder != other.folder


def test_identity_of_a_run_must_be_plain_data(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot identify a run"):
        CheckpointStore(tmp_path).open({"metric": print})


def test_continuing_a_run_leaves_its_file_alone(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        path = run.folder / "run.json"
        path.write_text(f" {path.read_text()}")
        written = path.read_text()
    with CheckpointStore(tmp_path).open(IDENTITY):
        assert path.read_text() == written


@pytest.mark.parametrize("keep", [{1, 2}, (7,), ()])
def test_saving_removes_checkpoints_that_are_not_kept(tmp_path: Path, keep: Collection[int]) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        for number in range(4):
            run.save(checkpoint(number))
        run.save(checkpoint(4), keep=keep)
        assert run.numbers == sorted({0, 1, 2, 3} & set(keep) | {4})


def test_state_that_json_cannot_hold_is_an_error(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.save(Checkpoint(0, {}, {}, {"metric": float("nan")}))
        assert run.numbers == []


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"scheduler": {"path": Path("x")}}, "training.scheduler.path of a checkpoint is a"),
        ({"scheduler": [1, (2, print)]}, "training.scheduler[1][1] of a checkpoint is a builtin"),
        ({"scheduler": {Path("x"): 1}}, "training.scheduler of a checkpoint is a"),
    ],
)
def test_error_names_an_object_that_cannot_be_read_back(tmp_path: Path, training: dict[str, Any], message: str) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run, pytest.raises(CheckpointError, match=re.escape(message)):
        run.save(Checkpoint(0, {}, training, {}))


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


def _torch_save(data: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


BOMBS: dict[str, Callable[[object], bytes]] = {
    "plain": pickle.dumps,
    "in torch's format": lambda data: _torch_save({"optimizer": data}),
}


@pytest.mark.parametrize("file", ["training.pt", "model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("kind", BOMBS)
def test_pickle_is_never_executed(tmp_path: Path, kind: str, file: str) -> None:
    """Checksums do not protect: whoever can write a file can write its checksum too."""
    exploded = tmp_path / "exploded"
    bomb = BOMBS[kind](Bomb(exploded))
    pickle.loads(pickle.dumps(Bomb(exploded)))  # the bomb works
    assert exploded.exists()
    exploded.unlink()

    with CheckpointStore(tmp_path / "runs").open(IDENTITY) as run:
        run.save(checkpoint(0))
        run.save(checkpoint(1), lambda folder: (folder / "bomb").write_bytes(bomb) and folder / "bomb")
        folder = run.folder / "checkpoint-000001"
        (folder / "bomb").rename(folder / file)
        if file != "manifest.json":
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["files"][file] = manifest["files"].pop("bomb")
            (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError):
            run.load(1)
        latest = run.latest()
        assert latest is not None
        assert latest.number == 0
    assert not exploded.exists()


def test_checkpoint_of_the_first_format_is_read(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        run.save(checkpoint(0))
        path = run.folder / "checkpoint-000000" / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest["files"]))
        assert run.load(0).state["epoch"] == 0


@pytest.mark.parametrize("contents", ["null", "[]", "7", '"text"', "{}", '{"state.json": 7}'])
def test_manifest_without_checksums_counts_as_damage(tmp_path: Path, contents: str) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        for number in range(2):
            run.save(checkpoint(number))
        (run.folder / "checkpoint-000000" / "manifest.json").write_text(contents)
        assert (run.can_load(0), run.can_load(1)) == (False, True)
        assert run.numbers == [1]
        run.save(checkpoint(0))  # trained again
        assert run.numbers == [0, 1]


@pytest.mark.parametrize(("file", "contents"), [("training.pt", _torch_save([])), ("state.json", b"[]")])
def test_state_that_is_no_mapping_counts_as_damage(tmp_path: Path, file: str, contents: bytes) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        run.save(checkpoint(0), lambda folder: (folder / "other").write_bytes(contents) and folder / "other")
        folder = run.folder / "checkpoint-000000"
        (folder / "other").rename(folder / file)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][file] = manifest["files"].pop("other")
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DamagedCheckpointError, match="is not a mapping"):
            run.load(0)


def test_too_little_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        run.save(checkpoint(0))
        with monkeypatch.context() as patched:
            patched.setattr(torch, "load", load)
            with pytest.raises(torch.OutOfMemoryError):
                run.load(0)
        assert run.numbers == [0]


def test_value_that_the_state_does_not_have_is_an_error() -> None:
    assert checkpoint(3).value("epoch") == 3
    with pytest.raises(CheckpointError, match="has no rate"):
        checkpoint(3).value("rate")


def test_run_that_cannot_be_locked_is_not_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        run.save(checkpoint(0))
    (run.folder / ".lock").unlink(missing_ok=True)
    (run.folder / ".lock").mkdir()
    with pytest.raises(CheckpointError, match=r"\.lock"):
        store.open(IDENTITY)


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize(("after", "left"), [(1, [0, 1]), (-1, [])])
def test_reopened_run_goes_back_to_a_checkpoint(tmp_path: Path, is_finished: bool, after: int, left: list[int]) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        for number in range(4):
            run.save(checkpoint(number))
        if is_finished:
            run.finish()
        run.reopen(after=after)
        assert not run.is_finished
        assert run.numbers == left


# --- reading a run by its name ---------------------------------------------------------------------------------


def test_checkpoints_can_be_read_by_the_name_of_their_run(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        for number in (3, 12):
            run.save(checkpoint(number))
        name = run.folder.name
    assert store.numbers_of(name) == [3, 12]
    assert store.numbers_of("another") == []
    loaded = store.load(name, 12)
    assert (loaded.number, loaded.state["epoch"]) == (12, 12)
    assert loaded.folder == tmp_path / name / "checkpoint-000012"
    assert_same_bits(loaded.model, checkpoint(12).model)
    with pytest.raises(CheckpointError, match="checkpoint-000004"):
        store.load(name, 4)


# --- writing while training continues --------------------------------------------------------------------------


@pytest.fixture
def blocked(tmp_path: Path) -> Iterator[tuple[RunCheckpoints, Event, Future[bool]]]:
    """A run whose writer waits for an event, for 60 seconds at most; the future is whether the event was set."""
    event = Event()
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        was_set = run._writer.submit(event.wait, 60)
        try:
            yield run, event, was_set
        finally:
            event.set()


def test_training_continues_while_a_copy_is_written(blocked: tuple[RunCheckpoints, Event, Future[bool]]) -> None:
    run, event, was_set = blocked
    weight, momentum = torch.zeros(1000), torch.ones(5)
    milestones = Counter({3: 1})
    training = {"state": [momentum, (momentum, 7)], "milestones": milestones, "betas": {"first": 0.9}}
    run.save(Checkpoint(0, {"weight": weight}, training, {}), wait=False)
    weight += 1
    momentum += 1
    milestones[3] = 9
    training["betas"] = {}
    event.set()
    assert was_set.result()  # if `save` had waited for the writer, the event would have come too late
    loaded = run.load(0)
    assert_same_bits(loaded.model, {"weight": torch.zeros(1000)})
    (first, (second, number)) = loaded.training["state"]
    assert torch.equal(first, torch.ones(5))
    assert torch.equal(second, torch.ones(5))
    assert number == 7
    assert loaded.training["milestones"] == Counter({3: 1})
    assert type(loaded.training["milestones"]) is Counter
    assert loaded.training["betas"] == {"first": 0.9}


def test_ctrl_c_while_waiting_loses_no_error_of_the_writer(
    blocked: tuple[RunCheckpoints, Event, Future[bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, event, _ = blocked
    run.save(Checkpoint(0, {"weight": torch.zeros(2)}, {}, {}), wait=False)
    pending = run._pending
    assert pending is not None

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pending, "exception", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.wait()
    event.set()
    latest = run.latest()
    assert latest is not None
    assert latest.number == 0


def test_next_method_raises_the_writers_error(tmp_path: Path) -> None:
    refused = Checkpoint(1, {"layer._extra_state": {"counter": 1}}, {}, {})
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        run.save(refused, wait=False)
        with pytest.raises(CheckpointError, match="_extra_state"):
            run.save(checkpoint(2))
        run.save(checkpoint(2))
        assert run.numbers == [2]


def test_closing_waits_for_the_writer(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        run.save(checkpoint(1, weight=torch.zeros(1_000_000)), wait=False)
    assert store.numbers_of(run.folder.name) == [1]


# --- hashes ----------------------------------------------------------------------------------------------------

BASE: dict[str, Tensor] = {"a": torch.arange(6.0), "b": torch.tensor([True, False])}
CHANGED: dict[str, dict[str, Tensor]] = {
    "name": {"c": BASE["a"], "b": BASE["b"]},
    "type": {"a": BASE["a"].double(), "b": BASE["b"]},
    "type of the same bits": {"a": BASE["a"].view(torch.int32), "b": BASE["b"]},
    "shape": {"a": BASE["a"].view(2, 3), "b": BASE["b"]},
    "value": {"a": BASE["a"] + torch.tensor([0, 0, 0, 0, 0, 1e-6]), "b": BASE["b"]},
    "sign of a zero": {"a": torch.copysign(BASE["a"], torch.tensor([-1.0, 1, 1, 1, 1, 1])), "b": BASE["b"]},
    "one tensor more": {**BASE, "c": torch.empty(0)},
    "one tensor less": {"a": BASE["a"]},
    "values swapped": {"a": BASE["a"].flip(0), "b": BASE["b"]},
}


@pytest.mark.parametrize("what", CHANGED)
def test_hash_distinguishes_tensors(what: str) -> None:
    assert hash_tensors(CHANGED[what].items()) != hash_tensors(BASE.items())


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.tensor(1.0, dtype=torch.float64), torch.tensor(1.0 + 1e-12, dtype=torch.float64)),
        (torch.tensor(2**60), torch.tensor(2**60 + 1)),
    ],
)
def test_hash_distinguishes_numbers_that_are_equal_in_float32(left: Tensor, right: Tensor) -> None:
    assert hash_tensors([("x", left)]) != hash_tensors([("x", right)])


def test_hash_depends_on_values_alone() -> None:
    weight = torch.randn(3, 4)
    same = {
        "parameter": torch.nn.Parameter(weight.clone()),
        "not contiguous": weight.t().contiguous().t(),
        "slice": torch.cat([weight, weight])[:3],
    }
    for tensor in same.values():
        assert hash_tensors([("weight", tensor)]) == hash_tensors([("weight", weight)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.int8, torch.bool])
def test_every_type_and_shape_has_a_hash(dtype: torch.dtype) -> None:
    tensors = [torch.ones(shape, dtype=dtype) for shape in ((), (0,), (3,), (2, 0), (2, 3))]
    assert len({hash_tensors([("x", tensor)]) for tensor in tensors}) == 5
