"""What the search `frontier` does with the data and the loss that a script registered for initialization."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from kedro_aat.compression.controller import CompressionController
from kedro_aat.compression.distillation import DistillationLoss
from kedro_aat.errors import DataError
from kedro_aat.model_inputs import ModelInputs, call_model, map_tensors, num_examples
from kedro_aat.modes import evaluating_with_gradients
from kedro_aat.nncf.config import NNCFConfig
from kedro_aat.training.batch_norms import adapt_batch_norms
from kedro_aat.training.default import NUM_SAMPLED_BATCHES
from kedro_aat.training.loading.form import BatchForm
from kedro_aat.training.loading.settings import BatchSettings

logger = logging.getLogger(__name__)


def callables_of(config: NNCFConfig, controller: CompressionController) -> dict[str, Any]:
    """Returns the fields of `Callables` that a search can have beside the functions that `run` gets.

    Args:
        config: The configuration, with what was registered.
        controller: The controller of the model that is searched.
    """
    found: dict[str, Any] = {}
    registered = _Registered(config, controller.model)
    if config.train_loader is not None and registered.num_samples:
        found["adapt"] = registered.adapt
    if config.train_loader is not None and config.criterion is not None:
        found["sample_gradients"] = registered.sample_gradients
    if isinstance(controller.loss, DistillationLoss):
        found["distill"] = found["state"] = _Switch(controller.loss)
    return found


def take_batches(loader: Iterable[Any], num_samples: int) -> Iterator[Any]:
    """Takes the first batches that have at least `num_samples` examples in total, or all batches."""
    num_taken = 0
    for batch in loader:
        if num_taken >= num_samples:
            return
        num_taken += num_examples(batch)
        yield batch


def inputs_of(batches: Iterable[Any], model: nn.Module, device: Any) -> Iterator[ModelInputs]:
    """Yields what a model is called with for each batch, in any structure, on a device.

    Args:
        batches: Inputs, tuples or lists that begin with them, or mappings and dataclasses, without their targets.
        model: The model.
        device: Where the inputs are needed.
    """
    form = BatchForm(BatchSettings(), model, "registered")
    return (_moved(_split(batch, form)[0], device) for batch in batches)


def _split(batch: Any, form: BatchForm) -> tuple[ModelInputs, Any]:
    """Inputs and targets of a batch; None for targets that it does not have."""
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        return batch[0], batch[1] if len(batch) == 2 else None
    with suppress(DataError):
        return form(batch)
    return (batch[0] if isinstance(batch, tuple) else batch), None


def _moved(values: Any, device: Any) -> Any:
    return map_tensors(lambda part: part.to(device), values)


class _Registered:
    """Runs the model on registered batches."""

    def __init__(self, config: NNCFConfig, model: nn.Module) -> None:
        self._config = config
        self._model = model
        self.num_samples = config.parsed.num_bn_adaptation_samples

    @property
    def _device(self) -> Any:
        return self._config.device or next(self._model.parameters()).device

    def adapt(self, model: nn.Module) -> None:
        """Recomputes the statistics of BatchNorms."""
        batches = take_batches(self._config.train_loader, self.num_samples)
        adapt_batch_norms(model, inputs_of(batches, self._model, self._device))

    def sample_gradients(self, observe: Callable[[], object]) -> None:
        """Computes the gradients of the first batches, (inputs, targets), and calls `observe` after each."""
        criterion, function = self._config.criterion, self._config.criterion_fn
        form = BatchForm(BatchSettings(), self._model, "registered")
        with evaluating_with_gradients(self._model):  # statistics stay as they are
            for batch in itertools.islice(self._config.train_loader, NUM_SAMPLED_BATCHES):
                inputs, targets = _split(batch, form)
                if not isinstance(targets, Tensor) and (function is None or targets is None):
                    # Hours are not lost for one of several importances.
                    logger.warning(
                        "taylor ranks as l2 does: it needs registered batches of (inputs, targets), but got %s. "
                        "Restrict search.tactics.importance to leave it out.",
                        type(batch).__name__,
                    )
                    break
                self._model.zero_grad(set_to_none=True)
                outputs = call_model(self._model, _moved(inputs, self._device))
                targets_there = _moved(targets, self._device)
                loss = function(outputs, targets_there, criterion) if function else criterion(outputs, targets_there)
                loss.backward()
                observe()
        self._model.zero_grad(set_to_none=True)


class _Switch:
    """Switches a distillation loss on or off; its state belongs to the checkpoints."""

    def __init__(self, loss: DistillationLoss) -> None:
        self._loss = loss

    def __call__(self, is_on: bool) -> None:
        self._loss.is_on = is_on

    def state_dict(self) -> dict[str, Any]:
        return {"distills": self._loss.is_on}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loss.is_on = state["distills"]
