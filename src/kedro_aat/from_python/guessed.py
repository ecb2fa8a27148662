"""Loss and metric that a caller left out, where the targets leave no doubt."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.errors import AatError, ConfigurationError
from kedro_aat.model_inputs import call_model
from kedro_aat.modes import evaluating
from kedro_aat.training.data import Data, as_dataset
from kedro_aat.training.loading.datasets import first_batch
from kedro_aat.training.loading.form import BatchForm
from kedro_aat.training.loading.settings import function_of
from kedro_aat.training.outputs import Outputs
from kedro_aat.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 64  # targets that are looked at

_ADVICE = (
    "Give metric=, such as torchmetrics.classification.MulticlassAccuracy(num_classes=10), "
    "torchmetrics.classification.BinaryAUROC() or torchmetrics.MeanSquaredError(squared=False); the budget is in its "
    "units."
)


def with_loss_and_metric(training: Mapping[str, Any], model: nn.Module, train: Data) -> dict[str, Any]:
    """Training settings with a loss and a metric.

    Integer targets, one for each example, are classes: cross-entropy and accuracy. Targets that are 0 or 1 beside one
    output are of one logit: binary cross-entropy and accuracy. For all other targets the metric must be given, since
    nobody knows what a drop of it is worth; without a loss they get the mean squared error.

    Args:
        training: Settings of the training, as plain data.
        model: The model; it stays as it is.
        train: Training split.

    Raises:
        ConfigurationError: If the metric must be given.
    """
    if "validate" in training or {"loss", "metric"} <= training.keys():
        return dict(training)
    loss, metric = _guess(TrainingSettings.model_validate(dict(training)), model, train)
    if "metric" not in training:
        if metric is None:
            raise ConfigurationError(
                "metric", [f"is missing, and the targets do not say which one is meant. {_ADVICE}"]
            )
        logger.info("No metric was given: the accuracy, since the targets are classes.")
        training = {"metric": metric, **training}
    if "loss" not in training:
        logger.info("No loss was given: %s, which fits the targets.", loss)
        training = {"loss": loss, **training}
    return dict(training)


def _guess(training: TrainingSettings, model: nn.Module, train: Data) -> tuple[Any, Any]:
    """Loss and metric as settings; no metric if it cannot be known."""
    outputs, targets = _batch(training, model, train)
    are_classes = targets.dim() == outputs.dim() - 1 and outputs.shape[1] > 1  # one output is a logit
    if are_classes and not targets.is_floating_point():
        classes = {"num_classes": outputs.shape[1], "average": "micro"}
        accuracy = {"class_path": "torchmetrics.classification.MulticlassAccuracy", "init_args": classes}
        return "torch.nn.CrossEntropyLoss", accuracy if targets.dim() == 1 else None
    if bool(((targets == 0) | (targets == 1)).all()):
        is_one = outputs.numel() == targets.numel() == len(targets)
        return "torch.nn.BCEWithLogitsLoss", "torchmetrics.classification.BinaryAccuracy" if is_one else None
    return "torch.nn.MSELoss", None


def _batch(training: TrainingSettings, model: nn.Module, train: Data) -> tuple[Tensor, Tensor]:
    """Outputs and targets of the first training examples."""
    collate = training.loader.collate_fn
    batch = first_batch(
        as_dataset(train, "training", training.batch), NUM_EXAMPLES, None if collate is None else function_of(collate)
    )
    inputs, targets = BatchForm(training.batch, model)(batch)
    try:
        on_cpu = copy.deepcopy(model).cpu()
        with evaluating(on_cpu), torch.no_grad():
            outputs = Outputs(training.output).main(call_model(on_cpu, inputs))
    except AatError:
        raise
    except Exception as error:
        raise ConfigurationError(
            "model",
            [f"cannot be called with the first {NUM_EXAMPLES} training examples. {type(error).__name__}: {error}"],
        ) from error
    if not isinstance(targets, Tensor):
        raise ConfigurationError("loss", [f"is missing, and the targets are a {type(targets).__name__}: give loss="])
    return outputs, targets
