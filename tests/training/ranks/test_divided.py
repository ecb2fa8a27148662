"""A search whose weights are divided among ranks, against one on a single process."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from kedro_aat.errors import DamagedCheckpointError
from kedro_aat.training.checkpoints.files import read
from kedro_aat.training.checkpoints.parts import placed_as
from tests.torture_ranks import EPOCHS, kill_ranks
from tests.training.ranks.commands import ended_as, found_by, start, start_group
from tests.training.ranks.shared_search import network, search
from tests.training.ranks.test_ranks import assert_same

OPTIONS: dict[str, Any] = {"batch_size": 33, "gradient_clip_norm": 0.5, "distillation": {}}


def test_divided_weights_find_what_a_single_process_finds(tmp_path: Path) -> None:
    """With BatchNorm, clipped gradients, a teacher, and a layer with fewer rows than fit on each rank."""
    commands = start_group(tmp_path / "two", 2, epochs=2, sharding="fully_shard", **OPTIONS)
    single = search(tmp_path / "one", epochs=2, **OPTIONS)
    assert_same(found_by(commands[0]), single)
    _checkpoints_are_those_of_a_single_process(tmp_path / "two" / "store", tmp_path / "one")
    _damaged_parts_are_found(tmp_path / "two" / "store")


def _checkpoints_are_those_of_a_single_process(store: Path, other: Path) -> None:
    """Read in a single process, as the commands do that deliver."""
    (run,), (run_of_other,) = (tuple(root.glob("*/checkpoint-000002")) for root in (store, other))
    assert {f"model-0000{rank}-of-00002.safetensors" for rank in range(2)} <= {path.name for path in run.iterdir()}
    found, expected = read(run, 2), read(run_of_other, 2)
    state = placed_as(found.model, network())
    assert state.keys() == expected.model.keys()
    for name, tensor in expected.model.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)
    (optimizer,), (optimizer_of_other,) = (each.training["optimizers"] for each in (found, expected))
    for number, saved in optimizer_of_other["state"].items():
        momentum = optimizer["state"][number]["momentum_buffer"].whole()
        torch.testing.assert_close(momentum, saved["momentum_buffer"], rtol=1e-3, atol=1e-4)


def _damaged_parts_are_found(store: Path) -> None:
    """Nothing is unpickled from them either."""
    (folder,) = store.glob("*/checkpoint-000002")
    for kind, path in itertools.product(("bit", "pickle", "missing"), sorted(folder.glob("*-of-00002.safetensors"))):
        before = path.read_bytes()
        if kind == "bit":
            path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        elif kind == "pickle":
            path.write_bytes(pickle.dumps(_Bomb()))
        elif path.name.startswith("model"):  # without the optimizers, the model can still be read
            path.unlink()
        else:
            continue
        with pytest.raises(DamagedCheckpointError):
            read(folder, 2)
        path.write_bytes(before)
    read(folder, 2)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("something was unpickled",)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("importance", ["l2", "batch_norm_scale", "geometric_median"])
def test_filters_are_those_of_a_single_process(tmp_path: Path, size: int, importance: str) -> None:
    """A single process trains cut copies, so that its epochs cost less; this policy does not ask what they cost."""
    options = OPTIONS | {"policy": "uniform_decrease", "epochs": 4, "compression": importance}
    commands = start_group(tmp_path / "ranks", size, sharding="fully_shard", **options)
    single = search(tmp_path / "one", **options)
    found = found_by(commands[0])
    assert found["masks"] == single.masks
    for row, other in zip(found["rows"], single.rows, strict=True):
        for name in ("requested_rate", "achieved_rate", "metric"):
            assert row[name] == other[name]
        assert row["loss"] == (None if other["loss"] is None else pytest.approx(other["loss"], abs=1e-4))


@pytest.mark.slow
def test_a_rank_that_dies_makes_all_start_again(tmp_path: Path) -> None:
    """All go on from the checkpoint that all have written, and end as if nothing had happened."""
    options = ("--devices", "2", "--sharding", "fully_shard")
    undisturbed = ended_as(start(tmp_path / "undisturbed", *options, "--epochs", EPOCHS))
    found, killed = kill_ranks(tmp_path / "killed", [(1, 4.0), (0, 4.0)], 2, sharding="fully_shard")
    assert killed
    assert found == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_four_ranks_find_what_a_single_process_finds(tmp_path: Path, norm: str) -> None:
    """The last layer has fewer rows than there are ranks."""
    commands = start_group(tmp_path / "four", 4, sharding="fully_shard", norm=norm, **OPTIONS)
    single = search(tmp_path / "one", norm=norm, **OPTIONS)
    assert_same(found_by(commands[0]), single)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, "fully_shard"), (4, "fully_shard")),
        ((4, "fully_shard"), (1, "none")),
        ((1, "none"), (2, "fully_shard")),
        ((2, "fully_shard"), (2, "none")),
    ],
)
def test_a_run_goes_on_with_other_ranks(tmp_path: Path, before: tuple[int, str], after: tuple[int, str]) -> None:
    """With the optimizer's momentum, and as if nothing had happened, but for rounding."""
    options = OPTIONS | {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}}
    undisturbed = search(tmp_path / "undisturbed", epochs=5, **options)
    for epochs, (size, sharding) in ((4, before), (5, after)):
        commands = start_group(tmp_path / "run", size, epochs=epochs, sharding=sharding, **options)
        found = [command.wait() for command in commands]
        assert found == [0] * size, commands[0].output
    assert_same(found_by(commands[0]), undisturbed)
