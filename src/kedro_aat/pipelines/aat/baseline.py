"""Node that evaluates the baseline: everything that can be checked or said before training.

torch is imported when a node runs, so that listing pipelines stays fast.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kedro_aat.config import AatSettings
from kedro_aat.delivery.results import BaselineEvaluation, BudgetResult, MetricInfo, SplitSizes

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor
    from torch.nn import Module

    from kedro_aat.certificate import Forecast
    from kedro_aat.training.checkpoints import CheckpointStore
    from kedro_aat.training.data import Data
else:
    # Kedro resolves the type hints, and importing these takes seconds; see `search.py`.
    DataFrame = Module = Tensor = CheckpointStore = Forecast = Data = Any

logger = logging.getLogger(__name__)

# Evaluations of other baselines that are kept: pipelines of other namespaces may have the same store.
NUM_OTHER_BASELINES = 10


def evaluate_baseline(
    model: Module,
    train_data: Data,
    validation_data: Data,
    settings: AatSettings,
    checkpoint_store: CheckpointStore | None = None,
) -> tuple[BaselineEvaluation, DataFrame]:
    """Evaluates the uncompressed model, works out its budget, and forecasts the certificate.

    Everything that can be checked without training is checked here: import paths, splits, metric and budget.

    Args:
        model: The uncompressed model; it stays as it is.
        train_data: Training split.
        validation_data: Validation split.
        settings: Settings of the pipeline.
        checkpoint_store: Store in which the evaluation is kept, so that the same call does not repeat it; None keeps
            nothing.

    Returns:
        The evaluation, and a table with one `score` per validation example or, for a metric that is not a mean over
        examples, with the metric on each of the `resampled` splits.
    """
    import copy

    import pandas as pd

    from kedro_aat.delivery.finished import FinishedSteps, MetricValues, training_inputs
    from kedro_aat.training.data import data_fingerprint, example_count
    from kedro_aat.training.default import DefaultTraining
    from kedro_aat.training.dependence import dependence_warning
    from kedro_aat.training.groups import identity_of_groups
    from kedro_aat.training.random_state import seed_everything
    from kedro_aat.training.runner import evaluate

    settings.check()
    seed_everything(settings.seed)
    # A copy, because the model may be moved to another device and memory format.
    model = copy.deepcopy(model)
    training = DefaultTraining(model, settings.training, train_data, validation_data, seed=settings.seed)
    finished = FinishedSteps(
        checkpoint_store.root / "finished_steps" if checkpoint_store else None,
        validation_data=data_fingerprint(validation_data),
        **identity_of_groups(validation_data, settings.training.group),
        training=training_inputs(settings.training),
        seed=settings.seed,
    )
    validate, batch_size = training.callables().validate, settings.training.batch_size

    def validated() -> MetricValues:
        return MetricValues.of(evaluate(model, validate, batch_size=batch_size, subject="the baseline"))

    evaluation = finished.result("baseline", MetricValues, validated, model).evaluation()
    finished.remove_others(NUM_OTHER_BASELINES)
    if (dependence := dependence_warning(validation_data, groups=evaluation.groups)) is not None:
        logger.warning("%s", dependence)
    higher_is_better = settings.training.direction()
    assert higher_is_better is not None  # settings.check() made sure of it
    budget = settings.budget.budget(evaluation.metric, higher_is_better=higher_is_better)
    logger.info("Baseline metric %.4f; lowest tolerated %.4f", evaluation.metric, budget.lowest_tolerated)
    values = {"score": evaluation.scores} if evaluation.resampled is None else {"resampled": evaluation.resampled}
    scores = {name: [] if value is None else value.tolist() for name, value in values.items()}
    sizes = SplitSizes(training=example_count(train_data), validation=example_count(validation_data))
    result = BaselineEvaluation(
        metric=MetricInfo(name=settings.training.metric_name, higher_is_better=higher_is_better),
        validation=evaluation.metric,
        budget=BudgetResult.model_validate(budget),
        forecast=forecast_certificate(evaluation.scores, budget.drop, sizes.validation, settings),
        examples=sizes,
    )
    return result, pd.DataFrame(scores, dtype="float64")


def forecast_certificate(
    scores: Tensor | None, tolerated_drop: float, num_validation: int, settings: AatSettings
) -> Forecast | None:
    """Logs what to expect of the certificate.

    Args:
        scores: One score per validation example, (N,); None for a metric without such scores.
        tolerated_drop: The budget, in metric units.
        num_validation: Number of validation examples.
        settings: Settings of the pipeline.

    Returns:
        The forecast; None if it is unknown before training.
    """
    from kedro_aat.certificate import forecast

    if scores is None:
        logger.warning("The outcome cannot be certified, because the metric has no score per example.")
        return None
    if not bool(((scores == 0) | (scores == 1)).all()):
        return None  # how much such scores will differ is unknown
    expected = forecast(settings.certificate, tolerated_drop, num_validation)
    if expected is not None:
        logger.info("%s", expected)
        if expected.num_validation_needed > num_validation:
            logger.warning(
                "%d validation examples cannot resolve the budget of %.4g: they measure a drop with a standard error "
                "of about %.2g. %d examples would bring it to a third of the budget.",
                num_validation,
                tolerated_drop,
                expected.validation_standard_error,
                expected.num_validation_needed,
            )
    return expected
