"""Lost checkpoints of a search: the next best takes their place, or their epochs are trained again."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from kedro_aat.errors import CheckpointError
from kedro_aat.testing.store_saving import flip_a_bit
from tests.training.checkpoints.small_search import Ended, search

# The finished search keeps these checkpoints; the last one is the best, and 7 and 1 keep the budget too.
KEPT = [0, 1, 3, 7, 8]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A finished search, undamaged."""
    ended = search(tmp_path_factory.mktemp("whole"))
    assert [int(path.name[-6:]) for path in sorted(ended.folder.glob("checkpoint-*"))] == KEPT
    assert ended.result.best is not None
    assert ended.result.best.checkpoint == 8
    return ended


@pytest.fixture
def run(whole: Ended, tmp_path: Path) -> Path:
    """A copy of its folder, in a store of its own."""
    return Path(shutil.copytree(whole.folder, tmp_path / whole.folder.name))


def damage(run: Path, *numbers: int) -> None:
    for number in numbers:
        flip_a_bit(run / f"checkpoint-{number:06d}" / "model.safetensors")


def assert_same(ended: Ended, whole: Ended) -> None:
    """The same result, bit for bit."""
    assert ended.trajectory == whole.trajectory
    assert ended.result.best == whole.result.best or ended.trajectory[-1] == whole.trajectory[-1]
    assert ended.result.outcome is whole.result.outcome
    torch.testing.assert_close(ended.model, whole.model, rtol=0, atol=0)


@pytest.mark.parametrize("numbers", [(0,), (1,), (3,), (0, 1, 3)])
def test_damaged_spares_do_not_matter(run: Path, whole: Ended, numbers: tuple[int, ...]) -> None:
    damage(run, *numbers)
    ended = search(run.parent)
    assert ended.trained == []
    assert_same(ended, whole)


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("numbers", [(8,), (3, 7, 8), (1, 3, 7, 8), tuple(KEPT)])
def test_damaged_last_epochs_are_trained_again(
    run: Path, whole: Ended, numbers: tuple[int, ...], is_finished: bool
) -> None:
    damage(run, *numbers)
    if not is_finished:
        (run / "finished").unlink()
    ended = search(run.parent)
    intact = max([number for number in KEPT if number not in numbers], default=0)
    assert ended.trained == list(range(intact + 1, 9))
    assert_same(ended, whole)
    again = search(run.parent)
    assert again.trained == []
    assert_same(again, whole)


def _without_the_last(run: Path) -> None:
    """Leaves the run as if it had been stopped after epoch 7, whose checkpoint is the best."""
    shutil.rmtree(run / "checkpoint-000008")
    (run / "finished").unlink()


def test_next_best_takes_the_place_of_a_damaged_best(
    run: Path, whole: Ended, caplog: pytest.LogCaptureFixture
) -> None:
    """The last checkpoint is intact, and names another one as the best."""
    ...
