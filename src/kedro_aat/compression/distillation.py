"""A loss that holds a model under compression to what it said before: knowledge distillation from itself."""

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

_TEACHER = "_aat_teacher."  # before the names of the teacher's tensors in the model's state_dict


class DistillationLoss(CompressionLoss):
    """Compares a model's last outputs in training with those of a frozen copy of it, on the same inputs.

    `softmax` is the `softened_divergence`, `mse` the mean squared difference; where the model returns several
    floating-point tensors, the sum over them. Outside of training it is 0.

    The copy's tensors travel in the model's `state_dict`, so that a model that is built anew and loaded has the
    same teacher; a state without them leaves the teacher as it is.

    Args:
        model: Before anything else is put on it; gets hooks.
        settings: Of the loss.
    """

    def __init__(self, model: nn.Module, settings: KnowledgeDistillation) -> None:
        super().__init__()
        self.settings = settings
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self._last: tuple[tuple[Any, ...], dict[str, Any], list[Tensor]] | None = None
        model.register_forward_hook(self._after_forward, with_kwargs=True)
        model._register_state_dict_hook(self._add_teacher)
        model.register_load_state_dict_pre_hook(self._take_teacher)

    def __getstate__(self) -> dict[str, Any]:
        """Without the last outputs: they belong to a graph, which cannot be copied."""
        return self.__dict__ | {"_last": None}

    def train(self, mode: bool = True) -> DistillationLoss:
        """The teacher stays in evaluation mode."""
        self.training = mode
        return self

    def detach(self, model: nn.Module) -> None:
        """Takes the hooks out of the model again."""
        for hooks in (model._forward_hooks, model._state_dict_hooks, model._load_state_dict_pre_hooks):
            for key in [key for key, hook in hooks.items() if _is_of(hook, self)]:
                del hooks[key]
                model._forward_hooks_with_kwargs.pop(key, None)

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
        """A scalar to be added to the task's loss, `scale` included.

        Raises:
            ModelError: For `softmax`, if the model returns a tensor without classes.
        """
        if self._last is None:
            return super().forward()
        args, kwargs, outputs = self._last
        with torch.no_grad():
            expected = list(filter(is_floating, tree_leaves(self._teacher_on(outputs)(*args, **kwargs))))
        terms = [self._compare(now.float(), then.float()) for now, then in zip(outputs, expected, strict=True)]
        return self.settings.scale * torch.stack(terms).sum()

    def _teacher_on(self, outputs: list[Tensor]) -> nn.Module:
        """The teacher, which follows the model to its device."""
        return self.teacher.to(outputs[0].device) if outputs else self.teacher

    def _compare(self, now: Tensor, then: Tensor) -> Tensor:
        if self.settings.type == "mse":
            return F.mse_loss(now, then)
        return softened_divergence(now, then, self.settings.temperature)


def softened_divergence(now: Tensor, then: Tensor, temperature: float) -> Tensor:
    """The Kullback-Leibler divergence of softened probabilities, the mean over all predictions.

    Times the temperature squared, so that gradients keep their size whatever it is (Hinton, Vinyals and Dean 2015,
    arXiv:1503.02531, section 2).

    Args:
        now: Logits of the model that learns, (B, C, ...).
        then: Those of its teacher.
        temperature: By which they are divided, above 0.

    Raises:
        ModelError: For logits without classes.
    """
    if now.ndim < 2:
        raise ModelError(
            "distillation by softmax needs outputs (B, classes, ...), but the model returns one of shape "
            f"{tuple(now.shape)}: choose mse."
        )
    student = F.log_softmax(now.float() / temperature, dim=1)
    teacher = F.log_softmax(then.float() / temperature, dim=1)
    num_predictions = now.numel() // now.shape[1]
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True) / num_predictions
    return divergence * temperature**2


def _is_of(hook: Any, owner: object) -> bool:
    """Whether a hook is a method of an object; torch wraps some hooks."""
    return getattr(getattr(hook, "hook", hook), "__self__", None) is owner
