"""The one reading of the test split: certifies the delivered file, or says why it cannot be certified."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass

from onnx import ModelProto
from torch import nn

from kedro_aat.budget import Budget
from kedro_aat.certificate import Certificate, certify, examples_to_certify
from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.delivery.deliver import evaluate_file
from kedro_aat.export.session import OnnxModel
from kedro_aat.tensors import hash_tensors
from kedro_aat.training.data import Data, data_fingerprint, example_count
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.runner import Evaluation, evaluate
from kedro_aat.training.settings import TrainingSettings


@dataclass(frozen=True)
class Verdict:
    """What the test split said.

    Attributes:
        baseline: The baseline's metric; None where the split had been read for another model.
        compressed: The returned model's metric; likewise.
        certificate: None where there is none to be had.
        words: The result in plain words.
    """

    baseline: float | None
    compressed: float | None
    certificate: Certificate | None
    words: str

    @property
    def is_certified(self) -> bool:
        """Whether the model keeps its budget, with confidence 1 - alpha."""
        return self.certificate is not None and self.certificate.is_certified


def certify_once(
    file: ModelProto,
    baseline: nn.Module,
    test_data: Data,
    budget: Budget,
    training: TrainingSettings,
    ledger: CertificateLedger,
    *,
    alpha: float,
) -> Verdict:
    """Tests the delivered file against its budget, on a split that is read for no other.

    Args:
        file: The ONNX model that is delivered.
        baseline: The uncompressed model.
        test_data: Examples that no choice was made by.
        budget: What was tolerated.
        training: Says how the metric is computed.
        ledger: Knows which splits were read.
        alpha: Accepted probability of certifying a model that breaks its budget.
    """
    split = data_fingerprint(test_data)
    subject: dict[str, str | float] = {
        "model": hashlib.blake2b(file.SerializeToString(deterministic=True), digest_size=16).hexdigest(),
        "baseline": hash_tensors(baseline.state_dict().items()),
        "metric": training.metric_name,
        "tolerated_drop": budget.drop,
        "alpha": alpha,
    }
    entry = ledger.claim(split, subject)
    if entry.subject != subject:
        differing = [key for key in subject if entry.subject.get(key) != subject[key]]
        return Verdict(None, None, None, _spent(entry.claimed, differing))
    if entry.result is not None:
        certificate = entry.result["certificate"]
        known = None if certificate is None else Certificate(**certificate)
        return Verdict(**{**entry.result, "certificate": known})
    before = _evaluate(baseline, test_data, training)
    after = evaluate_file(OnnxModel(file), test_data, training)
    verdict = _judge(before, after, budget, example_count(test_data), alpha)
    dumped = None if verdict.certificate is None else verdict.certificate.model_dump()
    ledger.record(split, {**vars(verdict), "certificate": dumped})
    return verdict


def _evaluate(model: nn.Module, test_data: Data, settings: TrainingSettings) -> Evaluation:
    model = copy.deepcopy(model)  # it may be moved to another device
    training = DefaultTraining(model, settings, None, test_data)
    return evaluate(model, training.callables().validate)


def _judge(before: Evaluation, after: Evaluation, budget: Budget, examples: int, alpha: float) -> Verdict:
    drop = budget.degradation(after.metric)
    certificate = None
    if before.scores is None or after.scores is None:
        words = (
            f"Not certified: a certificate needs a score an example, which this metric has not. On {examples:,} test "
            f"examples the drop is {drop:.4g}, and {budget.drop:.4g} is tolerated."
        )
    else:
        certificate = certify(
            before.scores.cpu().numpy(),
            after.scores.cpu().numpy(),
            tolerated_drop=budget.drop,
            higher_is_better=budget.higher_is_better,
            alpha=alpha,
        )
        words = _words(certificate)
    return Verdict(before.metric, after.metric, certificate, words)


def _words(certificate: Certificate) -> str:
    drop, tolerated, examples = certificate.estimated_drop, certificate.tolerated_drop, certificate.examples
    bound = f"below {certificate.upper_bound:.4g} with {1 - certificate.alpha:.0%} confidence"
    if certificate.is_certified:
        return (
            f"Certified: on {examples:,} test examples, which nothing was chosen by, the drop is {drop:.4g} and truly "
            f"{bound}; {tolerated:.4g} is tolerated."
        )
    if drop > tolerated:
        return (
            f"Not certified: on {examples:,} test examples the drop is {drop:.4g}, more than the tolerated "
            f"{tolerated:.4g}. On new data the model may well break its budget."
        )
    needed = examples_to_certify(certificate)
    if needed is None:
        more = "The drop is as large as tolerated, so no number of examples would certify it"
    else:
        more = f"If that is its true drop, about {needed:,} test examples certify it with a probability of 80%"
    return (
        f"Not certified: on {examples:,} test examples the drop is {drop:.4g}, but truly only {bound}, and "
        f"{tolerated:.4g} is tolerated. {more}."
    )


def _spent(claimed: str, differing: list[str]) -> str:
    names = " and ".join(differing).replace("_", " ")
    return (
        f"Not certified: the test split was read on {claimed[:10]} for another choice of {names}. What is chosen after "
        "that cannot be certified on it; a certificate takes test examples that were never read."
    )
