"""Nodes before training: the rehearsal, and the evaluation of the baseline.

torch is imported when a node runs, so that listing pipelines stays fast.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from kedro_aat.config import AatSettings
from kedro_aat.delivery.guard_results import GuardResult
from kedro_aat.delivery.rehearsal_result import RehearsalResult
from kedro_aat.delivery.results import BaselineEvaluation, BudgetResult, MetricInfo, SplitSizes

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch.nn import Module

    from kedro_aat.budget import Budget
    from kedro_aat.certificate.ledger import CertificateLedger
    from kedro_aat.training.checkpoints import CheckpointStore
    from kedro_aat.training.data import Data
    from kedro_aat.training.runner import Evaluation
else:
    # Kedro resolves the type hints, and importing these takes seconds; see `search.py`.
    DataFrame = Module = CertificateLedger = CheckpointStore = Budget = Data = Evaluation = Any

logger = logging.getLogger(__name__)

# Evaluations of other baselines that are kept: pipelines of other namespaces may have the same store.
NUM_OTHER_BASELINES = 10


def rehearse(
    model: Module,
    train_data: Data,
    validation_data: Data,
    settings: AatSettings,
    checkpoint_store: CheckpointStore | None = None,
) -> RehearsalResult:
    """Does everything that the run will do, once and in small, so that what cannot work is said before the search.

    Args:
        model: The uncompressed model; it stays as it is.
        train_data: Training split.
        validation_data: Validation split.
        settings: Settings of the pipeline.
        checkpoint_store: Store in which it is kept that the rehearsal has passed, so that it is not repeated; None
            keeps nothing.

    Raises:
        RehearsalError: Lists everything that fails.
    """
    from kedro_aat.rehearsal.rehearse import rehearse as do_once

    return do_once(model, train_data, validation_data, settings, checkpoint_store)


def evaluate_baseline(
    model: Module,
    train_data: Data,
    validation_data: Data,
    settings: AatSettings,
    checkpoint_store: CheckpointStore | None = None,
    rehearsal: Any = None,
    certificate_ledger: CertificateLedger | None = None,
) -> tuple[BaselineEvaluation, DataFrame]:
    """Evaluates the uncompressed model, works out its budget, forecasts the certificate, and registers the baseline.

    Everything that can be checked without training is checked here: import paths, splits, targets, metric and budget.

    Args:
        model: The uncompressed model; it stays as it is.
        train_data: Training split.
        validation_data: Validation split.
        settings: Settings of the pipeline.
        checkpoint_store: Store in which the evaluation is kept, so that the same call does not repeat it; None keeps
            nothing.
        rehearsal: Not read. As an input it makes sure that what cannot work is found first.
        certificate_ledger: Ledger in which the baseline is registered, so that one that is lost until the certificate
            is told from a new one; None registers nothing. The test split is not read.

    Returns:
        The evaluation, and a table with one `score` per validation example or, for a metric that is not a mean over
        examples, with the metric on each of the `resampled` splits.

    Raises:
        LostLedgerError: If the ledger does not know the baseline, although it was registered in it before.
    """
    import copy

    import pandas as pd

    from kedro_aat.compression.compressible import compressible
    from kedro_aat.compression.frozen import trainable_parameters
    from kedro_aat.delivery.expected_certificate import expected_certificate
    from kedro_aat.delivery.finished import FinishedSteps, MetricValues, training_inputs
    from kedro_aat.delivery.registration import register
    from kedro_aat.training.checks.baseline import BaselineCheck
    from kedro_aat.training.checks.dependence import dependence_warning
    from kedro_aat.training.class_names import class_names_of
    from kedro_aat.training.data import data_fingerprint, example_count
    from kedro_aat.training.default import DefaultTraining
    from kedro_aat.training.random_state import seed_everything
    from kedro_aat.training.runner import evaluate
    from kedro_aat.training.scoring.groups import identity_of_groups

    settings.check()
    model = compressible(model)
    trainable_parameters(model)  # or there is nothing to search for
    seed_everything(settings.seed)
    # A copy, because the model may be moved to another device and memory format.
    model = copy.deepcopy(model)
    guards = settings.budget.also
    training = DefaultTraining(model, settings.training, train_data, validation_data, seed=settings.seed, guards=guards)
    hashes = checkpoint_store.file_hashes if checkpoint_store else None
    split = data_fingerprint(validation_data, hashes, settings.training.batch)
    # Nothing is searched for if the ledger was lost.
    registration = register(certificate_ledger, checkpoint_store, model, split)
    finished = FinishedSteps(
        checkpoint_store.root / "finished_steps" if checkpoint_store else None,
        validation_data=split,
        **identity_of_groups(validation_data, settings.training.group),
        training=training_inputs(settings.training, guards),
        seed=settings.seed,
    )
    validate, batch_size = training.callables().validate, settings.training.batch_size
    higher_is_better = settings.training.direction()
    assert higher_is_better is not None  # settings.check() made sure of it

    def validated() -> MetricValues:
        check = BaselineCheck(settings.training, validation_data)
        training.observe = check.see if settings.training.baseline_check != "off" else None
        evaluation = evaluate(model, validate, batch_size=batch_size, subject="the baseline")
        check.judge(evaluation, higher_is_better=higher_is_better)
        return MetricValues.of(evaluation)

    evaluation = finished.result("baseline", MetricValues, validated, model).evaluation()
    finished.remove_others(NUM_OTHER_BASELINES)
    if (
        dependence := dependence_warning(validation_data, groups=evaluation.groups, training=settings.training)
    ) is not None:
        logger.warning("%s", dependence)
    budget = settings.budget.budget(evaluation.metric, higher_is_better=higher_is_better, also=evaluation.also)
    _log_budget(budget)
    values = {"score": evaluation.scores} if evaluation.resampled is None else {"resampled": evaluation.resampled}
    scores = {name: [] if value is None else value.tolist() for name, value in values.items()}
    sizes = SplitSizes(training=training.num_train_examples, validation=example_count(validation_data))
    metric = settings.training.metric_name
    expected = expected_certificate(evaluation, metric, budget, sizes.validation, settings.certificate)
    logger.info("%s", expected.words, extra={"markup": False})  # Kedro's handler would remove what is in brackets
    if expected.forecast is not None:
        _warn_if_unresolved(evaluation, expected.forecast.validation_standard_error, budget, sizes.validation)
    result = BaselineEvaluation(
        metric=MetricInfo(name=metric, higher_is_better=higher_is_better),
        validation=evaluation.metric,
        budget=BudgetResult.model_validate(budget),
        forecast=expected.forecast,
        expected_certificate=expected.words,
        examples=sizes,
        guards=[GuardResult.model_validate(guard) for guard in budget.also],
        class_names=class_names_of(validation_data),
        registration=registration,
    )
    return result, pd.DataFrame(scores, dtype="float64")


def _log_budget(budget: Budget) -> None:
    logger.info("Baseline metric %.4f; %s %.4f", budget.baseline, budget.limit_in_words, budget.lowest_tolerated)
    for guard in budget.also:
        limit = guard.limit_in_words, guard.lowest_tolerated
        logger.info("Guard %s %.4f; %s %.4f", guard.name, guard.baseline, *limit)


def _warn_if_unresolved(evaluation: Evaluation, standard_error: float, budget: Budget, num_examples: int) -> None:
    """Warns if the validation split cannot resolve the budget.

    Args:
        evaluation: The baseline on the validation split, with its scores.
        standard_error: What a drop has, if some examples lose or win as much as one can.
        budget: The accuracy budget.
        num_examples: Number of validation examples.
    """
    from kedro_aat.training.records import LARGEST_RESOLVING_ERROR

    assert evaluation.scores is not None  # or there is no standard error
    scores = evaluation.scores.double()
    if not ((scores == 0) | (scores == 1)).all():
        # Scores between the extremes rarely change that much. The drop of a model that is like its baseline varies less
        # than the metric itself does.
        standard_error = min(standard_error, float(scores.std()) / math.sqrt(num_examples))
    needed = math.ceil(num_examples * (standard_error / (LARGEST_RESOLVING_ERROR * budget.drop)) ** 2)
    if needed > num_examples:
        logger.warning(
            "%s validation examples cannot resolve the budget of %.4g: they measure a drop with a standard error "
            "of about %.2g. %s examples would bring it to a third of the budget.",
            f"{num_examples:,}",
            budget.drop,
            standard_error,
            f"{needed:,}",
        )
