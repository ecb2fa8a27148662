"""A small twin of `benchmarks/asymptotic_certificate.py`: the level holds, and its scores are those of a validation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchmetrics.classification as c
from torchmetrics import Metric

from benchmarks.asymptotic_candidates import KINDS, of_counts
from benchmarks.asymptotic_certificate import cases_of, certified, lower_bound
from benchmarks.table_metrics import TableMetric, binary_f1, macro_accuracy, macro_f1, mean_iou
from kedro_aat.budget import Budget
from kedro_aat.training.callables import Evaluation
from kedro_aat.training.scoring.scores import certify_evaluations, worst_drop
from kedro_aat.training.scoring.watchers import watchers_for

ALPHA = 0.05
BUDGET = Budget(baseline=0.9, drop=0.05, higher_is_better=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_level_holds_and_violators_are_refused(kind: str) -> None:
    generator = np.random.default_rng(0)
    for case in cases_of(kind, 30, 4.5):
        runs = 20 if case.metric == "mean IoU" else 60
        if case.metric == "average precision":  # its true drop takes a second
            continue
        try:
            wrong, _ = certified(case, 1.0, runs, ALPHA, generator)
        except ValueError:  # no such candidate loses so much
            continue
        assert lower_bound(wrong, runs) <= ALPHA, case


@pytest.mark.parametrize(
    ("metric", "function", "num_classes"),
    [
        (c.BinaryF1Score(), binary_f1, 2),
        (c.MulticlassF1Score(3), macro_f1, 3),
        (c.MulticlassAccuracy(3), macro_accuracy, 3),
        (c.MulticlassJaccardIndex(3), mean_iou, 3),
    ],
)
@pytest.mark.parametrize("size", [(), (5,)])
def test_simulated_scores_are_those_of_a_validation(
    metric: Metric, function: TableMetric, num_classes: int, size: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    draw: Callable[[], torch.Tensor] = lambda: torch.randint(num_classes, (200, *size), generator=generator)  # noqa: E731
    targets, before, after = draw(), draw(), draw()
    counts = np.zeros((200, num_classes, num_classes, num_classes))
    for triple in zip(*(each.reshape(200, -1).T for each in (targets, before, after)), strict=True):
        counts[(np.arange(200), *(each.numpy() for each in triple))] += 1
    sample = of_counts(function, counts)
    evaluations = []
    for outputs, expected in ((before, sample.baseline), (after, sample.candidate)):
        watcher = watchers_for(metric, 100, 200)[0]()
        metric.reset()
        metric.update(outputs, targets)
        watcher.update(outputs, targets)
        found = watcher.evaluation(metric)
        assert found is not None
        assert found.scores is not None
        np.testing.assert_allclose(found.scores.numpy(), expected, atol=1e-5)
        evaluations.append(found)
    assert worst_drop(evaluations[0], evaluations[1], BUDGET, None) == pytest.approx(sample.worst_drop, rel=1e-4)
    effective = min(each.linearization.effective_examples for each in evaluations if each.linearization)
    assert effective == pytest.approx(sample.effective_examples)


def test_linearized_scores_never_reach_the_exact_test() -> None:
    """Taken for scores of their own, scores of 0 and 1 would be counted as right and wrong."""
    scores = (torch.arange(100) < 90).double()
    evaluation = Evaluation(0.9, scores, score_range=(0, 1), is_linearized=True)
    found = certify_evaluations(evaluation, Evaluation(0.9, scores, score_range=(0, 1)), BUDGET, ALPHA)
    assert found is not None
    assert found.kind is None  # nothing is known of the linearization
    assert found.discordant is None
