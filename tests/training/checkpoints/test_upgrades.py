"""Runs that another version of kedro-aat wrote: continued or started anew by choice, and never misread."""

from __future__ import annotations

import functools
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kedro_aat
from kedro_aat.errors import CheckpointError
from kedro_aat.testing.store_saving import IDENTITY, checkpoint
from kedro_aat.training.checkpoints import CheckpointStore
from tests.training.checkpoints import small_search
from tests.training.checkpoints.small_search import STEPPING

# Runs that were stopped after 3 of 8 epochs.
SAVED_BY = Path(__file__).parents[2] / "saved_by"
SAVED = sorted(SAVED_BY.glob("*/checkpoints/*"))
OLDEST = next(path for path in SAVED if "0.1.0" in path.parts)
# The same of `frontier`, which has become another strategy since.
(FRONTIER,) = (SAVED_BY / "0.1.0" / "frontier").iterdir()

search = functools.partial(small_search.search, policy=STEPPING)


def change_record(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run / "run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def change_states(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the state of all checkpoints, with its checksum."""
    for folder in run.glob("checkpoint-*"):
        state = json.loads((folder / "state.json").read_text())
        change(state)
        written = json.dumps(state).encode()
        (folder / "state.json").write_bytes(written)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["state.json"] = f"crc32:{zlib.crc32(written):08x}:{len(written)}"
        (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The run of 0.1.0, in a store of its own."""
    return Path(shutil.copytree(OLDEST, tmp_path / "store" / OLDEST.name))


@pytest.mark.parametrize("saved", SAVED, ids=lambda path: path.parents[1].name)
def test_run_of_an_earlier_version_continues_by_choice(saved: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(saved, tmp_path / saved.name))
    ended = search(tmp_path, after_upgrade="continue")
    assert ended.folder == run
    assert ended.trained == [4, 5, 6, 7, 8]
    assert search(tmp_path).trained == []  # it is a run of this version now, which needs no choice
    written = json.loads((run / "run.json").read_text())["kedro_aat"]
    assert written["version"] == kedro_aat.__version__


def test_runs_keep_their_names_when_settings_are_added(tmp_path: Path) -> None:
    (saved,) = (path for path in SAVED if "0.2.0" in path.parts)
    shutil.copytree(saved, tmp_path / saved.name)
    assert search(tmp_path, after_upgrade="continue").folder.name == saved.name


def test_without_a_choice_one_error_says_what_is_at_stake(old: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        search(old.parent)
    for part in (
        "3 epochs of kedro-aat 0.1.0 (not finished, in ",
        f"kedro-aat {kedro_aat.__version__}",
        "`after_upgrade: continue`",
        "`after_upgrade: start_anew`",
    ):
        assert part in str(caught.value)
    assert [path.name for path in old.parent.iterdir()] == [old.name]


def test_start_anew_leaves_the_old_run_alone(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    ended = search(old.parent, after_upgrade="start_anew")
    assert ended.folder != old
    assert ended.trained == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "Not continued: 3 epochs of kedro-aat 0.1.0" in caplog.text
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    # The choice is made: with or without the setting, the new run is found.
    assert search(old.parent).folder == search(old.parent, after_upgrade="start_anew").folder == ended.folder


def test_another_strategy_of_the_same_name_is_neither_overlooked_nor_continued(tmp_path: Path) -> None:
    for name in ("anew", "continued"):
        shutil.copytree(FRONTIER, tmp_path / name / FRONTIER.name)
    with pytest.raises(CheckpointError, match=r"3 epochs of kedro-aat 0\.1\.0"):
        small_search.search(tmp_path / "anew")
    ended = small_search.search(tmp_path / "anew", after_upgrade="start_anew")
    assert ended.trained[0] == 1
    assert small_search.search(tmp_path / "anew").folder == ended.folder
    with pytest.raises(CheckpointError, match=r"cannot read the state of the search[\s\S]*remove the folder"):
        small_search.search(tmp_path / "continued", after_upgrade="continue")


def test_older_run_with_other_settings_is_another_run(old: Path) -> None:
    ended = search(old.parent, batch_size=16)
    assert ended.folder != old


def test_run_of_the_same_name_and_another_version_needs_a_choice_too(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        run.save(checkpoint(2))
        folder = run.folder
    change_record(folder, lambda record: record["kedro_aat"].update(version="0.3.0"))
    with pytest.raises(CheckpointError, match=r"of kedro-aat 0\.3\.0"):
        store.open(IDENTITY)
    with store.open(IDENTITY, after_upgrade="start_anew") as run:
        assert run.folder == tmp_path / f"{folder.name}-2"
    with store.open(IDENTITY, after_upgrade="continue") as run:  # that one has no epoch
        assert run.folder == tmp_path / f"{folder.name}-2"


def test_finished_run_of_another_version_needs_no_choice_if_it_is_not_reused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        run.save(checkpoint(2))
        run.finish()
    change_record(run.folder, lambda record: record["kedro_aat"].update(version="0.1.9"))
    with pytest.raises(CheckpointError, match=r"of kedro-aat 0\.1\.9"):
        store.open(IDENTITY)
    with store.open(IDENTITY, reuse_finished=False) as other:
        assert other.folder != run.folder


def test_older_run_without_a_setting_that_is_now_stated_is_another_run(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open({"settings": {}}, ingredients={"settings": {"seed": 0}}) as run:
        run.save(checkpoint(2))
    change_record(run.folder, lambda record: record["kedro_aat"].update(version="0.1.9"))
    settings = {"settings": {"seed": 0, "patience": 3}}
    with store.open({"settings": {"patience": 3}}, ingredients=settings) as other:
        assert other.folder != run.folder


def test_all_versions_that_trained_a_run_are_recorded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        run.save(checkpoint(2))
    change_record(run.folder, lambda record: record["kedro_aat"].update(version="0.1.8"))
    store.open(IDENTITY, after_upgrade="continue").close()
    change_record(run.folder, lambda record: record["kedro_aat"].update(version="0.1.9"))
    store.open(IDENTITY, after_upgrade="continue").close()
    assert json.loads((run.folder / "run.json").read_text())["kedro_aat"]["continued_from"] == ["0.1.8", "0.1.9"]


def test_changed_defaults_are_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    settings = {"seed": 0, "training": {"batch_size": 32}}
    with store.open({"settings": {}}, ingredients={"settings": settings}) as run:
        run.save(checkpoint(2))
    change_record(run.folder, lambda record: record["kedro_aat"].update(version="0.1.9"))
    settings["training"] = {"batch_size": 64}
    with pytest.raises(CheckpointError, match=r"changed since: training\.batch_size \(32, now 64\)"):
        store.open({"settings": {}}, ingredients={"settings": settings})


def test_later_format_is_not_continued(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        run.save(checkpoint(2))
    change_record(run.folder, lambda record: record["kedro_aat"].update(version="9.0", format_version=99))
    with pytest.raises(CheckpointError, match="has format 99"):
        store.open(IDENTITY, after_upgrade="continue")
    manifest = run.folder / "checkpoint-000002" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 3', '"format_version": 99'))
    with pytest.raises(CheckpointError, match="has format 99"):
        store.load(run.folder.name, 2)


@pytest.mark.parametrize("damaged", ["{", "[]", '{"kedro_aat": 3}', '{"kedro_aat": "x"}', 5000 * "["])
def test_torn_record_is_written_anew(tmp_path: Path, damaged: str) -> None:
    store = CheckpointStore(tmp_path)
    with store.open(IDENTITY) as run:
        run.save(checkpoint(2))
    (run.folder / "run.json").write_text(damaged)
    with store.open(IDENTITY) as again:
        assert again.numbers == [2]
    assert json.loads((run.folder / "run.json").read_text())["seed"] == 0


def test_fields_that_are_unknown_in_the_history_are_ignored(old: Path) -> None:
    change_states(old, lambda state: [row.update(gradient_norm=1.0) for row in state["history"]])
    assert search(old.parent, after_upgrade="continue").trained == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: [row.pop("margin") for row in state["history"]], "margin: Field required"),
        (lambda state: state.update(search=state["search"].replace('"phase"', '"part"')), "the state of the search"),
        (lambda state: state.pop("lr_scale"), "has no lr_scale"),
        (lambda state: state.pop("search"), "has no search"),
    ],
    ids=["row", "search", "value", "missing"],
)
def test_states_that_cannot_be_used_are_one_clear_error(
    old: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_states(old, change)
    with pytest.raises(CheckpointError, match=message):
        search(old.parent, after_upgrade="continue")
