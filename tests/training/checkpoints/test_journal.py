"""What grows with the epochs of a search is appended, comes back as it was, and survives damage."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kedro_aat.errors import CheckpointError
from kedro_aat.search import Policy
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.stepping import EarlyExit, Interpolate, UniformDecrease
from kedro_aat.testing.simulated_search import World, search
from kedro_aat.testing.store_saving import IDENTITY, flip_a_bit, truncate
from kedro_aat.testing.strategies import worlds
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore, RunCheckpoints
from kedro_aat.training.checkpoints.journal import changed, changes
from tests.training.checkpoints import small_search

POLICIES: list[Policy] = [
    Frontier(maximal_total_epochs=25),
    UniformDecrease(maximal_total_epochs=20),
    Interpolate(maximal_total_epochs=15),
    EarlyExit(maximal_total_epochs=12),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@settings(max_examples=15, deadline=None)
@given(world=worlds)
def test_states_of_a_search_come_back_from_their_changes(policy: Policy, world: World) -> None:
    before, replayed = None, None
    for state in search(policy, world).states:
        replayed = changed(replayed, json.loads(json.dumps(changes(before, state))))
        assert policy.load(json.dumps(replayed)) == state
        before = state


plain = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.text("=+.", max_size=2),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.sampled_from("=+.a"), parts, max_size=3),
)


@given(st.lists(plain, max_size=5))
def test_any_values_come_back_from_their_changes(values: list[Any]) -> None:
    before, replayed = None, None
    for value in values:
        replayed = changed(replayed, json.loads(json.dumps(changes(before, value))))
        assert replayed == value
        before = value


def save_rows(run: RunCheckpoints, numbers: range, *, wait: bool = True) -> None:
    for number in numbers:
        rows = [{"epoch": epoch, "metric": 0.5} for epoch in range(number + 1)]
        model = {"weight": torch.full((2,), float(number))}
        run.save(Checkpoint(number, model, {}, {}, {"history": rows}), keep={0, number - 1}, wait=wait)


def rows_of(run: RunCheckpoints) -> list[int]:
    latest = run.latest()
    assert latest is not None
    rows = [row["epoch"] for row in latest.value("history")]
    assert rows == list(range(latest.number + 1))
    return rows


def written(run: RunCheckpoints) -> int:
    return sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())


def test_each_epoch_takes_the_same_space(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        sizes = []
        for start in (0, 50, 100, 150):
            save_rows(run, range(start, start + 50), wait=False)
            run.wait()
            sizes.append(written(run))
        growth = [after - before for before, after in itertools.pairwise(sizes)]
        assert max(growth[1:]) <= growth[0] * 1.2
        assert rows_of(run)[-1] == 199


def test_runs_that_go_on_again_and_again_keep_one_journal_for_each_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for start in range(0, 20, 4):
        with store.open(IDENTITY) as run:
            save_rows(run, range(start, start + 4))
    with store.open(IDENTITY) as run:
        assert rows_of(run)[-1] == 19
        names = sorted(path.name for path in run.folder.glob("*.jsonl"))
        # Of checkpoint 0, and of 18 and 19.
        assert names == [f"epochs-{number:06d}{copy}.jsonl" for number in (0, 16) for copy in (".copy", "")]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("copy", ["", ".copy"])
def test_damage_to_one_copy_of_a_journal_loses_nothing(tmp_path: Path, damage: Any, copy: str) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        save_rows(run, range(5))
        damage(run.folder / f"epochs-000000{copy}.jsonl")
        assert rows_of(run)[-1] == 4
    with store.open(IDENTITY) as run:
        save_rows(run, range(5, 8))
        assert rows_of(run)[-1] == 7


def test_torn_end_of_a_journal_loses_the_last_checkpoint_only(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        save_rows(run, range(5))
        for path in run.folder.glob("*.jsonl"):
            path.write_bytes(path.read_bytes()[:-3])
        assert rows_of(run)[-1] == 3
    with store.open(IDENTITY) as run:
        save_rows(run, range(4, 7))
        assert rows_of(run)[-1] == 6


def test_failed_save_leaves_no_row_behind(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        save_rows(run, range(2))
        unsaved = Checkpoint(2, {"extra": {"a": 1}}, {}, {}, {"history": [{"epoch": epoch} for epoch in range(3)]})
        with pytest.raises(CheckpointError):
            run.save(unsaved)
        save_rows(run, range(2, 4))
        assert rows_of(run)[-1] == 3


def test_checkpoint_without_its_journal_is_damaged(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        save_rows(run, range(2))
        for path in run.folder.glob("*.jsonl"):
            path.write_text('{"=": 7}\n')
        assert run.latest() is None
        state = run.folder / "checkpoint-000001" / "state.json"
        assert json.loads(state.read_text())["journal"]["file"] == "epochs-000000"


def test_search_whose_journal_is_lost_is_trained_again(tmp_path: Path) -> None:
    whole = small_search.search(tmp_path / "whole")
    run = Path(shutil.copytree(whole.folder, tmp_path / "copy" / whole.folder.name))
    for path in run.glob("*.jsonl"):
        path.unlink()
    ended = small_search.search(run.parent)
    assert ended.trajectory == whole.trajectory
    torch.testing.assert_close(ended.model, whole.model, rtol=0, atol=0)
