"""Finished steps are not repeated, unless anything has changed that their results depend on."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat.delivery import finished
from kedro_aat.delivery.finished import FinishedSteps, MetricValues, identity_of
from kedro_aat.training.callables import Linearization
from kedro_aat.training.runner import Evaluation


def model_of(seed: int = 0, **options: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3, **options), nn.BatchNorm2d(2))


class Steps:
    """Asks for one step, and counts how often it is computed."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.count = 0

    def __call__(self, *, data: str = "a", model: nn.Module | None = None, size: int = 1) -> list[float]:
        """A new process has a new object of steps."""
        steps = FinishedSteps(self.folder, data=data)
        return steps.result("step", list[float], self._compute, model or model_of(), size=size)

    def _compute(self) -> list[float]:
        self.count += 1
        return [0.1, 1 / 3]


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path / "kept")


def only_file(steps: Steps) -> Path:
    assert steps.folder is not None
    (path,) = steps.folder.iterdir()
    return path


def test_a_finished_step_is_not_repeated(steps: Steps, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert steps() == steps() == [0.1, 1 / 3]
    assert steps.count == 1
    assert f"To repeat them, remove {steps.folder}" in caplog.text


def test_steps_in_other_folders_are_used_and_left_there(steps: Steps, tmp_path: Path) -> None:
    steps()
    assert steps.folder is not None
    again = FinishedSteps(tmp_path / "chosen", [steps.folder], data="a")
    assert again.result("step", list[float], steps._compute, model_of(), size=1) == [0.1, 1 / 3]
    assert again.result("other", list[float], steps._compute, model_of(), size=1) == [0.1, 1 / 3]
    assert steps.count == 2
    again.remove_others()
    assert only_file(steps).name.startswith("step-")


def test_edited_base_class_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited_net").mkdir()
    base = tmp_path / "edited_net" / "base.py"
    base.write_text("from torch import nn\n\nclass Base(nn.Module):\n    def forward(self, x):\n        return x + 1\n")
    (tmp_path / "edited_net" / "__init__.py").write_text(
        "from edited_net.base import Base\n\nclass Net(Base):\n    pass\n"
    )
    model = importlib.import_module("edited_net").Net()
    before = identity_of(model)
    assert identity_of(model) == before
    base.write_text(base.read_text().replace("x + 1", "x + 2"))
    assert identity_of(model) != before


def test_without_a_folder_nothing_is_kept() -> None:
    steps = Steps(None)
    assert steps() == steps()
    assert steps.count == 2


CHANGES: dict[str, dict[str, Any]] = {
    "common input": {"data": "b"},
    "input": {"size": 2},
    "weights": {"model": model_of(seed=1)},
    "structure": {"model": model_of(stride=2)},
    "other model": {"model": nn.Sequential(*model_of(), nn.Identity())},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_step_is_repeated_if_anything_differs(change: str, steps: Steps) -> None:
    steps()
    steps(**CHANGES[change])
    assert steps.count == 2
    steps()  # what was kept before is still there
    assert steps.count == 2


@pytest.mark.parametrize("key", ["kedro_aat", "packages", "python", "cpu"])
def test_a_step_is_repeated_with_other_software_or_on_another_cpu(
    key: str, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps()
    other = {**finished._environment(), key: "another"}
    monkeypatch.setattr(finished, "_environment", lambda: other)
    steps()
    assert steps.count == 2


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut short": lambda data: data[:-3],
    "flipped bit": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "not text": lambda _: b"\xff\n\xff\n\xff",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_replaced(damage: str, steps: Steps, caplog: pytest.LogCaptureFixture) -> None:
    steps()
    path = only_file(steps)
    good = path.read_bytes()
    path.write_bytes(DAMAGES[damage](good))
    assert steps() == [0.1, 1 / 3]
    assert steps.count == 2
    assert f"{path} cannot be read" in caplog.text
    assert only_file(steps).read_bytes() == good


def test_a_step_that_cannot_be_kept_is_done_nevertheless(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    steps = Steps(tmp_path / "file")  # the folder cannot be created
    assert steps() == [0.1, 1 / 3]
    assert "cannot be written" in caplog.text


def test_a_failed_step_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        FinishedSteps(tmp_path).result("step", list[float], lambda: [1 / 0])
    assert not list(tmp_path.iterdir())


def test_steps_of_other_settings_are_removed(steps: Steps) -> None:
    steps()
    steps(data="b")
    again = FinishedSteps(steps.folder, data="b")
    again.result("step", list[float], list[float], model_of(), size=1)
    again.remove_others()
    steps(data="b")
    assert steps.count == 2
    only_file(steps)
    FinishedSteps().remove_others()


def test_only_the_latest_steps_of_other_settings_are_kept(steps: Steps) -> None:
    for data in "abcd":
        steps(data=data)
    again = FinishedSteps(steps.folder, data="a")
    again.result("step", list[float], list[float], model_of(), size=1)
    again.remove_others(1)
    for data in "ad":
        steps(data=data)
    assert steps.count == 4
    steps(data="c")
    assert steps.count == 5


class Scaled(nn.Module):
    """Has what a state_dict does not show."""

    def __init__(self, factor: float = 1.0, offset: float = 0.0, shift: float = 0.0) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("offset", torch.tensor(offset), persistent=False)
        self.shifts = [torch.full((2000,), shift)]  # its text is shortened
        self.shifts[0][1000] = shift + 1 if shift else 0
        self.act = lambda x: x  # its text has an address


def test_identity_covers_what_a_state_dict_does_not_show() -> None:
    different = [Scaled(), Scaled(factor=2.0), Scaled(offset=1.0), Scaled(shift=1.0)]
    assert len({identity_of(model) for model in different}) == 4
    assert identity_of(Scaled()) == identity_of(Scaled().eval())


def test_what_is_known_of_the_scores_survives_json() -> None:
    """Taken for scores of their own, linearized ones would be tested by the exact test."""
    known = Evaluation(
        0.7,
        [0.5, 0.9],
        score_range=(0.0, math.inf),
        is_linearized=True,
        linearization=Linearization(12.5, per_squared_error=-0.3),
    )
    text = MetricValues.of(known).model_dump_json()
    evaluation = MetricValues.model_validate_json(text).evaluation()
    assert evaluation.score_range == known.score_range
    assert evaluation.is_linearized
    assert evaluation.linearization == known.linearization


@pytest.mark.parametrize("scores", [None, torch.tensor([0.1, 0.2, 1 / 3])])
@pytest.mark.parametrize("resampled", [None, torch.tensor([0.5, math.nan], dtype=torch.float64)])
def test_an_evaluation_survives_json(scores: torch.Tensor | None, resampled: torch.Tensor | None) -> None:
    text = MetricValues.of(Evaluation(0.7, scores, resampled)).model_dump_json()
    evaluation = MetricValues.model_validate_json(text).evaluation()
    assert evaluation.metric == 0.7
    for got, expected in ((evaluation.scores, scores), (evaluation.resampled, resampled)):
        if expected is None:
            assert got is None
        else:
            assert got is not None
            assert torch.equal(got.nan_to_num(-1), expected.double().nan_to_num(-1))
