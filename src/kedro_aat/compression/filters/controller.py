"""Filter pruning: whole channels and attention heads are masked during training and cut at the end."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kedro_aat.compression.filters.attention import without_nested_tensors
from kedro_aat.compression.filters.axes import axes, own_tensor
from kedro_aat.compression.filters.channel_masks import (
    channels_in,
    filters_in,
    is_normalized,
    kept_channels,
    make_masks,
    mask_of,
    masked_axes,
    masked_axes_of,
)
from kedro_aat.compression.filters.compact import CompactModel, make_compact, remove_masks
from kedro_aat.compression.filters.costs import KINDS, CutCosts, layer_columns
from kedro_aat.compression.filters.cutting import AttributeChange, Cut, apply_cut_plan
from kedro_aat.compression.filters.figures import pruning_figures
from kedro_aat.compression.filters.groups import (
    ChannelGroup,
    build_groups,
    count_channels,
    is_produced,
    layers_with_one_filter,
    plan_cuts,
    producing_layers,
)
from kedro_aat.compression.filters.importance import (
    kept_counts,
    nearest_removal,
    nncf_scores,
    offered_rankings,
    unit_scores,
)
from kedro_aat.compression.filters.nncf_rates import NncfRates
from kedro_aat.compression.filters.normalization import normalize_over_kept, set_kept
from kedro_aat.compression.filters.probing import confirm_groups, outputs_of, relative_difference
from kedro_aat.compression.filters.taylor import TaylorScores
from kedro_aat.compression.filters.tracing.trace import trace
from kedro_aat.compression.frozen import frozen_layers
from kedro_aat.compression.layer_table import LayerTable
from kedro_aat.compression.masks import MASK
from kedro_aat.compression.own_buffers import exclude_from_ddp
from kedro_aat.compression.schedule import PathScheduler
from kedro_aat.compression.scheduled import ScheduledController
from kedro_aat.compression.scopes import prunable_weights
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.errors import ModelError
from kedro_aat.model_inputs import ModelInputs, map_tensors, placed_like
from kedro_aat.ranks.shards import whole
from kedro_aat.search.tactics import Ranking

# Largest difference between outputs of the cut and the masked model, relative to the largest output of the latter.
_TOLERANCE = 1e-4

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
    refuses_above_maximum = True
    settings_type = FilterPruning

    def _prepare(self) -> None:
        model, settings, example_input = self.model, self.settings, self.example_input
        if example_input is None:
            raise ModelError(
                "Filter pruning runs the model once to find which of its channels depend on each other: pass "
                "example_input, a batch like those that it is trained on, for example the first of the training data."
            )
        self.groups, self.not_cut = self._find_groups()
        self.rankings = offered_rankings(model, self.groups, settings)
        self._sizes = count_channels(model)
        self._axes = masked_axes(model, self.groups)
        self._costs = CutCosts(model, self._example(), self.groups, self._sizes)
        self._named_for_single_filters: set[str] = set()
        self._nncf: NncfRates | None = None
        self.raises_above_maximum = settings.rate_meaning == "nncf"
        if self.raises_above_maximum:
            self._nncf = NncfRates(self.groups, settings, functools.partial(self._costs.rate, "macs"))
        self.maximal_compression_rate = (
            self._nncf.maximal
            if self._nncf
            else self._rate_without([group.num_units - self._kept_counts(group)[-1] for group in self.groups])
        )
        self._check_schedule()
        self._masks = make_masks(model, self._axes, shadow_on_host=settings.shadow_on_host)
        self._taylor = TaylorScores(
            model, filters_in(model, self._axes), follows_training=settings.importance == "taylor"
        )
        for layer, normalization in self._normalizations.items():
            normalize_over_kept(model.get_submodule(layer), normalization)
        without_nested_tensors(model)
        self._masks.attach(model)
        self._set_scheduled_rate(settings.schedule.initial_rate)

    def _find_groups(self) -> tuple[list[ChannelGroup], dict[str, str]]:
        model, settings = self.model, self.settings
        chosen = prunable_weights(model, ignored_scopes=settings.ignored_scopes, target_scopes=settings.target_scopes)
        selected = {weight.layer for weight in chosen}
        prunable = {weight.layer for weight in prunable_weights(model)}
        couplings = trace(model, self._example())
        for note in couplings.notes:
            logger.warning("%s: %s", type(model).__name__, note)
        for layer in frozen_layers(model):
            if any(parameter.dim() > 1 for parameter in model.get_submodule(layer).parameters(recurse=False)):
                for kind in filter(is_produced, axes(model.get_submodule(layer))):
                    couplings.block((layer, kind), f"'{layer}' is frozen (requires_grad=False)")
        for layer, kind in couplings.sizes:
            is_targeted = layer in prunable or settings.target_scopes is None
            is_excluded = layer in prunable - selected or not is_targeted
            if is_excluded and is_produced(kind):
                couplings.block((layer, kind), f"the scopes exclude '{layer}'")
        coupled_groups, not_cut = build_groups(couplings)
        self._normalizations = couplings.normalizations
        groups = []
        for group in coupled_groups:
            if settings.rate_meaning == "nncf" or len(self._kept_counts(group)) > 1:
                groups.append(group)
                continue
            number = group.num_units * group.channels_per_unit
            reason = f"it has {number} channels in {group.num_units} units and may not have fewer"
            not_cut |= dict.fromkeys(producing_layers([group]), reason)
        groups, unconfirmed = confirm_groups(model, self._example(), groups, couplings)
        not_cut |= unconfirmed
        for layer, module in model.named_modules():
            if isinstance(module, nn.RNNBase) and module.proj_size:
                not_cut.setdefault(layer, "the hidden units of recurrent layers with projections are not cut")
        if not groups:
            reasons = "".join(f"\n  - {layer or type(model).__name__}: {reason}" for layer, reason in not_cut.items())
            raise ModelError(f"{type(model).__name__} has no channels that can be cut:{reasons}")
        layers = {member.layer for group in groups for member in group.members}
        self._normalizations = {layer: how for layer, how in couplings.normalizations.items() if layer in layers}
        return groups, not_cut

    # --- the rate --------------------------------------------------------------------------------------------

    def _kept_counts(self, group: ChannelGroup) -> list[int]:
        counts = kept_counts(group.num_units, group.channels_per_unit, self.settings)
        # The mean of a single channel is the channel, so a normalization over it would return a constant.
        is_normalized = any(member.layer in self._normalizations for member in group.members)
        return [count for count in counts if count > 1] if is_normalized else counts

    def _achieved_without(self, removed: NDArray[np.int64]) -> float:
        if self._nncf and self.settings.rate_of == "filters":
            return self._nncf.share(removed)
        return self._rate_without(removed)

    def _rate_without(self, removed: Sequence[int] | NDArray[np.int64]) -> float:
        return self._costs.rate(self.settings.rate_of, np.asarray(removed, dtype=np.int64))

    @torch.no_grad()
    def _compress(self, rate: float) -> None:
        self._masks.lift()
        if not rate:
            self._taylor.sampled = {}
            self._mask_units([np.ones(group.num_units, dtype=bool) for group in self.groups])
            return
        scores = self._scores()
        if self._nncf:
            removed = self._nncf.units(scores, rate, self._ranked_by.ranking)
        else:
            widths = [group.channels_per_unit for group in self.groups]
            removed = nearest_removal(scores, widths, self._ranked_by, rate, self._rate_without)
        self._warn_of_single_filters(removed)
        kept = []
        for score, number in zip(scores, removed, strict=True):
            is_kept = np.ones(len(score), dtype=bool)
            is_kept[np.argsort(score, kind="stable")[:number]] = False
            kept.append(is_kept)
        self._mask_units(kept)

    def _warn_of_single_filters(self, removed: NDArray[np.int64]) -> None:
        """Names the layers that a schedule or a rate set directly leaves one filter; a search judges its own rates."""
        layers = layers_with_one_filter(self.groups, removed) - self._named_for_single_filters
        if layers and not isinstance(self.scheduler, PathScheduler):
            self._named_for_single_filters |= layers
            logger.warning(
                "%d layers have a single filter left: %s. Lower the rate, or let more layers be cut (scopes%s).",
                len(layers),
                ", ".join(sorted(layers)),
                "" if self._nncf else ", minimal_channels",
            )

    def _scores(self) -> list[NDArray[np.float32]]:
        def weight(layer: str, name: str) -> Tensor:
            # Of a weight that is divided among ranks, all rows, one weight at a time as in a forward pass.
            return whole(own_tensor(self.model.get_submodule(layer), name).detach())

        model, ranked_by, taylor = self.model, self._ranked_by, self._taylor.of_weight
        scores = [
            nncf_scores(model, group, ranked_by, weight, taylor)
            if self._nncf
            else unit_scores(model, group, ranked_by.importance, weight, taylor)
            for group in self.groups
        ]
        self._taylor.sampled = {}
        flat = torch.cat(scores).float().cpu().numpy()  # a single transfer to the host
        return np.split(flat, np.cumsum([group.num_units for group in self.groups])[:-1])

    def _mask_units(self, kept: Sequence[NDArray[np.bool_]]) -> None:
        """Masks all units except those that are kept, (units,) for each group."""
        channels = kept_channels(self._sizes, self.groups, kept)
        masks = []
        for (layer, name), along in self._axes.items():
            parameter = self.model.get_submodule(layer).get_parameter(name)
            lost = [(axis, channels[layer, kind]) for kind, axis in along if (layer, kind) in channels]
            masks.append(mask_of(parameter.dim(), lost))
        self._masks.put(masks if channels else None)
        for layer in self._normalizations:
            module = self.model.get_submodule(layer)
            kind = next(kind for name, kind in self._sizes if name == layer and is_normalized(module, kind))
            all_kept = np.ones(self._sizes[layer, kind], dtype=np.float32)
            set_kept(module, torch.from_numpy(channels.get((layer, kind), all_kept)))

    def _kept_units(self) -> list[NDArray[np.bool_]]:
        """(units,) for each group, True for a unit that is kept. Read from the masks, which the model's state holds."""
        kept = []
        for group in self.groups:
            member, axis = next(
                (member, axis)
                for member in [*group.producers, *group.members]
                for axis in masked_axes_of(self.model.get_submodule(member.layer), member)
            )
            mask = whole(self.model.get_submodule(member.layer).get_buffer(axis.name + MASK))
            kept.append(channels_in(mask, axis).cpu().numpy()[member.indices[:, 0]])
        return kept

    def _removed(self) -> NDArray[np.int64]:
        return np.array([np.count_nonzero(~is_kept) for is_kept in self._kept_units()], dtype=np.int64)

    def divide(self) -> None:
        self._masks.divide(self.model)

    def rank_by(self, ranking: Ranking) -> None:
        super().rank_by(ranking)
        self._masks.forget()
        self._taylor.sampled = {}

    def observe_gradients(self) -> None:
        """Adds the gradients of a batch to the scores of `taylor`, which the next change of the rate uses up."""
        self._taylor.observe()

    def _mask_before(self, compiled: nn.Module) -> None:
        self._masks.apply_before(compiled)

    def apply_masks(self) -> None:
        """Sets masked weights to zero that an optimizer step has changed since the last forward pass."""
        self._masks.apply()

    @property
    def achieved_rate(self) -> float:
        """Share that the cut removes, in [0, 1).

        It is a share of the filters, parameters or MACs of the whole model, or with `rate_meaning: nncf` of the filters
        of all layers that can lose some.
        """
        return self._achieved_without(self._removed())

    def _before_step(self) -> None:
        step = self.scheduler.current_step
        self._taylor.follow(step, self.steps_per_epoch, is_sampled=self._is_ranked_by_search)

    # --- state and results -----------------------------------------------------------------------------------

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores a state from `get_state`; the model's `state_dict` restores the masks. A search is never undone."""
        super().load_state(state)
        # The masks may be loaded after this; until then, masks of ones do no harm.
        self._masks.is_active = self._requested_rate > 0

    @property
    def rate_words(self) -> str:
        """What the rate is the share of."""
        return f"{'MACs' if self.settings.rate_of == 'macs' else self._rated} removed"

    @property
    def _rated(self) -> str:
        rate_of = self.settings.rate_of
        return f"{rate_of} of the layers that can lose some" if self._nncf and rate_of == "filters" else rate_of

    def cut_plan(self) -> list[Cut | AttributeChange]:
        """The cuts that `strip` makes; `cutting.apply_cut_plan` makes the same cuts in a newly built model."""
        return plan_cuts(self.groups, self._kept_units(), self._sizes)

    def statistics(self, quickly_collected_only: bool = False) -> LayerTable:
        """Shapes and costs of every layer, before the cut and after it."""
        removed, costs = self._removed(), self._costs
        totals = ", ".join(f"{kind} {costs.total(kind)} -> {costs.left(kind, removed)}" for kind in KINDS)
        rate = self._achieved_without(removed)
        return LayerTable(
            algorithm=self.name,
            rate=rate,
            headline=f"{rate:.4f} of the {self._rated} are removed ({totals})",
            columns=layer_columns(self.model, costs, removed, self.cut_plan()),
            notes=self.not_cut,
            note_format="not cut: {layer}: {reason}",
            figures=(pruning_figures(self.model, self.groups, costs, removed, rate, self.settings),),
        )

    @property
    def macs_share(self) -> float:
        return self._costs.left("macs", self._removed()) / self._costs.total("macs")

    def compact(self, last: CompactModel | None = None, *, to_train: bool = False) -> CompactModel | None:
        needs_gradients = self._taylor.followed and not self._is_ranked_by_search
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
        if plan and not controller._is_ranked_by_search:
            controller._taylor.warn_without_any()
        expected = controller._outputs()
        controller._masks.apply()
        remove_masks(model, controller._masks)
        exclude_from_ddp(model)
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
        model, inputs = self.model, self._example()
        if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
            model = copy.deepcopy(model).float()
            inputs = placed_like(inputs, model)
        return outputs_of(model, inputs)

    def _example(self) -> ModelInputs:
        """The example input on the device and in the precision of the model; random where it is constant.

        An input of zeros, as NNCF's files describe it, would hide differences.
        """
        generator = torch.Generator().manual_seed(0)

        def varied(part: Tensor) -> Tensor:
            is_constant = part.is_floating_point() and part.numel() > 1 and bool((part == part.flatten()[0]).all())
            return torch.randn(part.shape, generator=generator) if is_constant else part

        return placed_like(map_tensors(varied, self.example_input), self.model)
