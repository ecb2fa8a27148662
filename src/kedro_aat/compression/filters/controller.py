"""Filter pruning: whole channels and attention heads are masked while the rate moves, and cut at the end."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kedro_aat.compression.filters.costs import KINDS, CutCosts, layer_columns
from kedro_aat.compression.filters.cutting import Cut, Kind, apply_cut_plan, axes
from kedro_aat.compression.filters.groups import ChannelGroup, all_places, layers_with, plan_of, put_together
from kedro_aat.compression.filters.importance import filter_sums, kept_counts, removal_order, unit_scores
from kedro_aat.compression.filters.probing import confirmed, masked_tensors, outputs_of, relative_difference
from kedro_aat.compression.filters.trace import trace
from kedro_aat.compression.layer_table import LayerTable
from kedro_aat.compression.masks import MASK, WeightMasks
from kedro_aat.compression.scheduled import ScheduledController
from kedro_aat.compression.scopes import PrunableWeight, prunable_weights
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.errors import ModelError

TAYLOR = "_taylor"  # behind a weight's name: what its gradients said of each filter

_TOLERANCE = 1e-4  # of the cut model's outputs, relative to the largest of the masked model's
_MEMORY = 0.9  # share of the Taylor scores that a gathering leaves; some ten of them count
# Steps from one gathering of Taylor scores to the next: these are a sample of the mean over all, and gathering them in
# each would take 4 to 5 % of a step of the digits network.
_GATHERING_INTERVAL = 4
_STEPS_TO_A_WARNING = 2 * _GATHERING_INTERVAL  # without scores; the first of scaled losses may overflow


logger = logging.getLogger(__name__)


class FilterPruningController(ScheduledController[FilterPruning]):
    """Removes channels and attention heads: masked during training, and cut by `strip`.

    While the model is traced, every group of channels is tried: one whose masking is not the same as cutting is
    left alone. The rate is the share of filters, parameters or MACs of the whole model (`settings.rate_of`) that
    the cut removes.

    Args:
        model: The model, changed in place: its layers carry masks from now on.
        settings: Of the algorithm.
        steps_per_epoch: Optimizer steps in an epoch, for rates that move within one; counted if None.
        example_input: (B, ...), like a batch of the data; the model is run with it, and its cut is checked with it.

    Attributes:
        groups: Units of channels that are cut together.
        not_cut: Layer -> why none or not all of its outputs can be cut.

    Raises:
        ConfigurationError: For scopes that match no layer.
        ModelError: Without an example input, for a model that cannot be traced, or if nothing can be cut.
    """

    name = "filter_pruning"
    settings_type = FilterPruning

    def _prepare(self) -> None:
        model, settings, example_input = self.model, self.settings, self.example_input
        if example_input is None:
            raise ModelError(
                "Filter pruning runs the model once to see which of its channels hang together: pass example_input, "
                "a batch like those that it is trained on, for example the first of the training data."
            )
        self._num_steps = 0
        self.groups, self.not_cut = self._find_groups()
        self._sizes = all_places(model)
        self._costs = CutCosts(model, self._example(), self.groups, self._sizes)
        self._masks = self._make_masks()
        self._masks.attach(model)
        self.maximal_compression_rate = self._rate_without(
            [group.num_units - self._kept_counts(group)[-1] for group in self.groups]
        )
        self._set_rate(settings.schedule.initial_rate)

    def _find_groups(self) -> tuple[list[ChannelGroup], dict[str, str]]:
        model, settings = self.model, self.settings
        chosen = {
            weight.layer
            for weight in prunable_weights(
                model, ignored_scopes=settings.ignored_scopes, target_scopes=settings.target_scopes
            )
        }
        every = {weight.layer for weight in prunable_weights(model)}
        couplings = trace(model, self._example())
        for layer, kind in couplings.sizes:
            is_left_out = layer in every - chosen or (layer not in every and settings.target_scopes is not None)
            if is_left_out and kind in ("outputs", "projections"):
                couplings.block((layer, kind), f"the scopes leave out '{layer}'")
        found, not_cut = put_together(couplings)
        groups = []
        for group in found:
            if len(self._kept_counts(group)) > 1:
                groups.append(group)
                continue
            number = group.num_units * group.channels_per_unit
            reason = f"it has {number} channels in {group.num_units} units, and may not have fewer"
            not_cut |= dict.fromkeys(layers_with([group]), reason)
        groups, unconfirmed = confirmed(model, self._example(), groups, couplings.sizes)
        not_cut |= unconfirmed
        for layer, module in model.named_modules():
            if isinstance(module, nn.RNNBase):
                not_cut[layer] = "recurrent layers are not cut"
            elif isinstance(module, nn.MultiheadAttention) and not axes(module):
                not_cut[layer] = "attention with keys or values of another width than its queries is not cut"
        if not groups:
            reasons = "".join(f"\n  - {layer}: {reason}" for layer, reason in not_cut.items())
            raise ModelError(f"{type(model).__name__} has no channels that can be cut:{reasons}")
        return groups, not_cut

    def _make_masks(self) -> WeightMasks:
        """Masks on all parameters that make channels of the groups, and buffers for the Taylor scores."""
        masked: dict[tuple[str, str], PrunableWeight] = {}
        statistics = []
        self._watched: list[tuple[PrunableWeight, int]] = []  # by the Taylor scores, and where its filters are
        for layer, kind in dict.fromkeys(self._members()):
            module = self.model.get_submodule(layer)
            for name, dim in masked_tensors(module, kind):
                weight = PrunableWeight(layer, layer, module, name)
                masked[layer, name] = weight
                if self.settings.importance == "taylor" and weight.parameter.dim() > 1:
                    sums = torch.zeros(weight.parameter.shape[dim], device=weight.parameter.device)
                    module.register_buffer(name + TAYLOR, sums)
                    self._watched.append((weight, dim))
            if kind == "channels":
                buffers = [name for name, _ in axes(module)[kind] if name in module._buffers]
                statistics += [(masked[layer, "weight"], name) for name in buffers]
        self._index = {key: number for number, key in enumerate(masked)}
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
        moved, numbers = removal_order(scores, [group.channels_per_unit for group in self.groups], self.settings)

        def after(moves: int) -> NDArray[np.int64]:
            """Units removed from each group by the first so many moves."""
            return np.bincount(moved[:moves], numbers[:moves], minlength=len(self.groups)).astype(np.int64)

        low, high = 0, len(moved)  # the first number of moves that reaches the rate, found by halving
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._rate_without(after(middle)) >= rate else (middle + 1, high)
        if low and rate - self._rate_without(after(low - 1)) <= self._rate_without(after(low)) - rate:
            low -= 1  # one move less is as near, or nearer
        keep = []
        for score, number in zip(scores, after(low), strict=True):
            kept = np.ones(len(score), dtype=bool)
            kept[np.argsort(score, kind="stable")[:number]] = False
            keep.append(kept)
        self._put(keep)

    def _scores(self) -> list[NDArray[np.float32]]:
        unmasked = self._masks.unmasked()
        scores = [
            unit_scores(
                self.model,
                group,
                self.settings.importance,
                lambda layer, name: unmasked[self._index[layer, name]],
                lambda layer, name: self.model.get_submodule(layer).get_buffer(name + TAYLOR),
            )
            for group in self.groups
        ]
        flat = torch.cat(scores).float().cpu().numpy()  # one transfer
        return np.split(flat, np.cumsum([group.num_units for group in self.groups])[:-1])

    def _put(self, keep: Sequence[NDArray[np.bool_]]) -> None:
        """Masks all units but those kept, (units,) for each group."""
        channels = {place: np.ones(number, dtype=np.float32) for place, number in self._sizes.items()}
        for group, kept in zip(self.groups, keep, strict=True):
            for member in group.members:
                channels[member.layer, member.kind][member.indices[~kept].ravel()] = 0
        masks: dict[int, Tensor] = {}
        for layer, kind in dict.fromkeys(self._members()):
            module = self.model.get_submodule(layer)
            for name, dim in masked_tensors(module, kind):
                tensor = module._parameters[name]
                assert tensor is not None  # it is masked
                shape = [-1 if axis == dim else 1 for axis in range(tensor.dim())]
                mask = torch.from_numpy(channels[layer, kind]).view(shape).expand(tensor.shape)
                masks[self._index[layer, name]] = mask.contiguous()
        is_active = any(not kept.all() for kept in keep)
        self._masks.put([masks[number] for number in range(len(masks))], is_active=is_active)

    def _kept(self) -> list[NDArray[np.bool_]]:
        """For each group which units are kept, read from the masks: these come with the model's state."""
        kept = []
        for group in self.groups:
            maker = group.makers[0]
            module = self.model.get_submodule(maker.layer)
            name, dim = masked_tensors(module, maker.kind)[0]
            kept.append((_of_channels(module, name, dim) > 0).cpu().numpy()[maker.indices[:, 0]])
        return kept

    def _removed(self) -> NDArray[np.int64]:
        return np.array([np.count_nonzero(~kept) for kept in self._kept()], dtype=np.int64)

    def apply_masks(self) -> None:
        """Sets masked weights to zero where an optimizer step has moved them since the last forward pass."""
        self._masks.apply()

    @property
    def achieved_rate(self) -> float:
        """The share of filters, parameters or MACs of the whole model that the cut removes, in [0, 1)."""
        return self._rate_without(self._removed())

    @torch.no_grad()
    def _before_step(self) -> None:
        """Gathers the Taylor scores of the step before, if it is its turn; masked filters keep those that they had.

        The first step of an epoch is the first in turn. Its last is in no turn: its gradients are gone where a run
        goes on from a checkpoint, which is to give the same as one that was never interrupted.
        """
        if not self._watched:
            return
        self._gather()
        self._num_steps += 1
        if self._num_steps == (1 if self.steps_per_epoch == 1 else _STEPS_TO_A_WARNING):
            self._warn_without_scores()

    def _warn_without_scores(self) -> None:
        """Says it where `taylor` ranks by something else because it sees no gradients."""
        if any(bool(weight.module.get_buffer(weight.parameter_name + TAYLOR).any()) for weight, _ in self._watched):
            return
        logger.warning(
            "Filters of importance taylor are ranked by l2: no gradient was seen so far. They are looked at when "
            "scheduler.step() is called, which has to be before each optimizer step, with the gradients of the step "
            "before still there, and in epochs of more than one step."
        )

    def _gather(self) -> None:
        if self.scheduler.current_step % _GATHERING_INTERVAL:
            return
        gathered, seen, kept = [], [], []
        for weight, dim in self._watched:
            parameter, gradient = weight.parameter, weight.parameter.grad
            if gradient is None:
                continue
            gathered.append(weight.module.get_buffer(weight.parameter_name + TAYLOR))
            seen.append(filter_sums(parameter, gradient, dim))
            kept.append(_of_channels(weight.module, weight.parameter_name, dim) > 0)
        if not seen:
            return
        now, before = torch.cat(seen).float().square(), torch.cat(gathered)
        is_new = torch.cat(kept) & now.isfinite()  # a scaled loss may overflow
        after = torch.where(is_new, before.lerp(now, 1 - _MEMORY), before)
        torch._foreach_copy_(gathered, after.split([len(part) for part in gathered]))

    # --- what comes of it ------------------------------------------------------------------------------------

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state`; the masks come with the model's `state_dict`. A search is never undone."""
        super().load_state(state)
        # The masks may come after this; to apply masks of ones does no harm.
        self._masks.is_active = self._requested_rate > 0

    def cut_plan(self) -> list[Cut]:
        """What `strip` cuts now; `cutting.apply_cut_plan` does the same to a model built anew."""
        return plan_of(self.groups, self._kept(), self._sizes)

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

    def strip(self, do_copy: bool = True) -> nn.Module:
        """The model without the masked channels, masks and hooks, with its plan in `kedro_aat_plan`.

        Args:
            do_copy: Whether to leave the model under training as it is.

        Raises:
            ModelError: If the cut model's outputs are not those of the masked one, to 1e-4 of the largest.
        """
        controller = copy.deepcopy(self) if do_copy else self
        model, plan = controller.model, controller.cut_plan()
        if plan and controller._watched:
            controller._warn_without_scores()
        expected = controller._outputs()
        controller._masks.apply()
        controller._masks.detach()
        for module in model.modules():
            for name in [name for name in module._buffers if name.endswith(TAYLOR)]:
                delattr(module, name)
        apply_cut_plan(model, plan)
        if plan and (difference := relative_difference(expected, controller._outputs())) > _TOLERANCE:
            raise ModelError(
                f"The cut {type(model).__name__} gives other outputs than the masked one: they differ by "
                f"{difference:.1e} of the largest, where {_TOLERANCE} is allowed. Name layers around an unusual "
                "operation in ignored_scopes, and please report this."
            )
        return model

    def _outputs(self) -> list[Tensor]:
        """Outputs for the example input, in single precision where the model has half."""
        model, batch = self.model, self._example()
        if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
            model, batch = copy.deepcopy(model).float(), batch.float() if batch.is_floating_point() else batch
        return outputs_of(model, batch)

    def _example(self) -> Tensor:
        """The example input on the device of the model, in its precision."""
        assert self.example_input is not None  # seen to at the beginning
        parameter = next(self.model.parameters())
        batch = self.example_input.to(parameter.device)
        return batch.to(parameter.dtype) if batch.is_floating_point() else batch


def _of_channels(module: nn.Module, parameter: str, dim: int) -> Tensor:
    """One number of a mask for each channel; all numbers of a channel are the same."""
    return module.get_buffer(parameter + MASK).movedim(dim, 0).flatten(1)[:, 0]
