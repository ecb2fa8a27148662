"""Filter pruning: whole channels and attention heads are masked during training and cut at the end."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kedro_aat.compression.filters.attention import packed_weight
from kedro_aat.compression.filters.compact import CompactModel, make_compact, remove_masks
from kedro_aat.compression.filters.costs import KINDS, CutCosts, layer_columns
from kedro_aat.compression.filters.cutting import Cut, Kind, apply_cut_plan, axes
from kedro_aat.compression.filters.groups import (
    ChannelGroup,
    build_groups,
    count_channels,
    plan_cuts,
    producing_layers,
)
from kedro_aat.compression.filters.importance import (
    TAYLOR,
    filter_sums,
    kept_counts,
    offered_rankings,
    removal_order,
    unit_scores,
)
from kedro_aat.compression.filters.probing import confirm_groups, masked_tensors, outputs_of, relative_difference
from kedro_aat.compression.filters.trace import trace
from kedro_aat.compression.layer_table import LayerTable
from kedro_aat.compression.masks import MASK, WeightMasks
from kedro_aat.compression.scheduled import ScheduledController
from kedro_aat.compression.scopes import PrunableWeight, prunable_weights
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.errors import ModelError
from kedro_aat.search.tactics import Ranking

# Largest difference between outputs of the cut and the masked model, relative to the largest output of the latter.
_TOLERANCE = 1e-4
_TAYLOR_MEMORY = 0.9  # factor of the old Taylor scores in each update, so about the last ten updates count
# Optimizer steps per update of the Taylor scores. A sample of the steps is enough for their mean, and an update in
# every step would take 4 to 5 % of the time of a step of the digits network.
_STEPS_PER_UPDATE = 4
# Steps without scores before a warning; the gradients of the first update may overflow if the loss is scaled.
_STEPS_BEFORE_WARNING = 2 * _STEPS_PER_UPDATE

logger = logging.getLogger(__name__)


class FilterPruningController(ScheduledController[FilterPruning]):
    """Removes channels and attention heads: they are masked during training and cut by `strip`.

    The model is traced, and every group of channels is tested: a group for which masking is not the same as cutting is
    not touched. The rate is the share of filters, parameters or MACs of the whole model (`settings.rate_of`) that the
    cut removes.

    Args:
        model: The model, changed in place: its layers get masks.
        settings: Settings of the algorithm.
        steps_per_epoch: Optimizer steps per epoch, for rates that change within an epoch; counted if None.
        example_input: (B, ...), like a batch of the data; the model is traced, and its cut is checked, with it.

    Attributes:
        groups: Groups of units of channels, each of which can be cut.
        not_cut: Layer -> why not all of its outputs can be cut.

    Raises:
        ConfigurationError: If a scope matches no layer.
        ModelError: Without an example input, or if the model cannot be traced or has nothing that can be cut.
    """

    name = "filter_pruning"
    settings_type = FilterPruning

    def _prepare(self) -> None:
        model, settings, example_input = self.model, self.settings, self.example_input
        if example_input is None:
            raise ModelError(
                "Filter pruning runs the model once to find which of its channels depend on each other: pass "
                "example_input, a batch like those that it is trained on, for example the first of the training data."
            )
        self._num_steps = 0
        self._sampled: dict[tuple[str, str], Tensor] = {}
        self.groups, self.not_cut = self._find_groups()
        self.rankings = offered_rankings(model, self.groups, settings)
        self._sizes = count_channels(model)
        self._costs = CutCosts(model, self._example(), self.groups, self._sizes)
        self._masks = self._make_masks()
        self._masks.attach(model)
        self.maximal_compression_rate = self._rate_without(
            [group.num_units - self._kept_counts(group)[-1] for group in self.groups]
        )
        self._set_rate(settings.schedule.initial_rate)

    def _find_groups(self) -> tuple[list[ChannelGroup], dict[str, str]]:
        model, settings = self.model, self.settings
        chosen = prunable_weights(model, ignored_scopes=settings.ignored_scopes, target_scopes=settings.target_scopes)
        selected = {weight.layer for weight in chosen}
        prunable = {weight.layer for weight in prunable_weights(model)}
        couplings = trace(model, self._example())
        for layer, kind in couplings.sizes:
            is_targeted = layer in prunable or settings.target_scopes is None
            is_excluded = layer in prunable - selected or not is_targeted
            if is_excluded and kind in ("outputs", "projections"):
                couplings.block((layer, kind), f"the scopes exclude '{layer}'")
        coupled_groups, not_cut = build_groups(couplings)
        groups = []
        for group in coupled_groups:
            if len(self._kept_counts(group)) > 1:
                groups.append(group)
                continue
            number = group.num_units * group.channels_per_unit
            reason = f"it has {number} channels in {group.num_units} units and may not have fewer"
            not_cut |= dict.fromkeys(producing_layers([group]), reason)
        groups, unconfirmed = confirm_groups(model, self._example(), groups, couplings.sizes)
        not_cut |= unconfirmed
        for layer, module in model.named_modules():
            if isinstance(module, nn.RNNBase):
                not_cut[layer] = "recurrent layers are not cut"
            elif isinstance(module, nn.MultiheadAttention) and packed_weight(module) is None:
                not_cut[layer] = "attention with keys or values of another width than its queries is not cut"
        if not groups:
            reasons = "".join(f"\n  - {layer}: {reason}" for layer, reason in not_cut.items())
            raise ModelError(f"{type(model).__name__} has no channels that can be cut:{reasons}")
        return groups, not_cut

    def _make_masks(self) -> WeightMasks:
        """Masks all parameters that produce channels of the groups, and adds buffers for the Taylor scores."""
        masked: dict[tuple[str, str], PrunableWeight] = {}
        statistics = []
        self._filters: list[tuple[PrunableWeight, int]] = []  # weights that consist of filters, and their dimension
        self._scored: list[tuple[PrunableWeight, int]] = []  # those whose Taylor scores follow the training
        for layer, kind in dict.fromkeys(self._members()):
            module = self.model.get_submodule(layer)
            for name, dim in masked_tensors(module, kind):
                weight = PrunableWeight(layer, layer, module, name)
                masked[layer, name] = weight
                if weight.parameter.dim() > 1:
                    self._filters.append((weight, dim))
                    if self.settings.importance == "taylor":
                        averages = torch.zeros(weight.parameter.shape[dim], device=weight.parameter.device)
                        module.register_buffer(name + TAYLOR, averages)
                        self._scored.append((weight, dim))
            if kind == "channels":
                buffers = [axis.name for axis in axes(module)[kind] if axis.name in module._buffers]
                statistics += [(masked[layer, "weight"], name) for name in buffers]
        self._mask_index = {key: number for number, key in enumerate(masked)}
        return WeightMasks(list(masked.values()), statistics)

    def _members(self) -> list[tuple[str, Kind]]:
        return [(member.layer, member.kind) for group in self.groups for member in group.members]

    # --- the rate --------------------------------------------------------------------------------------------

    def _kept_counts(self, group: ChannelGroup) -> list[int]:
        return kept_counts(group.num_units, group.channels_per_unit, self.settings)

    def _rate_without(self, removed: Sequence[int] | NDArray[np.int64]) -> float:
        return self._costs.rate(self.settings.rate_of, np.asarray(removed, dtype=np.int64))

    @torch.no_grad()
    def _compress(self, rate: float) -> None:
        scores = self._scores()
        groups, numbers = removal_order(scores, [group.channels_per_unit for group in self.groups], self._ranked_by)

        def removed_by(count: int) -> NDArray[np.int64]:
            """Units removed from each group by the first `count` removals."""
            return np.bincount(groups[:count], numbers[:count], minlength=len(self.groups)).astype(np.int64)

        low, high = 0, len(groups)  # bisection for the smallest number of removals that reaches the rate
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._rate_without(removed_by(middle)) >= rate else (middle + 1, high)
        if low and rate - self._rate_without(removed_by(low - 1)) <= self._rate_without(removed_by(low)) - rate:
            low -= 1  # one removal less is at least as near to the rate
        kept = []
        for score, number in zip(scores, removed_by(low), strict=True):
            is_kept = np.ones(len(score), dtype=bool)
            is_kept[np.argsort(score, kind="stable")[:number]] = False
            kept.append(is_kept)
        self._mask_units(kept)

    def _scores(self) -> list[NDArray[np.float32]]:
        unmasked = self._masks.unmasked()
        scores = [
            unit_scores(
                self.model,
                group,
                self._ranked_by.importance,
                lambda layer, name: unmasked[self._mask_index[layer, name]],
                self._taylor_scores,
            )
            for group in self.groups
        ]
        self._sampled = {}
        flat = torch.cat(scores).float().cpu().numpy()  # a single transfer to the host
        return np.split(flat, np.cumsum([group.num_units for group in self.groups])[:-1])

    def _mask_units(self, kept: Sequence[NDArray[np.bool_]]) -> None:
        """Masks all units except those that are kept, (units,) for each group."""
        channels = {place: np.ones(size, dtype=np.float32) for place, size in self._sizes.items()}
        for group, is_kept in zip(self.groups, kept, strict=True):
            for member in group.members:
                channels[member.layer, member.kind][member.indices[~is_kept].ravel()] = 0
        masks: dict[int, Tensor] = {}
        for layer, kind in dict.fromkeys(self._members()):
            module = self.model.get_submodule(layer)
            for name, dim in masked_tensors(module, kind):
                tensor = module._parameters[name]
                assert tensor is not None  # it is masked
                shape = [-1 if axis == dim else 1 for axis in range(tensor.dim())]
                mask = torch.from_numpy(channels[layer, kind]).view(shape).expand(tensor.shape)
                masks[self._mask_index[layer, name]] = mask.contiguous()
        is_active = any(not is_kept.all() for is_kept in kept)
        self._masks.put([masks[number] for number in range(len(masks))], is_active=is_active)

    def _kept_units(self) -> list[NDArray[np.bool_]]:
        """(units,) for each group, True for a unit that is kept. Read from the masks, which the model's state holds."""
        kept = []
        for group in self.groups:
            producer = group.producers[0]
            module = self.model.get_submodule(producer.layer)
            name, dim = masked_tensors(module, producer.kind)[0]
            kept.append((_mask_of_channels(module, name, dim) > 0).cpu().numpy()[producer.indices[:, 0]])
        return kept

    def _removed(self) -> NDArray[np.int64]:
        return np.array([np.count_nonzero(~is_kept) for is_kept in self._kept_units()], dtype=np.int64)

    def rank_by(self, ranking: Ranking) -> None:
        super().rank_by(ranking)
        self._masks.forgets = True
        self._sampled = {}

    @torch.no_grad()
    def observe_gradients(self) -> None:
        """Adds the gradients of a batch to the scores of `taylor`, which the next change of the rate uses up."""
        for weight, dim in self._filters:
            if (gradient := weight.parameter.grad) is not None:
                score = filter_sums(weight.parameter, gradient, dim).float().square()
                place = weight.layer, weight.parameter_name
                self._sampled[place] = self._sampled[place] + score if place in self._sampled else score

    def _taylor_scores(self, layer: str, name: str) -> Tensor:
        """Scores of a weight's filters: of the batches that were just observed, or else of the recent steps."""
        module = self.model.get_submodule(layer)
        known = self._sampled.get((layer, name), module._buffers.get(name + TAYLOR))
        if known is not None:
            return known
        dim = next(dim for weight, dim in self._filters if (weight.layer, weight.parameter_name) == (layer, name))
        return torch.zeros_like(module.get_parameter(name).movedim(dim, 0).flatten(1)[:, 0])  # ranked by l2

    def apply_masks(self) -> None:
        """Sets masked weights to zero that an optimizer step has changed since the last forward pass."""
        self._masks.apply()

    @property
    def achieved_rate(self) -> float:
        """Share of the filters, parameters or MACs of the whole model that the cut removes, in [0, 1)."""
        return self._rate_without(self._removed())

    @torch.no_grad()
    def _before_step(self) -> None:
        """Updates the Taylor scores from the gradients of the previous step, in some of the steps.

        The first update of an epoch uses the gradients of its first step. No update uses those of its last step: they
        are lost if a run resumes from a checkpoint, and a resumed run must equal one that was never interrupted.
        """
        if not self._scored:
            return
        self._update_taylor_scores()
        self._num_steps += 1
        if self._num_steps == (1 if self.steps_per_epoch == 1 else _STEPS_BEFORE_WARNING):
            self._warn_without_scores()

    def _warn_without_scores(self) -> None:
        """Warns if `taylor` has seen no gradients, so that filters are ranked by something else."""
        buffers = (weight.module.get_buffer(weight.parameter_name + TAYLOR) for weight, _ in self._scored)
        if self._is_ranked_by_search or any(bool(buffer.any()) for buffer in buffers):  # a search samples gradients
            return
        logger.warning(
            "Filters with importance taylor are ranked by l2, because no gradient was seen so far. Call "
            "scheduler.step() before each optimizer step, while the gradients of the previous step still exist, and "
            "train epochs of more than one step."
        )

    def _update_taylor_scores(self) -> None:
        """Moves the averages of filters that are not masked; masked filters keep their last ones."""
        if self.scheduler.current_step % _STEPS_PER_UPDATE:
            return
        averages, sums, kept = [], [], []
        for weight, dim in self._scored:
            parameter, gradient = weight.parameter, weight.parameter.grad
            if gradient is None:
                continue
            averages.append(weight.module.get_buffer(weight.parameter_name + TAYLOR))
            sums.append(filter_sums(parameter, gradient, dim))
            kept.append(_mask_of_channels(weight.module, weight.parameter_name, dim) > 0)
        if not sums:
            return
        scores, average = torch.cat(sums).float().square(), torch.cat(averages)
        is_updated = torch.cat(kept) & scores.isfinite()  # gradients of a scaled loss may overflow
        updated = torch.where(is_updated, average.lerp(scores, 1 - _TAYLOR_MEMORY), average)
        torch._foreach_copy_(averages, updated.split([len(part) for part in averages]))

    # --- state and results -----------------------------------------------------------------------------------

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores a state from `get_state`; the model's `state_dict` restores the masks. A search is never undone."""
        super().load_state(state)
        # The masks may be loaded after this; until then, masks of ones do no harm.
        self._masks.is_active = self._requested_rate > 0

    def cut_plan(self) -> list[Cut]:
        """The cuts that `strip` makes; `cutting.apply_cut_plan` makes the same cuts in a newly built model."""
        return plan_cuts(self.groups, self._kept_units(), self._sizes)

    def statistics(self) -> LayerTable:
        """Shapes and costs of every layer, before the cut and after it."""
        rate_of, removed, costs = self.settings.rate_of, self._removed(), self._costs
        totals = ", ".join(f"{kind} {costs.total(kind)} -> {costs.left(kind, removed)}" for kind in KINDS)
        rate = costs.rate(rate_of, removed)
        return LayerTable(
            algorithm=self.name,
            rate=rate,
            headline=f"{rate:.4f} of the {rate_of} are removed ({totals})",
            columns=layer_columns(self.model, costs, removed, self.cut_plan()),
            notes=self.not_cut,
            note_format="not cut: {layer}: {reason}",
        )

    @property
    def macs_share(self) -> float:
        return self._costs.left("macs", self._removed()) / self._costs.total("macs")

    def compact(self, last: CompactModel | None = None, *, to_train: bool = False) -> CompactModel | None:
        needs_gradients = self._scored and not self._is_ranked_by_search
        kept = self._kept_units()
        if all(map(np.all, kept)) or (to_train and (needs_gradients or self.scheduler.changes_rate)):
            return None
        if last is not None and last.is_cut_as(np.concatenate(kept)):
            last.read()
            return last
        return make_compact(self.model, self._masks, self.cut_plan(), np.concatenate(kept), self._example())

    def strip(self, do_copy: bool = True) -> nn.Module:
        """Returns the model without masked channels, masks and hooks; its `kedro_aat_plan` holds the cut plan.

        Args:
            do_copy: Whether to leave the model under training unchanged and return a copy.

        Raises:
            ModelError: If an output of the cut model differs from that of the masked model by more than 1e-4 of the
                largest output.
        """
        controller = copy.deepcopy(self) if do_copy else self
        model, plan = controller.model, controller.cut_plan()
        if plan and controller._scored:
            controller._warn_without_scores()
        expected = controller._outputs()
        controller._masks.apply()
        remove_masks(model, controller._masks)
        apply_cut_plan(model, plan)
        if plan and (difference := relative_difference(expected, controller._outputs())) > _TOLERANCE:
            raise ModelError(
                f"The outputs of the cut {type(model).__name__} differ from those of the masked model by "
                f"{difference:.1e} of the largest output, but at most {_TOLERANCE} is allowed. List the layers around "
                "an unusual operation under ignored_scopes, and please report this."
            )
        return model

    def _outputs(self) -> list[Tensor]:
        """Outputs for the example input, computed in single precision if the model has half precision."""
        model, batch = self.model, self._example()
        if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
            model, batch = copy.deepcopy(model).float(), batch.float() if batch.is_floating_point() else batch
        return outputs_of(model, batch)

    def _example(self) -> Tensor:
        """The example input on the device and in the precision of the model."""
        assert self.example_input is not None  # the constructor requires it
        parameter = next(self.model.parameters())
        batch = self.example_input.to(parameter.device)
        return batch.to(parameter.dtype) if batch.is_floating_point() else batch


def _mask_of_channels(module: nn.Module, parameter: str, dim: int) -> Tensor:
    """One number of a mask per channel; all numbers of a channel are equal."""
    return module.get_buffer(parameter + MASK).movedim(dim, 0).flatten(1)[:, 0]
