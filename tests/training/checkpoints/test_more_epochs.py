"""A run that is given another number of epochs goes on, and one that may not train ends with the best so far."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kedro_aat.budget import Outcome
from kedro_aat.errors import InterruptedRunError, MissingRunError
from tests.training.checkpoints.small_search import Ended, search


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return search(tmp_path_factory.mktemp("short"), epochs=5)


def test_a_finished_run_goes_on_and_trains_no_epoch_again(short: Ended) -> None:
    root, first = short.folder.parent, short.trajectory
    longer = search(root, epochs=9)
    assert longer.folder == short.folder
    assert longer.trajectory[: len(first)] == first
    assert longer.trained == [6, 7, 8, 9]
    assert len([folder for folder in root.iterdir() if (folder / "run.json").exists()]) == 1
    again = search(root, epochs=9)
    assert again.trained == []
    assert again.trajectory == longer.trajectory

    # Fewer epochs than were used: the finished result.
    fewer = search(root, epochs=5)
    assert fewer.trained == []
    assert fewer.trajectory == longer.trajectory
    torch.testing.assert_close(fewer.model, longer.model, rtol=0, atol=0)
    assert "All 9 epochs were used." in fewer.result.reason


def test_a_kill_after_more_epochs_were_given_changes_nothing(tmp_path: Path) -> None:
    search(tmp_path / "whole", epochs=4)
    whole = search(tmp_path / "whole", epochs=9)
    search(tmp_path / "killed", epochs=4)
    for number in (5, 7):  # in the first new epoch, and in a later one
        with pytest.raises(InterruptedRunError):
            search(tmp_path / "killed", epochs=9, stop_after=number)
    killed = search(tmp_path / "killed", epochs=9)
    assert killed.trajectory == whole.trajectory
    torch.testing.assert_close(killed.model, whole.model, rtol=0, atol=0)


def test_a_run_that_was_stopped_gives_its_best_so_far_and_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole")
    root = tmp_path / "stopped"
    with pytest.raises(InterruptedRunError):
        search(root, stop_after=4)
    stopped = search(root, trains=False)
    assert stopped.trained == []
    assert stopped.trajectory == whole.trajectory[: len(stopped.trajectory)]
    assert "This is the best so far: the search has used 4 of 8 epochs." in stopped.result.reason
    best, outcome = stopped.result.best, stopped.result.outcome
    kept = [row for row in stopped.result.history if row.margin >= 0 and row.achieved_rate > 0]
    assert outcome is (Outcome.WITHIN_BUDGET if kept else Outcome.INFEASIBLE)
    assert best is None or best in kept
    again = search(root)
    assert again.trajectory == whole.trajectory
    torch.testing.assert_close(again.model, whole.model, rtol=0, atol=0)


def test_without_a_run_there_is_nothing_to_deliver_and_none_is_begun(tmp_path: Path) -> None:
    with pytest.raises(MissingRunError, match="There is no run with these settings"):
        search(tmp_path, trains=False)
    assert not list(tmp_path.glob("*/run.json"))
