"""A baseline that is no better than an answer without the input is questioned before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from kedro_aat.errors import MetricError
from kedro_aat.training.checks import baseline as baseline_module
from tests.nets import Pairs
from tests.training.checks.baselines import evaluated, labels, random

CLASSIFICATION, REGRESSION = "torchmetrics.classification.", "torchmetrics.regression."
ACCURACY = CLASSIFICATION + "MulticlassAccuracy"
TEN = {"num_classes": 10, "average": "micro"}
BCE = {"loss": "torch.nn.BCEWithLogitsLoss"}
MSE: dict[str, Any] = {"loss": "torch.nn.MSELoss"}

LABELS = labels(1000, 10)
NOISE = random(1000, 10, seed=1)
NUMBERS = random(1000, seed=2)
UNRELATED = random(1000, seed=3)
WEAKLY_RELATED = NUMBERS + 4.4 * random(1000, seed=4)  # R2 of NUMBERS: .05
RARE = (NUMBERS + 1.5 * random(1000, seed=5) > 2.5).float()  # one in ten
MAP = labels(100 * 64, 4).view(100, 8, 8)
MAPS = random(100, 4, 8, 8, seed=6)

USELESS = [
    (NOISE, LABELS, ACCURACY, TEN, {}, "always answering class 5 has 0.12"),
    (NOISE, LABELS, ACCURACY, TEN | {"top_k": 5}, {}, "has 0.5"),
    (NOISE, LABELS, CLASSIFICATION + "MulticlassF1Score", {"num_classes": 10}, {}, "answering at random has 0.10"),
    (NOISE, LABELS, CLASSIFICATION + "MulticlassCohenKappa", {"num_classes": 10}, {}, "has 0"),
    (NOISE, LABELS, CLASSIFICATION + "MulticlassAUROC", {"num_classes": 10}, {}, "has 0.5"),
    (MAPS, MAP, CLASSIFICATION + "MulticlassJaccardIndex", {"num_classes": 4}, {}, "has 0.14"),
    (-UNRELATED, RARE, CLASSIFICATION + "BinaryAUROC", {}, BCE, "has 0.5"),
    (UNRELATED, RARE, CLASSIFICATION + "BinaryF1Score", {}, BCE, "always answering yes has 0.1"),
    (UNRELATED, RARE, CLASSIFICATION + "BinaryAccuracy", {}, BCE, "always answering no has 0.9"),
    (UNRELATED, WEAKLY_RELATED, REGRESSION + "R2Score", {}, MSE, "the mean of the targets has 0,"),
    (UNRELATED, WEAKLY_RELATED, REGRESSION + "MeanSquaredError", {}, MSE, "the mean of the targets has 21"),
    (UNRELATED, WEAKLY_RELATED, REGRESSION + "MeanAbsoluteError", {}, MSE, "the median of the targets has 3"),
    (UNRELATED, WEAKLY_RELATED, REGRESSION + "SpearmanCorrCoef", {}, MSE, "has 0"),
    (-UNRELATED, WEAKLY_RELATED, REGRESSION + "PearsonCorrCoef", {}, MSE, "answering at random has"),
]


@pytest.mark.parametrize(("outputs", "targets", "metric", "arguments", "training", "message"), USELESS)
@pytest.mark.parametrize("as_dataset", [False, True])
def test_baseline_at_chance(
    outputs: Tensor,
    targets: Tensor,
    metric: str,
    arguments: dict[str, Any],
    training: dict[str, Any],
    message: str,
    as_dataset: bool,
) -> None:
    more = {"higher_is_better": True} if "Pearson" in metric else {}
    data = Pairs(outputs, targets) if as_dataset else None
    with pytest.raises(MetricError, match=rf"{metric.rpartition('.')[2]} is .* on [\d,]+ validation .*; .*{message}"):
        evaluated(outputs, targets, metric, arguments, data, **training, **more)


WEAK = one_hot(LABELS, 10) * 0.5


@pytest.mark.parametrize(
    ("outputs", "targets", "metric", "arguments", "training"),
    [
        (NOISE + WEAK, LABELS, ACCURACY, TEN, {}),
        (NOISE + WEAK, LABELS, ACCURACY, TEN | {"top_k": 5}, {}),
        (NOISE + WEAK, LABELS, CLASSIFICATION + "MulticlassF1Score", {"num_classes": 10}, {}),
        (NOISE + 5 * WEAK, LABELS, CLASSIFICATION + "MulticlassCalibrationError", {"num_classes": 10}, {}),
        (
            MAPS + one_hot(MAP, 4).movedim(-1, 1) * 0.5,
            MAP,
            CLASSIFICATION + "MulticlassJaccardIndex",
            {"num_classes": 4},
            {},
        ),
        (NUMBERS[:200], (WEAKLY_RELATED[:200] > 0).float(), CLASSIFICATION + "BinaryAUROC", {}, BCE),
        (3 * NUMBERS - 5, RARE, CLASSIFICATION + "BinaryF1Score", {}, BCE),
        (NUMBERS, WEAKLY_RELATED, REGRESSION + "R2Score", {}, MSE),
        (NUMBERS, WEAKLY_RELATED, REGRESSION + "MeanSquaredError", {}, MSE),
        (NUMBERS, WEAKLY_RELATED, REGRESSION + "MeanSquaredError", {"squared": False}, MSE),
        (NUMBERS, WEAKLY_RELATED, REGRESSION + "MeanAbsoluteError", {}, MSE),
        (NUMBERS, WEAKLY_RELATED, REGRESSION + "PearsonCorrCoef", {}, MSE | {"higher_is_better": True}),
        (NUMBERS, (10 * NUMBERS).round().long(), REGRESSION + "MeanAbsoluteError", {}, MSE),
    ],
)
def test_weak_baseline_that_is_worth_something(
    outputs: Tensor, targets: Tensor, metric: str, arguments: dict[str, Any], training: dict[str, Any]
) -> None:
    assert evaluated(outputs, targets, metric, arguments, **training).validation


def test_useless_baselines_seldom_pass_by_luck() -> None:
    """A baseline of ten classes that is a hair above chance on 200 examples is none."""
    passed = 0
    for seed in range(100):
        try:
            evaluated(random(200, 10, seed=seed), labels(200, 10, seed=1000 + seed), ACCURACY, TEN)
            passed += 1
        except MetricError:
            pass
    assert passed <= 5


def test_baseline_with_constant_outputs() -> None:
    outputs = torch.zeros(1000, 10) + torch.arange(10)
    with pytest.raises(
        MetricError, match=r"answers all 1,000 validation examples with the same output.*Were the weights"
    ):
        evaluated(outputs, LABELS, ACCURACY, TEN)


def test_baseline_that_answers_nan() -> None:
    outputs = NOISE + 6 * WEAK
    outputs[[7, 700]] = torch.nan
    with pytest.raises(MetricError, match="answers 2 of 1,000 validation examples with NaN"):
        evaluated(outputs, LABELS, ACCURACY, TEN)


def test_metric_of_0() -> None:
    with pytest.raises(MetricError, match="MulticlassAccuracy is 0 on 1,000 validation examples"):
        evaluated(-one_hot(LABELS, 10).float(), LABELS, ACCURACY, TEN)
    own: dict[str, Any] = {"validate": "tests.training.checks.baselines.validate_as_0"}
    with pytest.raises(MetricError, match="validate_as_0 is 0 on 1,000 validation examples, where higher is better"):
        evaluated(NOISE, LABELS, None, **own, higher_is_better=True)


def test_questions_may_be_only_told_of(caplog: pytest.LogCaptureFixture) -> None:
    assert evaluated(NOISE, LABELS, ACCURACY, TEN, baseline_check="warn").validation == pytest.approx(0.09)
    assert "always answering class 5 has 0.121" in caplog.text
    caplog.clear()
    assert evaluated(NOISE, LABELS, ACCURACY, TEN, baseline_check="off").validation == pytest.approx(0.09)
    assert "always" not in caplog.text


def test_targets_that_take_too_much_memory_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(baseline_module, "MAX_TARGET_BYTES", 4000)
    with caplog.at_level("INFO"):
        assert evaluated(NOISE, LABELS, ACCURACY, TEN, Pairs(NOISE, LABELS)).validation
    assert "the targets take too much memory" in caplog.text


def test_the_check_does_not_rename_a_run() -> None:
    from kedro_aat.training.settings import TrainingSettings

    assert "baseline_check" in TrainingSettings.WITHOUT_EFFECT


def test_brackets_survive_the_log_handler_of_kedro(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    targets = torch.arange(200.0)
    evaluated(
        targets + 0.1,
        targets,
        "torchmetrics.MeanAbsoluteError",
        loss="torch.nn.L1Loss",
        higher_is_better=False,
        baseline_check="off",
    )
    (record,) = (each for each in caplog.records if "Set certificate.score_range to [lowest" in each.getMessage())
    assert record.__dict__["markup"] is False
