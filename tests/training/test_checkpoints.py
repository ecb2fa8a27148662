"""Every checkpoint store keeps the contract. A new one is added to `STORES`."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kedro_aat.errors import CheckpointError
from kedro_aat.tensors import hash_tensors
from kedro_aat.testing.stores import IDENTITY, StoreContract, checkpoint
from kedro_aat.training.checkpoints import CheckpointStore

STORES: list[type[CheckpointStore]] = [CheckpointStore]


@pytest.mark.parametrize("store_type", STORES)
class TestEveryStore(StoreContract):
    pass


# --- the files of ours -----------------------------------------------------------------------------------------


def test_files_of_a_checkpoint_are_the_documented_ones(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        run.save(checkpoint(12))
        folder = run.folder / "checkpoint-000012"
        assert sorted(path.name for path in folder.iterdir()) == [
            *("manifest.json", "model.safetensors", "state.json", "training.pt"),
        ]
        assert json.loads((folder / "state.json").read_text())["epoch"] == 12
        assert (run.folder / "run.json").exists()


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


def _torch_save(data: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"optimizer": data}, buffer)
    return buffer.getvalue()


BOMBS: dict[str, Callable[[object], bytes]] = {"plain": pickle.dumps, "in torch's format": _torch_save}


@pytest.mark.parametrize("file", ["training.pt", "model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("kind", BOMBS)
def test_pickle_is_never_executed(tmp_path: Path, kind: str, file: str) -> None:
    """Whoever can write a file can write its checksum too."""
    exploded = tmp_path / "exploded"
    bomb = BOMBS[kind](Bomb(exploded))
    pickle.loads(pickle.dumps(Bomb(exploded)))  # it is a live one
    assert exploded.exists()
    exploded.unlink()

    with CheckpointStore(tmp_path / "runs").open(IDENTITY) as run:
        run.save(checkpoint(0))
        run.save(checkpoint(1), lambda folder: (folder / "bomb").write_bytes(bomb) and folder / "bomb")
        folder = run.folder / "checkpoint-000001"
        (folder / "bomb").rename(folder / file)
        if file != "manifest.json":
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest[file] = manifest.pop("bomb")
            (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError):
            run.load(1)
        latest = run.latest()
        assert latest is not None
        assert latest.number == 0
    assert not exploded.exists()


@pytest.mark.parametrize("contents", ["null", "[]", "7", '"text"', "{}", '{"state.json": 7}'])
def test_manifest_that_is_no_list_of_checksums_counts_as_damage(tmp_path: Path, contents: str) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        run.save(checkpoint(0))
        (run.folder / "checkpoint-000000" / "manifest.json").write_text(contents)
        with pytest.raises(CheckpointError):
            run.load(0)


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
def test_hash_tells_tensors_apart(what: str) -> None:
    assert hash_tensors(CHANGED[what].items()) != hash_tensors(BASE.items())


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.tensor(1.0, dtype=torch.float64), torch.tensor(1.0 + 1e-12, dtype=torch.float64)),
        (torch.tensor(2**60), torch.tensor(2**60 + 1)),
    ],
)
def test_hash_tells_numbers_apart_that_float32_cannot(left: Tensor, right: Tensor) -> None:
    assert hash_tensors([("x", left)]) != hash_tensors([("x", right)])


def test_hash_is_of_what_the_tensors_hold() -> None:
    weight = torch.randn(3, 4)
    same = {
        "parameter": torch.nn.Parameter(weight.clone()),
        "not contiguous": weight.t().contiguous().t(),
        "slice": torch.cat([weight, weight])[:3],
    }
    for tensor in same.values():
        assert hash_tensors([("weight", tensor)]) == hash_tensors([("weight", weight)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.int8, torch.bool])
def test_tensors_of_every_type_and_shape_have_a_hash(dtype: torch.dtype) -> None:
    tensors = [torch.ones(shape, dtype=dtype) for shape in ((), (0,), (3,), (2, 0), (2, 3))]
    assert len({hash_tensors([("x", tensor)]) for tensor in tensors}) == 5
