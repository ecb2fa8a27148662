"""Which of a model's outputs loss and metric read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from kedro_aat.errors import ConfigurationError
from kedro_aat.model_inputs import named_tensors

# Names that say by themselves which output is the main one: of Hugging Face, and of torchvision's segmentation.
MAIN_NAMES = ("logits", "out")

logger = logging.getLogger(__name__)

Loss = Callable[[Any, Any], Tensor]


class Outputs:
    """Reads the outputs of a model.

    Without a setting, loss and metric read the only tensor, or the one named `logits` or `out`; or, of a model that
    returns one tensor in evaluation mode and several in training mode, the first. A single tensor is always read.

    Args:
        setting: Path of one output, such as `logits` or `0`; paths of several, all of which the loss takes in a list;
            or the weights of several by their paths, by which the loss of each is multiplied. The metric reads the
            first.
    """

    def __init__(self, setting: str | list[str] | Mapping[str, float] | None) -> None:
        self._paths = [setting] if isinstance(setting, str) else list(setting or ())
        self._weights = dict(setting) if isinstance(setting, Mapping) else None
        self._is_list = isinstance(setting, list)
        self._default: str | None = None

    def main(self, outputs: Any, in_evaluation: Callable[[], Any] | None = None) -> Tensor:
        """The output that the metric reads.

        Args:
            outputs: What the model returned.
            in_evaluation: Returns what the model returns for the same inputs in evaluation mode; None if this is it.

        Raises:
            ConfigurationError: If it is not known which one, or there is none of that name; lists the outputs.
        """
        if isinstance(outputs, Tensor):
            return outputs
        found = _found(outputs)
        if self._paths:
            return self._named(found, self._paths[0])
        if len(found) == 1:
            return next(iter(found.values()))
        if self._default not in found:
            self._default = _default(found, in_evaluation)
        return found[self._default]

    def loss(self, compute: Loss, outputs: Any, targets: Any, in_evaluation: Callable[[], Any] | None = None) -> Tensor:
        """The loss of the outputs that it reads, a scalar.

        Args:
            compute: The loss function.
            outputs: What the model returned.
            targets: Targets of the batch.
            in_evaluation: As for `main`.
        """
        if isinstance(outputs, Tensor) or len(self._paths) < 2:
            main = self.main(outputs, in_evaluation)
            return compute([main] if self._is_list else main, targets)
        found = _found(outputs)
        read = [self._named(found, path) for path in self._paths]
        if self._weights is None:
            return compute(read, targets)
        losses = [weight * compute(each, targets) for weight, each in zip(self._weights.values(), read, strict=True)]
        return sum(losses[1:], losses[0])

    def learned(self, outputs: Any, in_evaluation: Callable[[], Any] | None = None) -> dict[str, Tensor]:
        """The outputs that a teacher teaches, by path: those of several that the loss reads, or the only one.

        Args:
            outputs: What the model returned, or the teacher, which lacks heads that a model has in training only.
            in_evaluation: As for `main`.
        """
        if isinstance(outputs, Tensor) or len(self._paths) < 2:
            return {self._paths[0] if self._paths else "": self.main(outputs, in_evaluation)}
        found = _found(outputs)
        return {path: found[path] for path in self._paths if path in found} or {"": self.main(outputs)}

    def weight(self, path: str) -> float:
        """The weight of an output in the loss."""
        return 1.0 if self._weights is None else self._weights.get(path, 1.0)

    def _named(self, found: Mapping[str, Tensor], path: str) -> Tensor:
        if path not in found:
            raise ConfigurationError(
                "training", [f"output: the model has no output {path}; its {len(found)} outputs are {_listed(found)}"]
            )
        return found[path]


def _found(outputs: Any) -> dict[str, Tensor]:
    """The outputs by path, without single numbers such as a loss that the model computes itself."""
    named = dict(named_tensors(outputs))
    return {path: tensor for path, tensor in named.items() if tensor.dim()} or named


def _default(found: Mapping[str, Tensor], in_evaluation: Callable[[], Any] | None) -> str:
    for name in MAIN_NAMES:
        if name in found:
            return name
    if found and in_evaluation is not None:
        alone = _found(in_evaluation())
        first = next(iter(found))
        if len(alone) == 1 and next(iter(alone.values())).shape[1:] == found[first].shape[1:]:
            others = [path for path in found if path != first]
            logger.info(
                "The model returns %d outputs in training and one in evaluation: the loss reads the first. To count "
                "others, too, set training.output, such as {%s: 1.0, %s: 0.4}.",
                len(found),
                first,
                others[0],
            )
            return first
    raise ConfigurationError(
        "training",
        [
            f"output: the model returns {len(found)} tensors, and it is not known which one loss and metric read; set "
            f"it to one of these paths: {_listed(found)}"
        ],
    )


def _listed(found: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{path} {tuple(tensor.shape)}" for path, tensor in found.items()) or "none"
