"""The usual mistakes in loss, metric and targets: each is one error before the search, which names what to write."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from kedro_aat.config import AatSettings
from kedro_aat.errors import ConfigurationError, RehearsalError
from kedro_aat.rehearsal.common import Rehearsal
from kedro_aat.rehearsal.rehearse import rehearse
from kedro_aat.training.data import Data
from kedro_aat.validated import parse

BCE, MSE = "torch.nn.BCEWithLogitsLoss", "torch.nn.MSELoss"
CROSS_ENTROPY = {"loss": "torch.nn.CrossEntropyLoss"}
HERE = "tests.rehearsal.test_usual_mistakes"


class Answers(nn.Module):
    """Scores of a linear layer: (B, 8, ...) -> (B, outputs, ...), or (B,) without outputs."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, outputs or 1, 1)
        self.is_flat = not outputs

    def forward(self, x: Tensor) -> Tensor:
        is_image = x.dim() == 4
        out: Tensor = self.layer(x if is_image else x[:, :, None, None])
        out = out if is_image else out[:, :, 0, 0]
        return out[:, 0] if self.is_flat else out


class OwnLoss(nn.BCEWithLogitsLoss):
    """Says nowhere that its argument is a tensor."""

    def __init__(self, pos_weight=None):  # type: ignore[no-untyped-def]
        super().__init__(pos_weight=pos_weight)


class Absolute(nn.Module):
    """A loss of the user's that compares whatever it gets."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _labels(*shape: int, classes: int = 3) -> Tensor:
    return torch.randint(classes, shape, generator=_generator())


def _metric(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"torchmetrics.{name}", "init_args": arguments}


ACCURACY = _metric("classification.MulticlassAccuracy", num_classes=3)
BINARY = _metric("classification.BinaryAccuracy")
MULTILABEL = _metric("classification.MultilabelF1Score", num_labels=3)
JACCARD = _metric("classification.MulticlassJaccardIndex", num_classes=3)
MAE = _metric("regression.MeanAbsoluteError")
MASK = _labels(20, 4, 4)
MASK_WITH_BORDER = MASK.masked_fill(torch.arange(16).reshape(4, 4) == 0, 255)
MULTI_HOT = one_hot(_labels(20), 3) | one_hot(_labels(20).flip(0), 3)
IGNORING = {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"ignore_index": 255}}


class Wrong(NamedTuple):
    """Outputs of the model, targets and training settings; and what the error must say."""

    outputs: int
    targets: Tensor
    training: dict[str, Any]
    words: tuple[str, ...]


WRONG = {
    "MeanIoU on numbers of classes": Wrong(
        3,
        MASK,
        CROSS_ENTROPY | {"metric": _metric("segmentation.MeanIoU", num_classes=3)},
        ("MeanIoU with input_format: one-hot", "numbers of classes", "input_format: mixed", "MulticlassJaccardIndex"),
    ),
    "MeanIoU on a mask with a border": Wrong(
        3,
        MASK_WITH_BORDER,
        {"loss": IGNORING, "metric": _metric("segmentation.MeanIoU", num_classes=3)},
        ("numbers of classes", "set training.metric to torchmetrics.classification.MulticlassJaccardIndex"),
    ),
    "no ignore_index": Wrong(
        3,
        MASK_WITH_BORDER,
        CROSS_ENTROPY | {"metric": JACCARD},
        ("which the metric MulticlassJaccardIndex needs", "set ignore_index: 255", "loss and metric"),
    ),
    "ignore_index of the loss alone": Wrong(
        3,
        MASK_WITH_BORDER,
        {"loss": IGNORING, "metric": JACCARD},
        ("16 of 256 labels", "MulticlassJaccardIndex needs", "if 255 marks what has no class"),
    ),
    "labels for a loss of each output": Wrong(
        3, _labels(20), {"loss": BCE, "metric": ACCURACY}, ("a 0 or 1 for each output", "torch.nn.CrossEntropyLoss")
    ),
    "floats in a column for cross-entropy": Wrong(
        3,
        _labels(20, 1).float(),
        CROSS_ENTROPY | {"metric": ACCURACY},
        ("shape (N, 1) and type float32", "the loss CrossEntropyLoss fails", "integers of shape (N,)"),
    ),
    "one output for cross-entropy": Wrong(
        1,
        _labels(20, classes=2),
        CROSS_ENTROPY | {"metric": BINARY},
        ("needs one output per class", "torch.nn.BCEWithLogitsLoss"),
    ),
    "several labels for cross-entropy": Wrong(
        3,
        MULTI_HOT.float(),
        CROSS_ENTROPY | {"metric": MULTILABEL},
        ("1 to 2 labels per example", BCE, "MultilabelF1Score with init_args: { num_labels: 3 }"),
    ),
    "several labels as integers": Wrong(
        3, MULTI_HOT, CROSS_ENTROPY | {"metric": MULTILABEL}, ("1 to 2 labels per example", BCE)
    ),
    "numbers that a loss of the user's would broadcast": Wrong(
        1,
        torch.randn(20, generator=_generator()),
        {"loss": f"{HERE}.Absolute", "metric": MAE},
        ("the loss Absolute is ", "Each output would be compared with each target"),
    ),
    "as many weights as there are no outputs": Wrong(
        1,
        _labels(20, classes=2),
        {"loss": {"class_path": BCE, "init_args": {"pos_weight": [1.0, 2.0]}}, "metric": BINARY},
        ("2 numbers under pos_weight", "give 1, one per output"),
    ),
    "as many weights as there are no classes": Wrong(
        3,
        _labels(20),
        {"loss": {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weight": [1, 2]}}, "metric": ACCURACY},
        ("2 numbers under weight", "give 3, one per class"),
    ),
}

RIGHT = {
    "integers for BCE": Wrong(1, _labels(20, classes=2), {"loss": BCE, "metric": BINARY}, ()),
    "pos_weight as a list": Wrong(
        3,
        MULTI_HOT,
        {"loss": {"class_path": BCE, "init_args": {"pos_weight": [1, 2, 3]}}, "metric": MULTILABEL},
        (),
    ),
    "pos_weight as a number": Wrong(
        1,
        _labels(20, classes=2),
        {"loss": {"class_path": BCE, "init_args": {"pos_weight": 3}}, "metric": BINARY},
        (),
    ),
    "numbers (N,) for outputs (N, 1)": Wrong(
        1, torch.randn(20, generator=_generator()), {"loss": MSE, "metric": MAE}, ()
    ),
    "mixed MeanIoU": Wrong(
        3,
        MASK,
        CROSS_ENTROPY | {"metric": _metric("segmentation.MeanIoU", num_classes=3, input_format="mixed")},
        (),
    ),
    "ignore_index of both": Wrong(
        3,
        MASK_WITH_BORDER,
        {
            "loss": IGNORING,
            "metric": _metric("classification.MulticlassJaccardIndex", num_classes=3, ignore_index=255),
        },
        (),
    ),
    "one label in many rows": Wrong(3, one_hot(_labels(20), 3).float(), CROSS_ENTROPY | {"metric": BINARY}, ()),
}


def _rehearsed(case: Wrong, training: dict[str, Any] | None = None) -> str:
    torch.manual_seed(0)
    size = (20, 8, *case.targets.shape[1:]) if case.targets.dim() == 3 else (20, 8)
    data: Data = {"inputs": torch.randn(size), "targets": case.targets}
    settings = {
        "budget": {"max_relative_drop": 0.1},
        "compression": {"algorithm": "magnitude_sparsity"},
        "second_stage": None,
        "training": {"device": "cpu", "num_threads": 1, "batch_size": 16} | case.training | (training or {}),
    }
    return rehearse(Answers(case.outputs), data, data, parse(AatSettings, settings)).outcome


@pytest.fixture
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take most of the time, and have nothing to do with targets."""
    init = Rehearsal.of.__func__  # type: ignore[attr-defined]

    def of(cls: type[Rehearsal], *arguments: Any) -> Rehearsal:
        rehearsal: Rehearsal = init(cls, *arguments)
        rehearsal.broken.add("export")
        return rehearsal

    monkeypatch.setattr(Rehearsal, "of", classmethod(of))
    monkeypatch.setattr("kedro_aat.rehearsal.rehearse.rehearse_files", lambda *_, **__: None)


@pytest.mark.parametrize("name", WRONG)
def test_a_usual_mistake_is_one_error(name: str, without_files: None) -> None:
    case = WRONG[name]
    with pytest.raises(RehearsalError) as caught:
        _rehearsed(case)
    (fault,) = caught.value.faults
    assert fault.startswith("targets, with a validation batch of ")
    for words in case.words:
        assert words in fault
    assert "baseline_check" in fault


@pytest.mark.parametrize("name", RIGHT)
def test_what_looks_like_a_mistake_but_works(name: str, without_files: None) -> None:
    assert _rehearsed(RIGHT[name]) == "passed"


def test_who_insists_gets_the_words_of_torch(without_files: None) -> None:
    with pytest.raises(RehearsalError, match="loss in training mode"):
        _rehearsed(WRONG["floats in a column for cross-entropy"], {"baseline_check": "warn"})
    assert _rehearsed(WRONG["several labels for cross-entropy"], {"baseline_check": "off"}) == "passed"


def test_a_list_for_a_loss_that_does_not_say_that_it_wants_a_tensor(without_files: None) -> None:
    loss = {"class_path": f"{HERE}.OwnLoss", "init_args": {"pos_weight": [1.0, 2.0]}}
    with pytest.raises(ConfigurationError, match=r"annotates pos_weight as torch\.Tensor") as caught:
        _rehearsed(RIGHT["integers for BCE"], {"loss": loss})
    assert len(caught.value.mistakes) == 1
