"""Knowledge distillation: a loss that keeps a model's outputs close to those it had before compression."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from kedro_aat.compression.controller import CompressionLoss
from kedro_aat.compression.quantization.calls import is_floating
from kedro_aat.compression.settings import KnowledgeDistillation
from kedro_aat.errors import ModelError

_TEACHER = "_aat_teacher."  # prefix of the teacher's tensors in the model's state_dict


class DistillationLoss(CompressionLoss):
    """Compares a model's last outputs in training mode with those of a frozen copy, the teacher, on the same inputs.

    `softmax` is the `softened_divergence`, or with `nncf_loss` the `softened_cross_entropy`, and `mse` the mean squared
    difference. If the model returns several floating-point tensors, their losses are summed. In evaluation mode the
    loss is 0.

    The teacher's tensors are in the model's `state_dict`, so that a model that is rebuilt and loaded has the same
    teacher. A state without them leaves the teacher unchanged.

    Args:
        model: The model before anything else was attached to it; it gets hooks.
        settings: Settings of the loss.

    Attributes:
        is_on: Whether outputs are compared at all; a search may try without.
    """

    def __init__(self, model: nn.Module, settings: KnowledgeDistillation) -> None:
        super().__init__()
        self.settings = settings
        self.is_on = True
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self._last: tuple[tuple[Any, ...], dict[str, Any], list[Tensor]] | None = None
        self._hooks = [
            model.register_forward_hook(self._after_forward, with_kwargs=True),
            model._register_state_dict_hook(self._add_teacher),
            model.register_load_state_dict_pre_hook(self._take_teacher),
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the last outputs: they belong to an autograd graph, which cannot be copied."""
        return self.__dict__ | {"_last": None}

    def train(self, mode: bool = True) -> DistillationLoss:
        """Sets the mode of the loss; the teacher stays in evaluation mode."""
        self.training = mode
        return self

    def detach(self) -> None:
        """Removes the hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    def _after_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        is_training = model.training and torch.is_grad_enabled()
        self._last = (args, kwargs, list(filter(is_floating, tree_leaves(output)))) if is_training else None

    def _add_teacher(self, model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state.update({f"{prefix}{_TEACHER}{name}": tensor for name, tensor in self.teacher.state_dict().items()})

    def _take_teacher(self, model: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
        start = prefix + _TEACHER
        names = [name for name in state if name.startswith(start)]
        if names:
            self.teacher.load_state_dict({name.removeprefix(start): state.pop(name) for name in names})

    def forward(self) -> Tensor:
        """Returns a scalar to add to the task's loss, multiplied by `scale`.

        Raises:
            ModelError: If the loss is `softmax` and the model returns a tensor without a dimension for classes.
        """
        if self._last is None or not self.is_on:
            return super().forward()
        args, kwargs, outputs = self._last
        with torch.no_grad():
            teacher = self.teacher.to(outputs[0].device) if outputs else self.teacher
            expected = list(filter(is_floating, tree_leaves(teacher(*args, **kwargs))))
        pairs = list(zip(outputs, expected, strict=True))
        if self.settings.nncf_loss:
            pairs = [pair for pair in pairs if pair[0].ndim > 1]
        terms = [self._compare(*(tensor.float() for tensor in pair)) for pair in pairs]
        return self.settings.scale * torch.stack(terms).sum() if terms else super().forward()

    def _compare(self, outputs: Tensor, expected: Tensor) -> Tensor:
        if self.settings.type == "mse":
            return F.mse_loss(outputs, expected)
        compare = softened_cross_entropy if self.settings.nncf_loss else softened_divergence
        return compare(outputs, expected, self.settings.temperature)


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns the Kullback-Leibler divergence of softened probabilities, averaged over all predictions.

    It is multiplied by the squared temperature, so that the gradients have the same size at any temperature (Hinton,
    Vinyals and Dean 2015, arXiv:1503.02531, section 2).

    Args:
        student: Logits of the model that learns, (B, C, ...).
        teacher: Logits of its teacher, (B, C, ...).
        temperature: Divisor of the logits, above 0.

    Raises:
        ModelError: If the logits have no dimension for classes.
    """
    if student.ndim < 2:
        raise ModelError(
            "distillation by softmax needs outputs of shape (B, classes, ...), but the model returns one of shape "
            f"{tuple(student.shape)}: choose mse."
        )
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    num_predictions = student.numel() // student.shape[1]
    divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) / num_predictions
    return divergence * temperature**2


def softened_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns the cross-entropy of softened probabilities, averaged over all predictions.

    It is multiplied by the squared temperature. It exceeds `softened_divergence` by the entropy of the teacher, and has
    the same gradient.

    Args:
        student: Logits of the model that learns, (B, C, ...).
        teacher: Logits of its teacher, (B, C, ...).
        temperature: Divisor of the logits, above 0.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    probabilities = F.softmax(teacher.float() / temperature, dim=1)
    return -(log_student * probabilities).sum(1).mean() * temperature**2
