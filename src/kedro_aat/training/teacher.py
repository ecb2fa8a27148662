"""The teacher of distillation: the compressed model also learns the outputs of the baseline."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.distillation import softened_divergence
from kedro_aat.model_inputs import ModelInputs, call_model, tensors_in
from kedro_aat.training.compiling import compiled_if_large
from kedro_aat.training.loading.datasets import Rows, plain_tensors
from kedro_aat.training.outputs import Loss, Outputs
from kedro_aat.training.settings import Distillation

# Outputs of the teacher by path, (N, ...) each.
Answers = dict[str, Tensor]


def as_teacher(model: nn.Module) -> nn.Module:
    """A copy of a model that shares its weights: put on a device or into a mode, it leaves the model as it is."""
    shared = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    return copy.deepcopy(model, shared)


class Answered(NamedTuple):
    """Examples with the teacher's outputs for them."""

    examples: Any
    answers: Answers


class AnsweredRows(Rows):
    """A dataset of tensors with the teacher's outputs.

    Args:
        dataset: The dataset, which takes many indices at once.
        answers: The outputs for its N examples.
    """

    def __init__(self, dataset: Any, answers: Answers) -> None:
        super().__init__(Answered(dataset.tensors, answers))
        self._dataset, self._answers = dataset, answers

    def __getitem__(self, index: Any) -> Answered:
        return Answered(self._dataset[index], {path: answer[index] for path, answer in self._answers.items()})


class Teacher:
    """The baseline as a teacher.

    Args:
        model: The baseline; put into evaluation mode and never trained.
        settings: Kind, temperature and weight of the distillation loss.
        task_loss: Loss on the targets.
        autocast: Makes the autocast context in which models are called.
        outputs: Chooses the outputs that are learned: all that the loss reads.
        compile_as: Compiles what answers each step and compares large outputs, if something is to be compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Distillation,
        task_loss: Loss,
        autocast: Callable[[], AbstractContextManager[object]],
        outputs: Outputs | None = None,
        compile_as: Callable[[nn.Module], Any] | None = None,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._in_steps = self._model if compile_as is None else compile_as(self._model)
        self._settings = settings
        self._outputs = outputs or Outputs(None)
        kind = settings.kind
        if kind == "auto":
            kind = "softmax" if _compares_classes(task_loss) else "mse"
        self._loss: Loss = self._softmax_loss if kind == "softmax" else F.mse_loss
        if compile_as is not None:
            self._loss = compiled_if_large(self._loss)
        self._autocast = autocast

    @torch.no_grad()
    def answer(self, inputs: ModelInputs, *, in_step: bool = False) -> Answers:
        """Its outputs for a batch, (B, ...) each.

        Args:
            inputs: The inputs.
            in_step: Whether it answers every step, for which it is compiled if the settings say so.
        """
        with self._autocast():
            return self._outputs.learned(call_model(self._in_steps if in_step else self._model, inputs))

    def with_answers(self, dataset: Any, inputs_of: Callable[[Any], ModelInputs], batch_size: int) -> Any:
        """The dataset with its outputs beside each example, if examples never change and the outputs are small.

        Args:
            dataset: The training split.
            inputs_of: The inputs of a batch, on the device of the model.
            batch_size: Examples that it answers at a time.
        """
        if not plain_tensors(dataset):
            return dataset
        first = inputs_of(dataset[:1])
        if sum(answer.numel() for answer in self.answer(first).values()) > sum(map(Tensor.numel, tensors_in(first))):
            return dataset
        starts = range(0, len(dataset), batch_size)
        parts = [self.answer(inputs_of(dataset[start : start + batch_size])) for start in starts]
        return AnsweredRows(
            dataset, {path: torch.cat([part[path].float().cpu() for part in parts]) for path in parts[0]}
        )

    def loss(
        self, task_loss: Tensor, outputs: Any, answers: Answers, in_evaluation: Callable[[], Any] | None = None
    ) -> Tensor:
        """The weighted sum of the losses on targets and teacher, a scalar; several outputs have the task's weights.

        Args:
            task_loss: Loss on the targets, a scalar.
            outputs: What the compressed model returned.
            answers: Outputs of the teacher for the same inputs, (B, ...) each.
            in_evaluation: Returns what the model returns for the same inputs in evaluation mode; None if this is it.
        """
        weight, learned = self._settings.weight, self._outputs.learned(outputs, in_evaluation)
        if len(answers) == 1:  # without the heads of the training, the teacher may name its only output otherwise
            path, answer = next(iter(answers.items()))
            taught = self._loss(learned.get(path, next(iter(learned.values()))), answer)
        else:
            losses = [self._outputs.weight(path) * self._loss(learned[path], answers[path]) for path in answers]
            taught = sum(losses[1:], losses[0])
        return (1 - weight) * task_loss + weight * taught

    def _softmax_loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        return softened_divergence(outputs, answers, self._settings.temperature)


def _compares_classes(loss: Loss) -> bool:
    """Whether a loss is cross-entropy: torch's module or function, or a module that contains one."""
    if isinstance(loss, nn.Module):
        return any(isinstance(part, nn.CrossEntropyLoss) for part in loss.modules())
    return getattr(loss, "func", loss) is F.cross_entropy
