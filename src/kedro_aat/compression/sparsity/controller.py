"""Unstructured and N:M sparsity: the least important weights are zero, and stay zero while the others train."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kedro_aat.compression.computed_weights import listed_reasons
from kedro_aat.compression.layer_table import LayerTable, shape_text
from kedro_aat.compression.masks import SPARSITY_MASK, WeightMasks
from kedro_aat.compression.matrices import find_matrices
from kedro_aat.compression.nncf_statistics import ConstSparsityFigures, Figures, MagnitudeSparsityFigures
from kedro_aat.compression.own_buffers import exclude_from_ddp
from kedro_aat.compression.scheduled import ScheduledController
from kedro_aat.compression.scopes import PrunableWeight
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.compression.sparsity.figures import count_zeros, layer_thresholds, sparse_model
from kedro_aat.compression.sparsity.patterns import Pattern, keep_in_pattern
from kedro_aat.compression.sparsity.selection import keep_most_important
from kedro_aat.errors import ModelError
from kedro_aat.ranks.shards import local, total
from kedro_aat.search.tactics import Ranking

logger = logging.getLogger(__name__)


class MagnitudeSparsityController(ScheduledController[MagnitudeSparsity]):
    """Keeps a share of a model's weights at zero, by masks on its prunable layers.

    With `settings.pattern`, the zeros form a pattern, and the rate is at most `maximal_compression_rate`. Arguments
    and exceptions are those of `ScheduledController`.

    Attributes:
        keeps_zeros_only: Whether the zeros are those that the model began with: `statistics` then has them as NNCF's
            `const_sparsity`.

    Raises:
        ConfigurationError: If a scope matches no layer.
        ModelError: If the model has no layer that can be pruned or have the pattern.
    """

    name = "magnitude_sparsity"
    settings_type = MagnitudeSparsity
    first_target_rate = 0.7
    regrows = True
    keeps_zeros_only = False

    def _prepare(self) -> None:
        settings = self.settings
        self._pattern = Pattern.parse(settings.pattern) if settings.pattern else None
        self._matrices = find_matrices(
            self.model,
            ignored_scopes=settings.ignored_scopes,
            target_scopes=settings.target_scopes,
            only_layers=self._pattern is not None,
        )
        weights = self._matrices.weights
        if (words := self._matrices.small_share(self.model)) is not None:
            logger.warning("%s", words)
        elif self._matrices.left_out:
            logger.info("Matrices that stay dense:%s", listed_reasons(self._matrices.left_out))
        if not self._pattern:
            self.rankings = _offered(self._ranking(), weights)
        if self._pattern:
            self.maximal_compression_rate = _maximal_rate(self.model, self._pattern, weights)
        self._masks = WeightMasks(weights, suffix=SPARSITY_MASK, shadow_on_host=settings.shadow_on_host)
        self._masks.attach(self.model)
        self._set_rate(settings.schedule.initial_rate)

    def _compress(self, rate: float) -> None:
        weights = self._masks.weights
        num_weights = sum(weight.parameter.numel() for weight in weights)
        if self._is_masked_to(rate):
            self._masks.apply()
            return
        self._masks.lift()
        values = [weight.parameter.detach() for weight in weights]
        keep: list[Tensor] | None
        if not rate:
            keep = None
        elif self._pattern:
            keep = keep_in_pattern(self._pattern, weights, values, rate * num_weights)
        else:
            kind = self._ranked_by.importance
            groups = [values] if self._ranked_by.ranking == "global" else [[value] for value in values]
            found = [keep_most_important(group, kind, self._num_removed(group, rate)) for group in groups]
            keep = [mask for masks in found for mask in masks]
        self._masks.put(keep)

    def _num_removed(self, group: Sequence[Tensor], rate: float) -> int:
        return round(rate * sum(value.numel() for value in group))

    def _is_masked_to(self, rate: float) -> bool:
        """Whether the weights that a ranking would mask are masked: those that begin at zero stay the least important.

        Without a ranking, only rate 0 is known to change nothing.
        """
        masks = self._masks.masks()
        if not rate:
            return not self._masks.is_active and not any(_num_removed_by(masks))
        if not self._masks.is_active or not self._masks.forgets or self._pattern:
            return False
        removed = _num_removed_by(masks)
        if self._ranked_by.ranking == "global":
            return self._num_removed(masks, rate) == sum(removed)
        return [self._num_removed([mask], rate) for mask in masks] == removed

    def divide(self) -> None:
        self._masks.divide(self.model)

    def rank_by(self, ranking: Ranking) -> None:
        super().rank_by(ranking)
        self._masks.forget()

    def _mask_before(self, compiled: nn.Module) -> None:
        self._masks.apply_before(compiled)

    def apply_masks(self) -> None:
        self._masks.apply()

    def _num_zeros(self) -> list[int]:
        """Returns the number of zeros in each weight; where weights are divided, all ranks must call it."""
        self._masks.apply()
        return count_zeros([weight.parameter for weight in self._masks.weights])

    @property
    def achieved_rate(self) -> float:
        """Zeros over the weights of all matrices that are not left out, in [0, 1]."""
        return sum(self._num_zeros()) / sum(weight.parameter.numel() for weight in self._masks.weights)

    def statistics(self, quickly_collected_only: bool = False) -> LayerTable:
        """Returns the zeros of every layer, and the matrices that stay dense."""
        weights, pattern, zeros = self._masks.weights, self._pattern, self._num_zeros()
        sizes = [weight.parameter.numel() for weight in weights]
        rate = sum(zeros) / sum(sizes)
        notes = dict(self._matrices.left_out)
        if pattern is not None:
            reason = f"has an input dimension not divisible by {pattern.size}, as the pattern {pattern} asks"
            notes |= {weight.name: reason for weight in weights if not pattern.fits(weight)}
        num_parameters = self._matrices.num_parameters
        return LayerTable(
            algorithm=self.name,
            rate=rate,
            headline=f"{rate:.4f} of {sum(sizes):,} weights are zero; the model has {num_parameters:,} parameters",
            columns={
                "layer": [weight.name for weight in weights],
                "shape": [shape_text(weight.parameter.shape) for weight in weights],
                "weights": sizes,
                "zeros": zeros,
                "rate": [num_zeros / size for num_zeros, size in zip(zeros, sizes, strict=True)],
            },
            notes=notes,
            note_format="{layer} stays dense, since it {reason}",
            figures=(self._figures(zeros),),
        )

    def _figures(self, zeros: Sequence[int]) -> Figures:
        """What NNCF's scripts read, from the number of zeros in each weight."""
        masks, ranked_by = self._masks, self._ranked_by
        found = sparse_model(self.model, masks.weights, zeros)
        if self.keeps_zeros_only:
            return ConstSparsityFigures(found)
        return MagnitudeSparsityFigures(
            model_statistics=found,
            thresholds=[]
            if self._pattern
            else layer_thresholds(
                masks.weights,
                masks.masks(),
                masks.unmasked(),
                ranked_by.importance,
                is_global=ranked_by.ranking == "global",
            ),
            target_sparsity_level=self._requested_rate,
        )

    @property
    def rated_parameters(self) -> tuple[int, int]:
        """Number of parameters that the rate counts, and of all parameters of the model."""
        return self._matrices.num_weights, self._matrices.num_parameters

    @property
    def rate_words(self) -> str:
        """What the rate is the share of."""
        return "weights that are zero"

    @property
    def weight_names(self) -> list[str]:
        """Names of the compressed parameters, as in `model.named_parameters()`."""
        return [weight.name for weight in self._masks.weights]

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._masks.is_active = self._requested_rate > 0

    def strip(self, do_copy: bool = True) -> nn.Module:
        """Returns the model without masks and hooks, its masked weights set to zero.

        Args:
            do_copy: Whether to strip a copy and leave the model under training unchanged.
        """
        controller = copy.deepcopy(self) if do_copy else self
        controller._masks.leave_zeros()
        exclude_from_ddp(controller.model)
        return controller.model


def _num_removed_by(masks: Sequence[Tensor]) -> list[int]:
    """How many weights each mask removes, on all ranks together."""
    return total(masks, [local(mask).numel() - int(local(mask).count_nonzero()) for mask in masks])


def _offered(configured: Ranking, weights: Sequence[PrunableWeight]) -> tuple[Ranking, ...]:
    """Returns the rankings that a search may try, the configured one first."""
    # Embeddings often are ten times as large as other weights; by magnitude alone nothing would be left of these.
    has_embeddings = any(isinstance(weight.module, nn.Embedding | nn.EmbeddingBag) for weight in weights)
    others = [Ranking(importance=name, ranking="global") for name in ("lamp", *(() if has_embeddings else ("abs",)))]
    return tuple(dict.fromkeys([configured, *others]))


def _maximal_rate(model: nn.Module, pattern: Pattern, weights: Sequence[PrunableWeight]) -> float:
    """Returns the share of zeros if every layer that the pattern fits has it."""
    num_fitting = sum(weight.parameter.numel() for weight in weights if pattern.fits(weight))
    if not num_fitting:
        raise ModelError(
            f"{type(model).__name__} has no layer that can have the pattern {pattern}: none of the {len(weights)} "
            f"weights to prune has an input dimension divisible by {pattern.size}."
        )
    return pattern.rate * num_fitting / sum(weight.parameter.numel() for weight in weights)
