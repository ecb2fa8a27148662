"""Reads the test split, once: certifies the delivered file, or says why it cannot be certified."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence

from onnx import ModelProto
from pydantic import Field
from torch import nn

from kedro_aat.budget import Budget, GuardSettings
from kedro_aat.certificate import Certificate, examples_to_certify
from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.delivery.certificate_result import CertificateResult
from kedro_aat.delivery.files import evaluate_file, files_of
from kedro_aat.delivery.guard_results import both_defined
from kedro_aat.delivery.measurements import Result
from kedro_aat.errors import DataError, ExportError, MetricError, UserFunctionError
from kedro_aat.export.session import FileModel, OnnxModel
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.registry import TARGETS, TargetName, target_of
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.tensors import hash_tensors
from kedro_aat.training.checks.dependence import dependence_warning
from kedro_aat.training.data import Data, example_count, example_input
from kedro_aat.training.fingerprints.split_hash import former_fingerprints, split_fingerprint
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.scoring.groups import groups_of
from kedro_aat.training.scoring.scores import certify_evaluations, standard_error_of
from kedro_aat.training.settings import TrainingSettings

WITHHELD = (
    "Not certified yet: the test split was left unread. `kedro aat certify` certifies the delivered model, once; from "
    "Python, the same call with `test` does."
)


class Verdict(Result):
    """What the test split says about a model.

    Attributes:
        baseline: Metric of the baseline's file; None if the split was already read for another model.
        compressed: Metric of the delivered file; None in the same case.
        standard_error: Standard error of their difference; None if unknown.
        guards: Values of each guard, of the baseline and of the delivered file, where both are defined on the split.
        certificate: None if there is none to be had.
        words: The result in plain words.
    """

    baseline: float | None = None
    compressed: float | None = None
    standard_error: float | None = None
    guards: dict[str, tuple[float, float]] = Field(default_factory=dict)
    certificate: Certificate | None = None
    words: str

    @property
    def is_certified(self) -> bool:
        """Whether the model keeps its budget, with confidence 1 - alpha."""
        return self.certificate is not None and self.certificate.is_certified

    @property
    def is_final(self) -> bool:
        """Whether the scores were tested. Versions before 0.2.0, which knew no range of scores, wrote no error."""
        tested = self.certificate
        return tested is not None and tested.kind is not None and tested.standard_error is not None

    @property
    def result(self) -> CertificateResult:
        """The same as one flat table, for the catalog."""
        fields = {"standard_error": self.standard_error}
        return CertificateResult(
            baseline=self.baseline,
            compressed=self.compressed,
            guards=self.guards,
            is_certified=self.is_certified,
            words=self.words,
            **(fields | (self.certificate.model_dump() if self.certificate else {})),
        )


def certify_once(
    file: ModelProto | TargetFile,
    baseline: nn.Module,
    test_data: Data,
    budget: Budget,
    training: TrainingSettings,
    ledger: CertificateLedger,
    *,
    alpha: float,
    score_range: tuple[float, float] | None = None,
    guards: Sequence[GuardSettings] = (),
    export: ExportSettings | None = None,
) -> Verdict:
    """Tests the delivered file against its budget, on a test split that is read for no other model.

    The baseline is exported, and both files are run by the same runtime in the same precision.

    Args:
        file: The delivered file: ONNX's, or another target's.
        baseline: The uncompressed model.
        test_data: Examples on which nothing was chosen.
        budget: The accuracy budget.
        training: Settings that define the metric.
        ledger: Remembers for which model each split was read.
        alpha: Accepted probability of certifying a model that breaks its budget.
        score_range: Lowest and highest possible score of an example; None takes what is known of the metric.
        guards: Further metrics, which are measured and not certified.
        export: Settings with which the file was exported; None for the defaults.
    """
    groups_of(test_data, training.group, "test")  # whose mistakes must not cost the split
    split = split_fingerprint(test_data, training.batch)
    subject: dict[str, str | float] = {
        "model": hashlib.blake2b(_contents(file), digest_size=16).hexdigest(),
        "baseline": hash_tensors(baseline.state_dict().items()),
        "metric": training.metric_name,
        "tolerated_drop": budget.drop,
        "alpha": alpha,
        **({} if training.group is None else {"group": training.group}),
    }
    if training.metric is not None:  # micro and macro accuracy have the same name
        subject["metric_variant"] = json.dumps(training.metric.model_dump(mode="json")["init_args"], sort_keys=True)

    def export_baseline() -> ModelProto | TargetFile:
        inputs = example_input(test_data, training=training, model=baseline)
        target: TargetName = file.target if isinstance(file, TargetFile) else "onnx"
        model = copy.deepcopy(baseline).cpu().eval()
        return files_of(model, inputs, export or ExportSettings(), [target]).of(target)

    baseline_file = None  # a verdict that is known needs none
    if (entry := ledger.find(split)) is None:
        baseline_file = export_baseline()  # what can fail without the test split fails before the split is claimed
        entry = ledger.claim(split, subject, also_known_as=former_fingerprints(test_data, training.batch))
    # Versions before 0.2.0 did not record the variant.
    known_subject = {"metric_variant": subject.get("metric_variant"), **entry.subject}
    if differing := [key for key in {**subject, **entry.subject} if known_subject.get(key) != subject.get(key)]:
        return Verdict(words=_already_read(entry.claimed, differing))
    if entry.result is not None and (known := Verdict.model_validate(entry.result)).is_final:
        return known
    if baseline_file is None:
        baseline_file = export_baseline()
    try:
        before, after = (evaluate_file(_opened(each), test_data, training, guards) for each in (baseline_file, file))
    except (MetricError, DataError, ExportError, UserFunctionError) as error:  # the report must not be lost
        verdict = Verdict(words=f"Not certified: {error}")
    else:
        verdict = _judge(before, after, budget, example_count(test_data), alpha, score_range)
        if (dependence := dependence_warning(test_data, "test", before.groups, training)) is not None:
            verdict = verdict.model_copy(update={"words": f"{verdict.words} {dependence}"})
        if isinstance(file, TargetFile):
            measured = f"Measured on the files for {TARGETS[file.target].title}."
            verdict = verdict.model_copy(update={"words": f"{verdict.words} {measured}"})
    ledger.record(split, verdict.model_dump())
    return verdict


def _contents(file: ModelProto | TargetFile) -> bytes:
    """The bytes that tell one file from another."""
    if isinstance(file, ModelProto):
        contents: bytes = file.SerializeToString(deterministic=True)
        return contents
    return b"".join(file.parts.values())


def _opened(file: ModelProto | TargetFile) -> FileModel:
    return OnnxModel(file) if isinstance(file, ModelProto) else target_of(file.target).read_back(file)


def _judge(
    before: Evaluation,
    after: Evaluation,
    budget: Budget,
    num_examples: int,
    alpha: float,
    score_range: tuple[float, float] | None = None,
) -> Verdict:
    """What both files' metrics on the test split say. The baseline's metric on another split does not count."""
    drop = budget.degradation(after.metric) - budget.degradation(before.metric)
    standard_error = standard_error_of(before, after)
    certificate = None
    try:
        certificate = certify_evaluations(before, after, budget, alpha, score_range)
        reason = "this metric has no score per example" if certificate is None else certificate.reason
    except DataError as error:  # scores out of their range, and what else the examples show first
        reason = str(error)
    if certificate is not None and reason is None:
        words = certificate_words(certificate)
    else:
        precision = "" if standard_error is None else f", standard error {standard_error:.2g}"
        words = (
            f"Measured drop {drop:.4g} on {num_examples:,} test examples{precision}, budget {budget.drop:.4g}: "
            f"not certified, because {reason}."
        )
    return Verdict(
        baseline=before.metric,
        compressed=after.metric,
        standard_error=standard_error,
        guards=both_defined(before.also, after.also, budget),
        certificate=certificate,
        words=words,
    )


def certificate_words(certificate: Certificate) -> str:
    """What a certificate says, in plain words."""
    measured = (
        f"Measured drop {certificate.estimated_drop:.4g} ({1 - certificate.alpha:.0%} upper bound "
        f"{certificate.upper_bound:.4g}, {certificate.examples:,} test examples"
        f"{f' in {certificate.groups:,} groups' if certificate.groups else ''})"
    )
    counted = "groups" if certificate.groups else "examples"
    level = ""
    if certificate.kind == "asymptotic":
        level = (
            f" The test is asymptotic: that it errs in at most {certificate.alpha:.0%} of cases was shown by "
            f"simulations, from {certificate.holds_from:,} such {counted} on, and is no proof."
        )
    budget = f"the budget of {certificate.tolerated_drop:.4g}"
    if certificate.is_certified:
        return f"{measured} is within {budget}: certified. Nothing was chosen on these examples.{level}"
    if certificate.estimated_drop > certificate.tolerated_drop:
        return f"{measured} exceeds {budget}: not certified. Expect the model to break its budget on new data."
    needed = examples_to_certify(certificate)
    if needed is None:
        advice = "The measured drop is as large as the budget, so no number of examples would certify it."
    else:
        size = f"{needed:,} test {counted}"
        advice = f"If the measured drop is the true one, about {size} would certify it in 80 of 100 cases."
    return f"{measured} is within {budget}, but the upper bound exceeds it: not certified. {advice}"


def _already_read(claimed: str, differing: list[str]) -> str:
    names = " and ".join(differing).replace("_", " ")
    return (
        f"Not certified: the test split was already read on {claimed[:10]} for a different {names}. A model that is "
        "chosen after that cannot be certified on it; use test examples that were never read."
    )
