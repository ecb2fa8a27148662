"""Lost checkpoints of a search: the next best takes their place, or their epochs are trained again."""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kedro_aat.budget import Outcome
from kedro_aat.errors import CheckpointError, InterruptedRunError
from kedro_aat.testing.disk_faults import read_only
from kedro_aat.testing.store_saving import flip_a_bit
from tests.training.checkpoints.small_search import Ended, search

# A search whose last epoch is the best, and whose first keeps the budget too.
WHOLE: dict[str, Any] = {"max_drop": 0.05}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A finished search, undamaged."""
    ended = search(tmp_path_factory.mktemp("whole"), **WHOLE)
    assert kept_by(ended.folder)[:2] == [0, 1]
    assert len(kept_by(ended.folder)) >= 5
    assert best_of(ended) == kept_by(ended.folder)[-1] == 8
    return ended


def kept_by(run: Path) -> list[int]:
    """Numbers of the checkpoints on disk."""
    return [int(path.name[-6:]) for path in sorted(run.glob("checkpoint-*"))]


def best_of(ended: Ended) -> int | None:
    return None if ended.result.best is None else ended.result.best.checkpoint


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
    assert best_of(ended) == best_of(whole)
    assert ended.result.outcome is whole.result.outcome
    torch.testing.assert_close(ended.model, whole.model, rtol=0, atol=0)


@pytest.mark.parametrize("lost", [slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 3)], ids=str)
def test_damaged_spares_do_not_matter(run: Path, whole: Ended, lost: slice) -> None:
    damage(run, *kept_by(run)[lost])
    ended = search(run.parent, **WHOLE)
    assert ended.trained == []
    assert_same(ended, whole)


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("num_lost", [1, 3, "all but the first", "all"])
def test_damaged_last_epochs_are_trained_again(run: Path, whole: Ended, num_lost: int | str, is_finished: bool) -> None:
    kept = kept_by(run)
    num_left = {"all but the first": 1, "all": 0}[num_lost] if isinstance(num_lost, str) else len(kept) - num_lost
    damage(run, *kept[num_left:])
    if not is_finished:
        (run / "finished").unlink()
    ended = search(run.parent, **WHOLE)
    intact = max(kept[:num_left], default=0)
    assert ended.trained == list(range(intact + 1, 9))
    assert_same(ended, whole)
    again = search(run.parent, **WHOLE)
    assert again.trained == []
    assert_same(again, whole)


def test_disk_that_cannot_be_read_for_a_moment_loses_nothing(
    run: Path, whole: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("kedro_aat.training.checkpoints.files.read_tensors", fail)
        with pytest.raises(CheckpointError, match="input/output error"):
            search(run.parent, **WHOLE)
    ended = search(run.parent, **WHOLE)
    assert ended.trained == []
    assert_same(ended, whole)


def test_search_with_a_time_limit_is_read_but_not_continued_on_a_read_only_disk(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        search(tmp_path, stop_after=2, time_limit=1e6)
    with read_only(), pytest.raises(CheckpointError, match="the file system is read-only"):
        search(tmp_path, time_limit=1e6)
    ended = search(tmp_path, time_limit=1e6)
    assert ended.trained  # that no epoch was trained for nothing
    with read_only():
        again = search(tmp_path, time_limit=1e6)
    assert again.trained == []
    assert_same(again, ended)


# --- the best is not the last -----------------------------------------------------------------------------------

# With a budget of 0.05, checkpoint 5 is the best and 1 the next best; with 0.2, only checkpoint 1 keeps the budget.
EARLY: dict[str, Any] = {"max_drop": 0.05, "polish_share": 0.0}
ALONE: dict[str, Any] = {"max_drop": 0.2, "polish_share": 0.0}


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    ended = search(tmp_path_factory.mktemp("early"), **EARLY)
    assert best_of(ended) == 5
    return ended


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    ended = search(tmp_path_factory.mktemp("alone"), **ALONE)
    assert best_of(ended) == 1
    return ended


def copy_of(ended: Ended, root: Path) -> Path:
    return Path(shutil.copytree(ended.folder, root / ended.folder.name))


@pytest.mark.parametrize("is_removed", [True, False])
def test_next_best_takes_the_place_of_a_lost_best(
    early: Ended, tmp_path: Path, is_removed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy_of(early, tmp_path)
    if is_removed:
        shutil.rmtree(run / "checkpoint-000005")
    else:
        damage(run, 5)
    for _ in range(2):
        caplog.clear()
        ended = search(tmp_path, **EARLY)
        assert ended.trained == []
        assert best_of(ended) == 1
        assert ended.result.reason.endswith("Checkpoint 5 is lost; the next best, 1, is returned.")
        assert ended.result.achieved_rate == pytest.approx(early.result.history[1].achieved_rate)
        warning = next(record for record in caplog.records if record.levelno == logging.WARNING)
        assert "The model of epoch 5 is lost (rate 0.9107, metric 0.9167); checkpoint 1" in warning.getMessage()


def test_search_continues_from_the_next_best(early: Ended, tmp_path: Path) -> None:
    run = copy_of(early, tmp_path)
    (run / "finished").unlink()
    shutil.rmtree(run / "checkpoint-000008")
    damage(run, 5)
    ended = search(tmp_path, **EARLY)
    assert ended.trained == [8]
    assert early.result.history[8].started_from == 5
    assert ended.result.history[8].started_from == 1
    assert ended.result.outcome is Outcome.WITHIN_BUDGET


@pytest.mark.parametrize("is_finished", [True, False])
def test_only_epoch_within_budget_is_trained_again(
    alone: Ended, tmp_path: Path, is_finished: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy_of(alone, tmp_path)
    damage(run, 1)
    if not is_finished:
        (run / "finished").unlink()
    ended = search(tmp_path, **ALONE)
    expected = "No other checkpoint on disk keeps the budget. The epochs after checkpoint 0 are trained again"
    assert expected in caplog.text
    assert ended.trained == [1, 2, 3, 4, 5, 6, 7, 8]
    assert_same(ended, alone)
    assert search(tmp_path, **ALONE).trained == []


def test_initial_model_is_saved_again_for_a_search_that_needs_it(early: Ended, tmp_path: Path) -> None:
    run = copy_of(early, tmp_path)
    (run / "finished").unlink()
    damage(run, 0)
    assert search(tmp_path, **EARLY).trained == []
    assert_same(search(tmp_path, **EARLY), early)
    damage(run, *kept_by(run)[1:])
    assert_same(search(tmp_path, **EARLY), early)  # trained again from the new checkpoint 0


def test_a_search_that_may_not_train_takes_the_next_best_too(early: Ended, tmp_path: Path) -> None:
    run = copy_of(early, tmp_path)
    assert best_of(search(tmp_path, trains=False, **EARLY)) == best_of(early) == 5
    damage(run, 5)
    assert best_of(search(tmp_path, trains=False, **EARLY)) == 1
    damage(run, 1)
    with pytest.raises(CheckpointError, match="No other checkpoint on disk keeps the budget"):
        search(tmp_path, trains=False, **EARLY)
