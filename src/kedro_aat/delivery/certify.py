"""Reads the test split, once: certifies the delivered file, or says why it cannot be certified."""

from __future__ import annotations

import copy
import hashlib

from onnx import ModelProto
from torch import nn

from kedro_aat.budget import Budget
from kedro_aat.certificate import Certificate, examples_to_certify
from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.delivery.files import evaluate_file
from kedro_aat.delivery.measurements import Result
from kedro_aat.delivery.results import CertificateResult
from kedro_aat.export.session import OnnxModel
from kedro_aat.tensors import hash_tensors
from kedro_aat.training.data import Data, example_count
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.groups import groups_of
from kedro_aat.training.runner import Evaluation, evaluate
from kedro_aat.training.scores import certify_evaluations
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.training.split_hash import former_fingerprint, split_fingerprint


class Verdict(Result):
    """What the test split says about a model.

    Attributes:
        baseline: Metric of the baseline; None if the split was already read for another model.
        compressed: Metric of the delivered file; None in the same case.
        certificate: None if there is none to be had.
        words: The result in plain words.
    """

    baseline: float | None = None
    compressed: float | None = None
    certificate: Certificate | None = None
    words: str

    @property
    def is_certified(self) -> bool:
        """Whether the model keeps its budget, with confidence 1 - alpha."""
        return self.certificate is not None and self.certificate.is_certified

    @property
    def result(self) -> CertificateResult:
        """The same as one flat table, for the catalog."""
        return CertificateResult(
            baseline=self.baseline,
            compressed=self.compressed,
            is_certified=self.is_certified,
            words=self.words,
            **(self.certificate.model_dump() if self.certificate else {}),
        )


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
    """Tests the delivered file against its budget, on a test split that is read for no other model.

    Args:
        file: The delivered ONNX model.
        baseline: The uncompressed model.
        test_data: Examples on which nothing was chosen.
        budget: The accuracy budget.
        training: Settings that define the metric.
        ledger: Remembers for which model each split was read.
        alpha: Accepted probability of certifying a model that breaks its budget.
    """
    groups_of(test_data, training.group, "test")  # whose mistakes must not cost the split
    split = split_fingerprint(test_data)
    subject: dict[str, str | float] = {
        "model": hashlib.blake2b(file.SerializeToString(deterministic=True), digest_size=16).hexdigest(),
        "baseline": hash_tensors(baseline.state_dict().items()),
        "metric": training.metric_name,
        "tolerated_drop": budget.drop,
        "alpha": alpha,
        **({} if training.group is None else {"group": training.group}),
    }
    entry = ledger.claim(split, subject, also_known_as=[former_fingerprint(test_data)])
    if entry.subject != subject:
        differing = [key for key in {**subject, **entry.subject} if entry.subject.get(key) != subject.get(key)]
        return Verdict(words=_already_read(entry.claimed, differing))
    if entry.result is not None:
        return Verdict.model_validate(entry.result)
    before = _evaluate(baseline, test_data, training)
    after = evaluate_file(OnnxModel(file), test_data, training)
    verdict = _judge(before, after, budget, example_count(test_data), alpha)
    ledger.record(split, verdict.model_dump())
    return verdict


def _evaluate(model: nn.Module, test_data: Data, settings: TrainingSettings) -> Evaluation:
    model = copy.deepcopy(model)  # it may be moved to another device
    training = DefaultTraining(model, settings, None, test_data)
    return evaluate(model, training.callables().validate, batch_size=training.settings.batch_size)


def _judge(before: Evaluation, after: Evaluation, budget: Budget, num_examples: int, alpha: float) -> Verdict:
    drop = budget.degradation(after.metric)
    certificate = certify_evaluations(before, after, budget, alpha)
    if certificate is None:
        words = (
            f"Measured drop {drop:.4g} on {num_examples:,} test examples, budget {budget.drop:.4g}: not certified, "
            "because this metric has no score per example. Use a metric that is a mean over examples."
        )
    else:
        words = _words(certificate)
    return Verdict(baseline=before.metric, compressed=after.metric, certificate=certificate, words=words)


def _words(certificate: Certificate) -> str:
    measured = (
        f"Measured drop {certificate.estimated_drop:.4g} ({1 - certificate.alpha:.0%} upper bound "
        f"{certificate.upper_bound:.4g}, {certificate.examples:,} test examples)"
    )
    budget = f"the budget of {certificate.tolerated_drop:.4g}"
    if certificate.is_certified:
        return f"{measured} is within {budget}: certified. Nothing was chosen on these examples."
    if certificate.estimated_drop > certificate.tolerated_drop:
        return f"{measured} exceeds {budget}: not certified. Expect the model to break its budget on new data."
    needed = examples_to_certify(certificate)
    if needed is None:
        advice = "The measured drop is as large as the budget, so no number of examples would certify it."
    else:
        advice = f"If the measured drop is the true one, about {needed:,} test examples would certify it (power 80%)."
    return f"{measured} is within {budget}, but the upper bound exceeds it: not certified. {advice}"


def _already_read(claimed: str, differing: list[str]) -> str:
    names = " and ".join(differing).replace("_", " ")
    return (
        f"Not certified: the test split was already read on {claimed[:10]} for a different {names}. A model that is "
        "chosen after that cannot be certified on it; use test examples that were never read."
    )
