"""The user's optional functions in the loops, and the folders of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from kedro_aat import (
    Outcome,
    TrainingRunner,
)
from kedro_aat.errors import ConfigurationError
from kedro_aat.training.records import EpochRecord
from tests.scripted import ScriptedModel
from tests.training.scripted_loop import (
    PARAMS,
    ScriptedLoop,
    assert_same_state,
    dump_state,
    state_of,
)


def _load(model: ScriptedModel, path: str) -> None:
    *state, weight = json.loads(Path(path).read_text())
    model.state.copy_(torch.tensor(state, dtype=torch.float64))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weight]))


def _absolute_dump(model: Any, controller: Any, runner: TrainingRunner, save_dir: str) -> Path:
    return Path(dump_state(model, controller, runner, save_dir)).resolve()


@pytest.mark.parametrize("dump", [dump_state, _absolute_dump], ids=["as given", "absolute"])
@pytest.mark.parametrize("log_dir", [None, "relative", "absolute"])
def test_the_users_own_checkpoints(
    log_dir: str | None, dump: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual, subject = ScriptedLoop(), ScriptedLoop()
    loaded: list[str] = []

    def load(model: ScriptedModel, path: str) -> None:
        loaded.append(Path(path).name)
        _load(model, path)

    torch.manual_seed(0)
    usual.run("usual")
    torch.manual_seed(0)
    where = str(tmp_path / "absolute") if log_dir == "absolute" else log_dir
    subject.run(where, dump_checkpoint_fn=dump, load_checkpoint_fn=load)
    assert subject.trajectory == usual.trajectory
    assert_same_state(subject.model, state_of(usual.model))
    assert set(loaded) == {"own.json"}


def test_a_dump_may_write_to_a_folder_of_its_own(tmp_path: Path) -> None:
    subject = ScriptedLoop()
    own = tmp_path / "own"
    own.mkdir()
    loaded: list[str] = []

    def dump(model: Any, controller: Any, runner: TrainingRunner, save_dir: str) -> str:
        assert (runner.model, runner.compression_controller) == (model, controller)
        path = own / f"{len(list(own.iterdir()))}.json"
        path.write_text(json.dumps([*model.state.tolist(), model.weight.item()]))
        return str(path)

    def load(model: ScriptedModel, path: str) -> None:
        loaded.append(path)
        _load(model, path)

    subject.run(tmp_path / "runs", dump_checkpoint_fn=dump, load_checkpoint_fn=load)
    assert len(list(own.iterdir())) == len(subject.loop.history)
    best = max(subject.loop.history, key=lambda record: record.best_rate or 0.0)
    assert loaded
    assert {Path(path).parent for path in loaded} == {own}
    assert loaded[-1] == str(own / f"{best.checkpoint}.json")


def test_a_loader_alone_gets_files_with_the_keys_of_nncf(tmp_path: Path) -> None:
    usual, subject = ScriptedLoop(), ScriptedLoop()
    loaded: list[int] = []

    def load(model: ScriptedModel, path: str) -> None:
        contents = torch.load(path, weights_only=True)
        loaded.append(contents["epoch"])
        model.load_state_dict(contents["state_dict"])

    torch.manual_seed(0)
    usual.run(tmp_path / "usual")
    torch.manual_seed(0)
    subject.run(tmp_path / "other", load_checkpoint_fn=load)
    assert loaded
    assert subject.trajectory == usual.trajectory
    assert_same_state(subject.model, state_of(usual.model))


def test_a_dump_alone_does_not_need_a_loader(tmp_path: Path) -> None:
    usual, subject = ScriptedLoop(), ScriptedLoop()
    usual.run(tmp_path / "usual")
    subject.run(tmp_path / "other", dump_checkpoint_fn=dump_state)
    assert list((tmp_path / "other").rglob("own.json"))
    assert subject.model.state.tolist() == usual.model.state.tolist()


def test_early_stopping_is_called_only_when_fully_compressed(tmp_path: Path) -> None:
    params = PARAMS | {"initial_training_phase_epochs": 3, "maximal_total_epochs": 7, "patience_epochs": 4}
    subject = ScriptedLoop(params=params, is_partial_until_search=True)
    metrics: list[float] = []

    def stop(metric: float) -> bool:
        metrics.append(metric)
        return True

    subject.run(tmp_path, validate=lambda model: 0.5, early_stopping_fn=stop)
    partial = [record for record in subject.trained if not record.fully_compressed]
    full = [record for record in subject.trained if record.fully_compressed]
    assert len(partial) == 3
    assert metrics == [record.metric for record in full]
    # Each call returned True, so each rate got one of its four epochs.
    assert len({record.requested_rate for record in full}) == len(full)


def test_early_stopping_ends_an_early_exit_run(tmp_path: Path) -> None:
    subject = ScriptedLoop(mode="early_exit", params=PARAMS | {"maximal_total_epochs": 20})
    subject.run(tmp_path, validate=lambda model: 0.5, early_stopping_fn=lambda metric: subject.num_trained == 3)
    assert subject.num_trained == 3
    assert subject.loop.outcome is Outcome.INFEASIBLE


def test_tensorboard_gets_the_scalars_of_each_epoch(tmp_path: Path) -> None:
    subject = ScriptedLoop()
    with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
        subject.run(tmp_path / "runs", tensorboard_writer=writer)
    log: Any = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    expected: dict[str, Callable[[EpochRecord], Any]] = {
        "metric/validation": lambda record: record.metric,
        "metric/margin": lambda record: record.margin,
        "rate/requested": lambda record: record.requested_rate,
        "rate/achieved": lambda record: record.achieved_rate,
        "training/loss": lambda record: record.loss,
        "training/learning_rate": lambda record: record.learning_rate,
    }
    for tag, value in expected.items():
        scalars = log.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [record.epoch for record in subject.trained]
        values = [value(record) for record in subject.trained]
        assert [scalar.value for scalar in scalars] == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("name", ["train_epoch_fn", "validate_fn", "configure_optimizers_fn", "early_stopping_fn"])
def test_an_argument_that_is_not_callable_is_refused(name: str, tmp_path: Path) -> None:
    subject = ScriptedLoop()
    functions: dict[str, Any] = {"train_epoch_fn": subject.train, "validate_fn": subject.validate}
    with pytest.raises(ConfigurationError, match=f"{name}: must be callable, but got 'x'"):
        subject.loop.run(subject.model, **{**functions, name: "x"}, log_dir=tmp_path)


def test_checkpoints_are_in_runs_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ScriptedLoop().run(None)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert list((tmp_path / "runs").rglob("manifest.json"))


def test_checkpoints_are_in_the_log_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ScriptedLoop().run("elsewhere")
    ScriptedLoop().run(tmp_path / "there")
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "there"}
    assert list((tmp_path / "there").rglob("manifest.json"))


@pytest.mark.parametrize("log_dir", [None, "elsewhere"])
def test_without_checkpoints_no_file_is_left(
    log_dir: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual, subject = ScriptedLoop(), ScriptedLoop(dump_checkpoints=False)
    torch.manual_seed(0)
    subject.run(log_dir)
    assert not list(tmp_path.rglob("*"))
    torch.manual_seed(0)
    usual.run(None)
    assert subject.trajectory == usual.trajectory
    assert_same_state(subject.model, state_of(usual.model))


def test_a_second_loop_after_the_first_has_its_own_folder(tmp_path: Path) -> None:
    first, second = ScriptedLoop(), ScriptedLoop()
    torch.manual_seed(0)
    first.run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    torch.manual_seed(0)
    second.run(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert second.num_trained == first.num_trained == 8
    assert second.trajectory == first.trajectory
    assert {path: path.read_bytes() for path in before} == before


def test_a_second_loop_within_the_first_has_its_own_folder(tmp_path: Path) -> None:
    alone, outer, inner = ScriptedLoop(), ScriptedLoop(), ScriptedLoop()
    alone.run(tmp_path / "alone")

    def train(*args: Any, **kwargs: Any) -> float | None:
        if inner.loop.outcome is None:
            inner.run(tmp_path / "both")
        return outer.train(*args, **kwargs)

    outer.run(tmp_path / "both", train=train)
    assert len(list((tmp_path / "both").iterdir())) == 2
    assert outer.trajectory == inner.trajectory == alone.trajectory
