"""Objects in YAML that take others: schedulers of schedulers, weights of classes, functions by their path."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat.errors import ConfigurationError
from kedro_aat.imports import Imported
from kedro_aat.training.learning_rates import build_scheduler, learning_rate_of, scale_learning_rates
from tests.training.loading.test_forms import settings

SCHEDULERS = "torch.optim.lr_scheduler."
LINEAR = {"class_path": SCHEDULERS + "LinearLR", "init_args": {"start_factor": 0.5, "total_iters": 2}}
HALVING = {"class_path": SCHEDULERS + "StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}


class Named:
    """An object that another one takes."""

    def __init__(self, names: list[str]) -> None:
        self.names = names


class Outer(nn.Module):
    """A loss with an object, a function and numbers as arguments."""

    def __init__(self, parts: list[Named], weight: torch.Tensor | None = None, options: Any = None) -> None:
        super().__init__()
        self.parts, self.weight, self.options = parts, weight, options


def rising(epoch: int) -> float:
    return 1.0 + epoch


def rates(scheduler: dict[str, Any], number: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    built = build_scheduler(Imported.model_validate(scheduler), optimizer)
    found = []
    for _ in range(number):
        found.append(learning_rate_of(optimizer) or 0.0)
        optimizer.step()
        built.step()
    return found


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (
            {
                "class_path": SCHEDULERS + "SequentialLR",
                "init_args": {"schedulers": [LINEAR, HALVING], "milestones": [2]},
            },
            [0.5, 0.75, 1.0, 0.5],
        ),
        (
            {"class_path": SCHEDULERS + "ChainedScheduler", "init_args": {"schedulers": [LINEAR, HALVING]}},
            [0.5, 0.375, 0.25, 0.125],
        ),
        (
            {"class_path": SCHEDULERS + "LambdaLR", "init_args": {"lr_lambda": f"{__name__}.rising"}},
            [1.0, 2.0, 3.0, 4.0],
        ),
        (HALVING, [1.0, 0.5, 0.25, 0.125]),
    ],
)
def test_schedulers_of_schedulers(scheduler: dict[str, Any], expected: list[float]) -> None:
    settings(scheduler=scheduler).check()
    assert rates(scheduler, 4) == pytest.approx(expected)


def test_scaling_reaches_inner_schedulers() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    init_args = {"schedulers": [LINEAR, HALVING], "milestones": [2]}
    built = build_scheduler(Imported(class_path=SCHEDULERS + "SequentialLR", init_args=init_args), optimizer)
    scale_learning_rates(optimizer, built, 0.1)
    state = copy.deepcopy(built.state_dict())
    for _ in range(3):
        optimizer.step()
        built.step()
    assert learning_rate_of(optimizer) == pytest.approx(0.05)
    built.load_state_dict(state)


def made_by_a_function(label_smoothing: float) -> torch.nn.Module:
    return torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)


def test_lists_become_tensors_where_they_are_asked_for() -> None:
    made = Imported(
        class_path=f"{__name__}.Outer",
        init_args={
            "parts": [{"class_path": f"{__name__}.Named", "init_args": {"names": ["a"]}}],
            "options": {"deep": [{"class_path": f"{__name__}.Named", "init_args": {"names": []}}, {"class_path": 3}]},
        },
    ).make()
    assert made.parts[0].names == ["a"]
    assert isinstance(made.options["deep"][0], Named)
    assert made.options["deep"][1] == {"class_path": 3}
    for name, given in (("weight", [1, 2.5]), ("pos_weight", [[1.0, 2.0]]), ("pos_weight", 3)):
        loss = Imported(class_path="torch.nn.BCEWithLogitsLoss", init_args={name: given}).make()
        assert torch.equal(getattr(loss, name), torch.tensor(given, dtype=torch.float32))
    thresholds = {"thresholds": [0.1, 0.5]}  # which may be a list, too
    curve = Imported(class_path="torchmetrics.classification.BinaryPrecisionRecallCurve", init_args=thresholds)
    assert len(curve.make().thresholds) == 2


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("torch.nn.functional.cross_entropy", {}),
        ("torch.nn.functional.cross_entropy", {"label_smoothing": 0.1}),
        ("torch.nn.CrossEntropyLoss", {"label_smoothing": 0.1}),
        (f"{__name__}.made_by_a_function", {"label_smoothing": 0.1}),
    ],
)
def test_a_loss_is_a_function_a_class_or_what_a_function_makes(path: str, arguments: dict[str, Any]) -> None:
    named = {"class_path": path, "init_args": arguments}
    settings(loss=named).check()
    scores, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    expected = torch.nn.functional.cross_entropy(scores, labels, **arguments)
    assert torch.equal(Imported.model_validate(named).make_function()(scores, labels), expected)


def test_build_leaves_what_a_file_names_alone() -> None:
    arguments = {"parts": [{"class_path": "os.abort"}]}
    assert Imported(class_path=f"{__name__}.Outer", init_args=arguments).build().parts == arguments["parts"]


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ({"class_path": SCHEDULERS + "LinarLR"}, "has no 'LinarLR'. Did you mean 'LinearLR'"),
        ({"class_path": SCHEDULERS + "StepLR"}, "SequentialLR refuses its init_args: .*step_size"),
    ],
)
def test_mistakes_within_are_found_before_training(inner: dict[str, Any], message: str) -> None:
    scheduler = {
        "class_path": SCHEDULERS + "SequentialLR",
        "init_args": {"schedulers": [inner, HALVING], "milestones": [2]},
    }
    with pytest.raises(ConfigurationError, match=message):
        settings(scheduler=scheduler).check()
