"""Scores of filters by what the loss would lose without them, from the gradients of the training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kedro_aat.compression.filters.importance import TAYLOR, filter_sums
from kedro_aat.compression.masks import MASK
from kedro_aat.compression.scopes import PrunableWeight

_MEMORY = 0.9  # factor of the old scores in each update, so about the last ten updates count
# Optimizer steps per update of the scores. A sample of the steps is enough for their mean, and an update in every step
# would take 4 to 5 % of the time of a step of the digits network.
_STEPS_PER_UPDATE = 4
# Steps without scores before a warning; the gradients of the first update may overflow if the loss is scaled.
_STEPS_BEFORE_WARNING = 2 * _STEPS_PER_UPDATE

logger = logging.getLogger(__name__)


class TaylorScores:
    """Scores of the importance `taylor`; see `importance.unit_scores`.

    It refers to layers, not to tensors, so that a deep copy of model and controller stays consistent.

    Args:
        model: Its layers get buffers for the averages, if these follow the training.
        filters: Weights that consist of filters, and the dimension along which the filters lie.
        follows_training: Whether averages over the recent steps are kept.

    Attributes:
        filters: These weights.
        followed: Those with an average over the recent steps.
        sampled: Layer and name of a weight -> sum of the scores of the batches that were observed, (filters,).
    """

    def __init__(
        self, model: nn.Module, filters: Sequence[tuple[PrunableWeight, int]], *, follows_training: bool
    ) -> None:
        self._model = model
        self.filters = filters
        self.followed = filters if follows_training else []
        self.sampled: dict[tuple[str, str], Tensor] = {}
        self._num_steps = 0
        for weight, dim in self.followed:
            averages = torch.zeros(weight.parameter.shape[dim], device=weight.parameter.device)
            weight.module.register_buffer(weight.parameter_name + TAYLOR, averages)

    def of_weight(self, layer: str, name: str) -> Tensor:
        """Scores of a weight's filters: of the batches that were just observed, or else of the recent steps.

        Returns:
            (filters,); zeros for a weight of which nothing was seen.
        """
        module = self._model.get_submodule(layer)
        known = self.sampled.get((layer, name), module._buffers.get(name + TAYLOR))
        if known is not None:
            return known
        dims = {(weight.layer, weight.parameter_name): dim for weight, dim in self.filters}
        dim = dims.get((layer, name), 0)
        return torch.zeros_like(module.get_parameter(name).movedim(dim, 0).flatten(1)[:, 0])

    @torch.no_grad()
    def observe(self) -> None:
        """Adds the gradients of a batch to what is sampled."""
        for weight, dim in self.filters:
            if (gradient := weight.parameter.grad) is not None:
                score = filter_sums(weight.parameter, gradient, dim).float().square()
                place = weight.layer, weight.parameter_name
                self.sampled[place] = self.sampled[place] + score if place in self.sampled else score

    def follow(self, current_step: int, steps_per_epoch: int | None, *, is_sampled: bool) -> None:
        """Updates the averages from the gradients of the previous step, in some of the steps.

        The first update of an epoch uses the gradients of its first step. No update uses those of its last step: they
        are lost if a run resumes from a checkpoint, and a resumed run must equal one that was never interrupted.

        Args:
            current_step: Number of this step in its epoch.
            steps_per_epoch: If known.
            is_sampled: Whether a search samples gradients anyway.
        """
        if not self.followed:
            return
        if current_step % _STEPS_PER_UPDATE == 0:
            self._update()
        self._num_steps += 1
        if self._num_steps == (1 if steps_per_epoch == 1 else _STEPS_BEFORE_WARNING) and not is_sampled:
            self.warn_without_any()

    def warn_without_any(self) -> None:
        """Warns if the averages have seen no gradients, so that filters are ranked by something else."""
        buffers = (weight.module.get_buffer(weight.parameter_name + TAYLOR) for weight, _ in self.followed)
        if not self.followed or any(bool(buffer.any()) for buffer in buffers):
            return
        logger.warning(
            "Filters with importance taylor are ranked by l2, because no gradient was seen so far. Call "
            "scheduler.step() before each optimizer step, while the gradients of the previous step still exist, and "
            "train epochs of more than one step."
        )

    @torch.no_grad()
    def _update(self) -> None:
        """Moves the averages of filters that are not masked; masked filters keep their last ones."""
        averages, sums, kept = [], [], []
        for weight, dim in self.followed:
            parameter, gradient = weight.parameter, weight.parameter.grad
            if gradient is None:
                continue
            averages.append(weight.module.get_buffer(weight.parameter_name + TAYLOR))
            sums.append(filter_sums(parameter, gradient, dim))
            mask = weight.module.get_buffer(weight.parameter_name + MASK)
            kept.append(mask.movedim(dim, 0).flatten(1).any(1))
        if not sums:
            return
        scores, average = torch.cat(sums).float().square(), torch.cat(averages)
        is_updated = torch.cat(kept) & scores.isfinite()  # gradients of a scaled loss may overflow
        updated = torch.where(is_updated, average.lerp(scores, 1 - _MEMORY), average)
        torch._foreach_copy_(averages, updated.split([len(part) for part in averages]))
