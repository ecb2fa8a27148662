"""The certificate, for which the test split is read once."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.budget import Budget
from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.delivery.certify import Verdict, certify_once
from kedro_aat.errors import DataError, ExportError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.training.data import data_fingerprint
from kedro_aat.training.settings import TrainingSettings
from tests.delivery.certifying import ACCURACY, BUDGET, Threshold, export, export_with_drop, settings, split


def certify(
    ledger: CertificateLedger,
    drop: float,
    num_examples: int = 2000,
    *,
    budget: Budget = BUDGET,
    alpha: float = 0.05,
    training: TrainingSettings | None = None,
    baseline: nn.Module | None = None,
) -> Verdict:
    """Certifies a model that is wrong on a share `drop` of the examples; the baseline is always right.

    Args:
        ledger: Ledger of certificates.
        drop: Share of the examples, in [0, 0.5].
        num_examples: Size of the test split.
        budget: Accuracy budget.
        alpha: Level of significance.
        training: Settings that define the metric; None for accuracy.
        baseline: The baseline; None for one that is always right.
    """
    return certify_once(
        export_with_drop(drop),
        baseline or Threshold(0.5),
        split(num_examples),
        budget,
        training or settings(),
        ledger,
        alpha=alpha,
    )


def test_small_drop_on_many_examples_is_certified(ledger: CertificateLedger) -> None:
    verdict = certify(ledger, 0.005)
    assert verdict.is_certified
    assert verdict.baseline == pytest.approx(1.0, abs=0.001)
    assert verdict.compressed == pytest.approx(0.995, abs=0.001)
    assert verdict.words.startswith("Measured drop 0.00")
    assert "2,000 test examples) is within the budget of 0.02: certified." in verdict.words
    assert verdict.certificate is not None
    assert verdict.certificate.upper_bound is not None
    assert verdict.certificate.upper_bound < 0.02


def test_words_name_the_confidence(ledger: CertificateLedger) -> None:
    assert "(90% upper bound 0.00" in certify(ledger, 0.005, alpha=0.1).words


def test_a_drop_as_large_as_the_budget_cannot_be_certified(ledger: CertificateLedger) -> None:
    verdict = certify(ledger, 0.0625, 2048, budget=Budget(baseline=0.95, drop=0.0625))
    assert verdict.certificate is not None
    assert verdict.certificate.estimated_drop == 0.0625
    assert "is within the budget of 0.0625, but the upper bound exceeds it: not certified" in verdict.words
    assert "no number of examples would certify it" in verdict.words


def test_a_ledger_of_another_version_knows_the_same_question(ledger: CertificateLedger) -> None:
    certify(ledger, 0.005)
    ((_, entry),) = ledger.entries().items()
    assert list(entry.subject) == ["model", "baseline", "metric", "tolerated_drop", "alpha", "metric_variant"]
    assert re.fullmatch("[0-9a-f]{32}", str(entry.subject["model"]))


def test_result_is_one_flat_table(ledger: CertificateLedger) -> None:
    verdict = certify(ledger, 0.005)
    result, certificate = verdict.result, verdict.certificate
    assert certificate is not None
    assert result.is_certified
    assert (result.baseline, result.compressed, result.words) == (verdict.baseline, verdict.compressed, verdict.words)
    fields = ("statistic", "p_value", "alpha", "examples", "unit", "tolerated_drop", "estimated_drop", "upper_bound")
    for field in (*fields, "discordant"):
        assert getattr(result, field) == getattr(certificate, field), field


def test_result_without_a_certificate_has_no_statistics(ledger: CertificateLedger) -> None:
    certify(ledger, 0.005)
    result = certify(ledger, 0.006).result
    assert not result.is_certified
    assert (result.baseline, result.compressed, result.p_value, result.examples) == (None, None, None, None)
    assert re.search(r"already read on \d{4}-\d\d-\d\d for a different model\.", result.words)


def test_too_few_examples_report_how_many_are_needed(ledger: CertificateLedger) -> None:
    verdict = certify(ledger, 0.005, 100)
    assert not verdict.is_certified
    assert "in 80 of 100 cases" in verdict.words
    assert "the upper bound exceeds it: not certified" in verdict.words
    number = int(verdict.words.split("about ")[1].split(" test")[0].replace(",", ""))
    assert 200 < number < 3000


def test_drop_beyond_the_budget_is_not_certified(ledger: CertificateLedger) -> None:
    verdict = certify(ledger, 0.03)
    assert not verdict.is_certified
    assert verdict.words.startswith("Measured drop 0.03 ")
    assert "exceeds the budget of 0.02: not certified" in verdict.words
    assert "Expect the model to break its budget" in verdict.words


def test_same_test_returns_the_recorded_verdict(ledger: CertificateLedger) -> None:
    first = certify(ledger, 0.005)
    assert certify(ledger, 0.005) == first


class CannotBeExported(Threshold):
    def forward(self, inputs: Tensor) -> Tensor:
        raise AssertionError("the model was run")


def test_a_split_that_was_read_needs_no_other_file_of_the_baseline(ledger: CertificateLedger) -> None:
    first = certify(ledger, 0.005)
    assert certify(ledger, 0.005, baseline=CannotBeExported(0.5)) == first
    assert certify(ledger, 0.006, baseline=CannotBeExported(0.5)).words.startswith("Not certified: the test split was")


def test_a_baseline_that_cannot_be_exported_leaves_the_split_unread(ledger: CertificateLedger) -> None:
    with pytest.raises(ExportError, match="the model was run"):
        certify(ledger, 0.005, baseline=CannotBeExported(0.5))
    assert not ledger.path.exists()


def test_interrupted_test_can_be_repeated(ledger: CertificateLedger) -> None:
    expected = certify(ledger, 0.005)
    (number, entry), *_ = ledger.entries().items()
    other_ledger = CertificateLedger(ledger.path.with_name("other.json"))
    other_ledger.claim(number, entry.subject)  # then the process was killed
    assert certify(other_ledger, 0.005) == expected


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"drop": 0.006}, "model"),
        ({"budget": Budget(baseline=0.95, drop=0.03)}, "tolerated drop"),
        ({"alpha": 0.1}, "alpha"),
    ],
)
def test_different_test_on_the_same_split_has_no_verdict(
    ledger: CertificateLedger, changed: dict[str, Any], word: str
) -> None:
    certify(ledger, 0.005)
    verdict = certify(ledger, **{"drop": 0.005, **changed})
    assert not verdict.is_certified
    assert verdict.certificate is None
    assert verdict.baseline is None
    assert verdict.compressed is None
    assert f"for a different {word}." in verdict.words
    assert certify(ledger, 0.005).is_certified  # the first test keeps its certificate


def test_a_metric_with_other_arguments_is_another_metric(ledger: CertificateLedger) -> None:
    certify(ledger, 0.0)
    macro = {**ACCURACY, "init_args": {"num_classes": 2, "average": "macro"}}
    verdict = certify(ledger, 0.0, training=settings(macro))
    assert not verdict.is_certified
    assert "already read" in verdict.words
    assert "for a different metric variant" in verdict.words


def test_a_ledger_without_the_arguments_of_the_metric_knows_the_same_question(ledger: CertificateLedger) -> None:
    verdict = certify(ledger, 0.0)
    entries = json.loads(ledger.path.read_text())
    for entry in entries.values():
        del entry["subject"]["metric_variant"]
    ledger.path.write_text(json.dumps(entries))
    assert certify(ledger, 0.0) == verdict


def test_another_split_allows_another_test(ledger: CertificateLedger) -> None:
    certify(ledger, 0.005)
    assert certify(ledger, 0.006, 2001).is_certified


def test_the_same_examples_in_another_order_are_the_same_split(ledger: CertificateLedger) -> None:
    certify(ledger, 0.005)
    data, budget = split(2000), BUDGET
    order = torch.randperm(2000)
    other = {"targets": data["targets"][order].int(), "inputs": data["inputs"][order].double(), "row": order}
    verdict = certify_once(export_with_drop(0.006), Threshold(0.5), other, budget, settings(), ledger, alpha=0.05)
    assert "already read" in verdict.words


def test_splits_that_an_earlier_version_has_read_stay_read(ledger: CertificateLedger) -> None:
    ledger.claim(data_fingerprint(split(2000)), {"model": "a"})
    assert "already read" in certify(ledger, 0.005).words


def test_other_groups_are_another_test_and_mistakes_in_them_cost_no_split(ledger: CertificateLedger) -> None:
    data, file = {**split(2000), "patient": torch.arange(2000) // 10}, export_with_drop(0.005)

    def certify_by(**changes: Any) -> Verdict:
        return certify_once(file, Threshold(0.5), data, BUDGET, settings(**changes), ledger, alpha=0.05)

    with pytest.raises(DataError, match="The test split has no clinic"):
        certify_by(group="clinic")
    assert not ledger.path.exists()
    assert certify_by(group="patient").baseline is not None
    assert "for a different group." in certify_by().words


def test_metric_without_scores_is_evaluated_but_not_certified(ledger: CertificateLedger) -> None:
    macro = {**ACCURACY, "init_args": {"num_classes": 2, "average": "macro"}}
    verdict = certify(ledger, 0.005, training=settings(macro, num_bootstrap_resamples=0))
    assert verdict.certificate is None
    assert verdict.compressed == pytest.approx(0.995, abs=0.001)
    assert "no score per example" in verdict.words


class Constant(nn.Module):
    """Returns its value for every input."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.value + 0 * inputs[:, None]


MAE = {"class_path": "torchmetrics.MeanAbsoluteError"}
ERRORS = {"inputs": torch.rand(800), "targets": torch.zeros(800, 1)}


def certify_error(ledger: CertificateLedger, score_range: tuple[float, float] | None, drop: float = 0.05) -> Verdict:
    """Certifies a model whose absolute error is always .11; the baseline's is .10."""
    budget = Budget(baseline=0.1, drop=drop, higher_is_better=False)
    file, baseline = export(Constant(0.11)), Constant(0.1)
    return certify_once(file, baseline, ERRORS, budget, settings(MAE), ledger, alpha=0.05, score_range=score_range)


def test_metric_that_should_be_low(ledger: CertificateLedger) -> None:
    worse = certify_error(ledger, (0, 1))
    assert worse.certificate is not None
    assert worse.certificate.kind == "exact"
    assert worse.certificate.estimated_drop == pytest.approx(0.01)
    assert worse.is_certified


def test_errors_without_a_known_limit_are_measured_only(ledger: CertificateLedger) -> None:
    verdict = certify_error(ledger, None)
    assert not verdict.is_certified
    assert verdict.baseline == pytest.approx(0.1)
    assert verdict.compressed == pytest.approx(0.11)
    assert verdict.result.kind is None
    assert "Measured drop 0.01 on 800 test examples, standard error" in verdict.words
    assert "certificate.score_range" in verdict.words


def test_the_range_may_be_given_after_a_run_without_one(ledger: CertificateLedger) -> None:
    certify_error(ledger, None)
    assert certify_error(ledger, (0, 1)).is_certified
    assert certify_error(ledger, None).is_certified  # the recorded verdict


@pytest.mark.parametrize(
    ("score_range", "drop", "words"),
    [((0, 0.105), 0.05, "score_range must include all scores, from 0.1 to 0.11"), ((0, 1), 1.5, "less than the range")],
)
def test_what_the_examples_show_first_ends_no_run(
    ledger: CertificateLedger, score_range: tuple[float, float], drop: float, words: str
) -> None:
    verdict = certify_error(ledger, score_range, drop)
    assert not verdict.is_certified
    assert words in verdict.words
    assert verdict.compressed == pytest.approx(0.11)


def test_a_verdict_of_a_version_that_knew_no_range_is_not_repeated(ledger: CertificateLedger) -> None:
    certify_error(ledger, None)
    ((split, entry),) = ledger.entries().items()
    assert entry.result is not None
    old = {**entry.result["certificate"], "kind": "exact", "p_value": 0.001, "statistic": -9, "upper_bound": 0.02}
    ledger.record(split, {**entry.result, "certificate": {**old, "standard_error": None, "reason": None}})
    assert not certify_error(ledger, None).is_certified


def test_files_that_return_no_number_end_no_run(ledger: CertificateLedger) -> None:
    class Root(Constant):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) + (inputs[:, None] - 0.5).sqrt()

    budget = Budget(baseline=0.1, drop=0.05, higher_is_better=False)
    verdict = certify_once(export(Root(0.1)), Constant(0.1), ERRORS, budget, settings(MAE), ledger, alpha=0.05)
    assert "Not certified: the metric of the exported file must be a finite number" in verdict.words


def test_the_drop_is_that_of_the_test_split(ledger: CertificateLedger) -> None:
    # On the validation split the baseline has .95; on the test split both models are always right.
    macro = {**ACCURACY, "init_args": {"num_classes": 2, "average": "macro"}}
    verdict = certify(ledger, 0.0, training=settings(macro, num_bootstrap_resamples=0))
    assert verdict.words.startswith("Measured drop 0 on 2,000 test examples")


def test_a_metric_that_is_no_mean_has_an_asymptotic_certificate(ledger: CertificateLedger) -> None:
    macro = {**ACCURACY, "init_args": {"num_classes": 2, "average": "macro"}}
    verdict = certify(ledger, 0.001, training=settings(macro))
    assert verdict.is_certified
    assert verdict.result.kind == "asymptotic"
    assert verdict.result.holds_from == 21  # ten of each class, of which one has a little less than half
    assert verdict.words.endswith(
        "at most 5% of cases was shown by simulations, from 21 such examples on, and is no proof."
    )


def test_low_precision_does_not_lower_the_bar(ledger: CertificateLedger) -> None:
    # In bfloat16 the baseline's errors are those of numbers near 100 with 8 bits; in the file they are small.
    torch.manual_seed(0)
    inputs, weight = torch.randn(2000, 8), torch.randn(8, 1) * 20
    data = {"inputs": inputs, "targets": inputs @ weight + 100 + 0.05 * torch.randn(2000, 1)}
    net = nn.Linear(8, 1)
    with torch.no_grad():
        net.weight.copy_(weight.T)
        net.bias.fill_(100.0)
    worse = copy.deepcopy(net)
    with torch.no_grad():
        worse.bias.add_(0.22)  # error .22 instead of .04
    training = settings(MAE, precision="bf16", loss="torch.nn.MSELoss", device="cpu")
    budget = Budget(baseline=0.04, drop=0.1, higher_is_better=False)
    file = to_onnx(worse.eval(), inputs[:8])
    verdict = certify_once(file, net, data, budget, training, ledger, alpha=0.05, score_range=(0, 10))
    assert verdict.baseline == pytest.approx(0.04, abs=0.005)
    assert not verdict.is_certified


def test_model_and_file_are_not_changed(ledger: CertificateLedger) -> None:
    baseline = Threshold(0.5)
    file = export_with_drop(0.01)
    before = file.SerializeToString()
    certify_once(file, baseline, split(100), BUDGET, settings(), ledger, alpha=0.05)
    assert baseline.training
    assert file.SerializeToString() == before
