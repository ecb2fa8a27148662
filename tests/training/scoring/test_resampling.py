"""The standard error of metrics that are no mean over examples, by leaving out groups of examples."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, BinaryF1Score, MulticlassJaccardIndex
from torchmetrics.wrappers import MinMaxMetric

from kedro_aat.certificate import bootstrap_standard_error
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.scoring import resampling
from kedro_aat.training.scoring.linearization import waiting
from kedro_aat.training.scoring.resampling import Bootstrap, Jackknife, Resampling, resampling_for
from kedro_aat.training.scoring.scores import standard_error_of
from kedro_aat.training.settings import TrainingSettings

NUM_EXAMPLES = 500


class Ratio(Metric):
    """A sum over a count."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        return self.total / self.count


class MeanOfBatches(Ratio):
    """A mean of the batches' F1, which therefore depends on the batches."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += torchmetrics.functional.classification.binary_f1_score(outputs, targets)
        self.count += 1


class MeanOfPositives(Ratio):
    """The mean output of the positives, which is undefined without any."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += outputs[targets == 1].sum()
        self.count += targets.sum()


def predictions(seed: int = 0, count: int = NUM_EXAMPLES) -> tuple[Tensor, Tensor, Tensor]:
    """Targets, and the outputs of two models that resemble each other, (N,) each."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(count, generator=generator) < 0.3).long()
    first = 2 * targets - 1 + torch.randn(count, generator=generator)
    second = first + 0.5 * torch.randn(count, generator=generator)
    return targets, first.sigmoid(), second.sigmoid()


def values(how: Resampling, outputs: Tensor, targets: Tensor, batch_size: int = 50) -> Any:
    for pair in zip(outputs.split(batch_size), targets.split(batch_size), strict=True):
        how.update(*pair)
    computed = how.compute()
    assert computed is not None
    return computed.numpy()


def standard_error(metric: Metric, targets: Tensor, *models: Tensor, num_groups: int = 20) -> float:
    first, second = (values(Jackknife(metric, num_groups, len(targets)), outputs, targets) for outputs in models)
    return bootstrap_standard_error(first, second)


@pytest.mark.parametrize(("num_groups", "tolerance"), [(NUM_EXAMPLES, 1e-4), (20, 0.5)])
def test_error_of_a_mean_is_that_of_its_scores(num_groups: int, tolerance: float) -> None:
    """With one example per group, the jackknife of a mean is exact."""
    targets, first, second = predictions()
    difference = ((first - targets).abs() - (second - targets).abs()).double().numpy()
    expected = difference.std(ddof=1) / math.sqrt(NUM_EXAMPLES)
    metric = torchmetrics.MeanAbsoluteError()
    error = standard_error(metric, targets.float(), first, second, num_groups=num_groups)
    assert error == pytest.approx(expected, rel=tolerance)


METRICS = [
    BinaryAUROC(),
    BinaryAUROC(thresholds=50),
    BinaryF1Score(),
    torchmetrics.R2Score(),
    torchmetrics.MeanSquaredError(squared=False),
    torchmetrics.PearsonCorrCoef(),
    torchmetrics.SpearmanCorrCoef(),
]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_groups_give_the_metric_without_them_and_the_error_of_the_bootstrap(metric: Metric) -> None:
    ratios = []
    for seed in range(3):
        targets, *models = predictions(seed)
        if isinstance(metric, torchmetrics.R2Score | torchmetrics.PearsonCorrCoef | torchmetrics.SpearmanCorrCoef):
            targets = targets + torch.rand(NUM_EXAMPLES, generator=torch.Generator().manual_seed(seed))
        jackknife = Jackknife(metric, 20, NUM_EXAMPLES)
        pseudo = values(jackknife, models[0], targets)
        assert jackknife.reproduces(_metric_of(metric, models[0], targets))
        kept = jackknife._groups != 3
        spread = (pseudo - pseudo.mean()) * math.sqrt(20) / 19
        expected = _metric_of(metric, models[0][kept], targets[kept]).double()
        assert pseudo.mean() + spread[3] == pytest.approx(float(expected), abs=1e-5)
        by_bootstrap = bootstrap_standard_error(*(values(Bootstrap(metric, 50), each, targets) for each in models))
        ratios.append(standard_error(metric, targets, *models) / by_bootstrap)
    assert 0.75 < np.median(ratios) < 1.35


def _metric_of(metric: Metric, outputs: Tensor, targets: Tensor) -> Tensor:
    metric.reset()
    metric.update(outputs, targets)
    value: Tensor = metric.compute()
    return value


def test_equal_models_have_no_error() -> None:
    targets, first, _ = predictions()
    assert standard_error(BinaryAUROC(), targets, first, first) == 0


def test_order_of_the_examples_does_not_matter() -> None:
    """Groups of neighbors would make the classes of sorted data disappear in turn."""
    errors = []
    for seed in range(5):
        targets, first, second = predictions(seed)
        order = targets.argsort(stable=True)
        errors.append(
            [
                standard_error(BinaryF1Score(), targets, first, second),
                standard_error(BinaryF1Score(), targets[order], first[order], second[order]),
            ]
        )
    shuffled, in_order = np.median(errors, axis=0)
    assert in_order == pytest.approx(shuffled, rel=0.4)


@pytest.mark.parametrize("max_waiting", [0, 2**26])
def test_batches_and_memory_do_not_matter(max_waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, first, _ = predictions()
    expected = values(Jackknife(BinaryAUROC(), 20, NUM_EXAMPLES), first, targets, batch_size=NUM_EXAMPLES)
    monkeypatch.setattr(waiting, "MAX_WAITING", max_waiting)
    for batch_size in (7, 64):
        got = values(Jackknife(BinaryAUROC(), 20, NUM_EXAMPLES), first, targets, batch_size=batch_size)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_images_of_different_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    metric, jackknife = MulticlassJaccardIndex(num_classes=3), Jackknife(MulticlassJaccardIndex(num_classes=3), 10, 100)
    for index in range(10):
        outputs = torch.randn(10, 3, 4 + index % 2, 4, generator=generator)
        targets = torch.randint(3, (10, 4 + index % 2, 4), generator=generator)
        metric.update(outputs, targets)
        jackknife.update(outputs, targets)
    assert jackknife.reproduces(metric.compute())
    assert jackknife.compute() is not None


def test_undefined_without_a_group(caplog: pytest.LogCaptureFixture) -> None:
    resampling._warn_undefined.cache_clear()
    targets = torch.zeros(NUM_EXAMPLES).long()
    targets[7] = 1  # the only positive
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            jackknife = Jackknife(MeanOfPositives(), 20, NUM_EXAMPLES)
            jackknife.update(torch.ones(NUM_EXAMPLES), targets)
            assert jackknife.reproduces(torch.tensor(1.0))
            assert jackknife.compute() is None
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "MeanOfPositives is undefined without some of the validation examples"
    ]


def test_error_of_a_metric_that_raises_without_a_group() -> None:
    jackknife = Jackknife(torchmetrics.R2Score(), 2, 2)
    jackknife.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    assert jackknife.compute() is None


@pytest.mark.parametrize(
    ("metric", "number", "num_examples", "expected"),
    [
        (BinaryAUROC(), 100, 1000, 20),
        (BinaryAUROC(), 100, 150, 15),
        (BinaryAUROC(), 5, 1000, 5),
        (BinaryAUROC(), 100, 99, Bootstrap),  # too few groups
        (MinMaxMetric(BinaryAUROC()), 100, 1000, Bootstrap),
        (BinaryAUROC() + BinaryF1Score(), 100, 1000, Bootstrap),
    ],
)
def test_choice(metric: Any, number: int, num_examples: int, expected: Any) -> None:
    chosen = resampling_for(metric, number, num_examples)
    if isinstance(expected, int):
        assert isinstance(chosen, Jackknife)
        assert len(chosen._states) == expected
    else:
        assert isinstance(chosen, expected)


def test_metric_of_batches_is_bootstrapped() -> None:
    targets, first, _ = predictions()
    settings = TrainingSettings.model_validate(
        {"batch_size": 50, "metric": {"class_path": f"{__name__}.MeanOfBatches"}, "device": "cpu"}
    )
    model = nn.Identity()
    data = {"inputs": first, "targets": targets}
    evaluation = DefaultTraining(model, settings, None, data).validate(model)
    assert evaluation.resampled is not None
    assert len(evaluation.resampled) == settings.num_bootstrap_resamples
    metric = MeanOfBatches()
    for pair in zip(first.split(50), targets.split(50), strict=True):
        metric.update(*pair)
    assert torch.equal(torch.as_tensor(evaluation.metric), metric.compute())


def test_bootstrap_and_jackknife_are_not_paired() -> None:
    baseline, candidate = (Evaluation(0.5, resampled=torch.rand(size)) for size in (100, 20))
    assert standard_error_of(baseline, candidate) is None


class MedianAsFloat(Metric):
    """A metric of lists whose value is a plain number."""

    errors: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("errors", [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.errors.append((outputs - targets).abs())

    def compute(self) -> float:
        return float(torch.cat(self.errors).median())


@pytest.mark.parametrize("num_examples", [3, 400])
def test_metric_that_is_a_plain_number(num_examples: int) -> None:
    """Of three examples, some resamples have none."""
    settings = TrainingSettings.model_validate({"metric": f"{__name__}.MedianAsFloat", "device": "cpu"})
    outputs = torch.randn(num_examples, generator=torch.Generator().manual_seed(0))
    model = nn.Identity()
    data = {"inputs": outputs, "targets": torch.zeros(num_examples)}
    evaluation = DefaultTraining(model, settings, None, data).validate(model)
    assert evaluation.metric == pytest.approx(float(outputs.abs().median()))
    assert evaluation.resampled is not None


def test_metric_that_cannot_compute_merged_states_is_bootstrapped() -> None:
    """Its states are stacked, and the metric takes what was stacked for something else."""
    settings = TrainingSettings.model_validate(
        {"metric": "torchmetrics.regression.NormalizedRootMeanSquaredError", "device": "cpu"}
    )
    outputs = torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    model = nn.Identity()
    evaluation = DefaultTraining(model, settings, None, {"inputs": outputs, "targets": 2 * outputs + 3}).validate(model)
    assert evaluation.resampled is not None
