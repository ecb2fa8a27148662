"""A search on several ranks, against one on a single process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kedro_aat.errors import ConfigurationError, UserFunctionError
from tests.torture_ranks import EPOCHS, kill_ranks
from tests.training.ranks.commands import ended_as, found_by, start, start_group
from tests.training.ranks.shared_search import Ended, SilentWriter, search, split


def assert_same(found: dict[str, Any], single: Ended) -> None:
    """Rates, metrics and masks are equal, and losses but for rounding."""
    assert found["masks"] == single.masks
    assert [_without_loss(row) for row in found["rows"]] == [_without_loss(row) for row in single.rows]
    for row, other in zip(found["rows"], single.rows, strict=True):
        assert row["loss"] == (None if other["loss"] is None else pytest.approx(other["loss"], abs=1e-4))


def _without_loss(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("loss", "standard_error")}


def test_two_ranks_find_what_a_single_process_finds(tmp_path: Path) -> None:
    """With BatchNorm, a smaller last batch of the validation, and an odd number of examples in each."""
    commands = start_group(tmp_path / "two", 2, epochs=4, batch_size=33)
    single = search(tmp_path / "one", epochs=4, batch_size=33)
    first, second = map(found_by, commands)
    assert first == second
    assert_same(first, single)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    commands = start_group(tmp_path / "run", 2, epochs=2)
    first, _ = map(found_by, commands)
    more = search(tmp_path / "run" / "store", epochs=4)
    assert len(more.rows) > len(first["rows"])
    assert more.rows[: len(first["rows"])] == first["rows"]


def test_what_pickle_does_not_take_is_named_before_the_training(tmp_path: Path) -> None:
    def local_writer(run: str, next_epoch: int) -> SilentWriter:
        return SilentWriter()

    with pytest.raises(ConfigurationError, match=r"2 processes .* writer_of .*local_writer.* torchrun"):
        search(tmp_path, devices=2, writer_of=local_writer)
    assert not list(tmp_path.glob("*/checkpoint-*"))


def test_a_training_function_of_the_users_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="train_epoch: must be left out with devices: 2"):
        search(tmp_path, devices=2, train_epoch="tests.training.user_functions.train_epoch")


@pytest.mark.slow
def test_a_training_function_is_refused_by_processes_that_others_started(tmp_path: Path) -> None:
    commands = start_group(tmp_path, 2, epochs=1, train_epoch="tests.training.user_functions.train_epoch")
    for command in commands:
        assert command.wait() != 0
        assert "train_epoch: must be left out where 2 processes train together" in " ".join(command.output.split())


@pytest.mark.slow
def test_a_validation_function_may_use_torchmetrics(tmp_path: Path) -> None:
    validate = "tests.training.user_functions.validate_by_torchmetrics"
    commands = start_group(tmp_path / "two", 2, epochs=2, validate=validate)
    single = search(tmp_path / "one", epochs=2, validate=validate)
    for command in commands:
        assert_same(found_by(command), single)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("compression", ["sparsity", "filters", "taylor", "int8"])
def test_ranks_find_what_a_single_process_finds(tmp_path: Path, compression: str, size: int) -> None:
    commands = start_group(tmp_path / "ranks", size, compression=compression)
    single = search(tmp_path / "one", compression=compression)
    for command in commands:
        assert_same(found_by(command), single)


@pytest.mark.slow
def test_a_rank_that_dies_makes_all_start_again(tmp_path: Path) -> None:
    undisturbed = ended_as(start(tmp_path / "undisturbed", "--devices", "2", "--epochs", EPOCHS))
    found, killed = kill_ranks(tmp_path / "killed", [(1, 4.0), (0, 4.0)], 2)
    assert killed
    assert found == undisturbed


@pytest.mark.slow
def test_an_error_on_one_rank_is_that_of_the_run(tmp_path: Path) -> None:
    train = split(134, 1)
    train["targets"][100] = 7  # no class
    with pytest.raises(UserFunctionError, match=r"^Epoch 1: train_epoch") as error:
        search(tmp_path, devices=2, train=train)
    assert "out of bounds" in str(error.value)
