"""The loss of the task: targets as the loss takes them, and examples by their weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kedro_aat.errors import ConfigurationError
from kedro_aat.training.compiling import compiled_if_large
from kedro_aat.training.target_forms import TargetForm


@dataclass(frozen=True)
class Weighted:
    """Targets of training examples that count by weights.

    Attributes:
        targets: The targets, in any structure.
        weights: Weight of each example, (N,) or (N, 1).
    """

    targets: Any
    weights: Tensor


class TaskLoss:
    """Computes the loss of a batch.

    Args:
        loss: Called as `loss(outputs, targets)`. With weights, it must have an attribute `reduction`, as torch's losses
            have, or return one number per example.
        is_compiled: Whether a loss of torch is compiled for large outputs, if examples have no weights.
    """

    def __init__(self, loss: Callable[..., Tensor], *, is_compiled: bool = False) -> None:
        self._loss = self._without_weights = loss
        if is_compiled and type(loss).__module__ == "torch.nn.modules.loss":
            self._without_weights = compiled_if_large(loss)
        self._form = TargetForm(loss)

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The loss, a scalar; with weights, the mean over the examples of weight times loss.

        Args:
            outputs: Outputs that the loss reads.
            targets: The targets, or `Weighted` ones.

        Raises:
            ConfigurationError: If examples have weights, and the loss gives no number for each of them.
        """
        if not isinstance(targets, Weighted):
            return self._without_weights(*self._form(outputs, targets))
        weights = targets.weights.reshape(len(targets.weights), -1)
        loss = self._loss
        if hasattr(loss, "reduction"):
            loss = copy.copy(loss)
            vars(loss)["reduction"] = "none"
        losses = loss(*self._form(outputs, targets.targets))
        if weights.shape[1] != 1 or losses.shape[:1] != weights.shape[:1]:
            raise ConfigurationError(
                "training",
                [
                    f"batch.weights: the weights have the shape {tuple(targets.weights.shape)} and the losses "
                    f"{tuple(losses.shape)}, but there must be one weight for each example, and the loss must have "
                    "an attribute `reduction` or return one number for each example"
                ],
            )
        return (losses.reshape(len(losses), -1).mean(1) * weights[:, 0]).mean()
