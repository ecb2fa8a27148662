"""A model that computes as if layers of it were quantized, so that training makes up for the rounding.

It stands before the model's `forward` and rounds, as they pass, the weights of quantized layers and the tensors
that `sites.py` finds. The parameters themselves stay in full precision, so that a layer can be let go again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kedro_aat.compression.masks import carries_masks
from kedro_aat.compression.quantization.arithmetic import (
    activation_scales,
    round_activation,
    round_to_uint8,
    round_weight,
)
from kedro_aat.compression.quantization.calls import Follower, Recording, change_inputs, own_forward, record_calls
from kedro_aat.compression.quantization.layers import is_replaceable
from kedro_aat.compression.quantization.placement import Plan, Site, describe_slot, num_slots, plan_sites
from kedro_aat.compression.scopes import PrunableWeight
from kedro_aat.compression.settings import Quantization
from kedro_aat.errors import DataError, ModelError
from kedro_aat.modes import evaluating

ACTIVE, RANGES = "_quantized_layers", "_activation_ranges"


def refuse_compressed(model: nn.Module) -> None:
    """Sees to it that no algorithm has been put on a model yet.

    Raises:
        ModelError: Says which kind has, and how several go together.
    """
    masked = carries_masks(model)
    if masked or hasattr(model, ACTIVE):
        raise ModelError(
            f"{type(model).__name__} {'carries masks' if masked else 'is under quantization'} already: give the "
            "controller's strip(), a new model, or the settings of all its algorithms as a list, which are then put on "
            "in an order that works."
        )


class FakeQuantization:
    """Runs a model with layers of it quantized.

    Which they are, and the ranges of activations, are buffers of the model, so that its `state_dict` carries them.
    They are read to the host once after each change, never within a step.

    Args:
        model: Gets the two buffers.
        layers: That can be quantized; their order numbers them.
        settings: Of the algorithm.
        highest: The largest integer of a weight.

    Attributes:
        plans: What was recorded, for evaluation (False) and for training (True).
        num_observed: Training steps in which the ranges were updated.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[PrunableWeight], settings: Quantization, highest: int
    ) -> None:
        self.model, self.layers, self.highest = model, layers, highest
        self._settings = settings
        self.plans: dict[bool, Plan] = {}
        self.num_observed = 0
        self._active: frozenset[int] | None = None  # None: to be read from the buffer
        self._is_ready: dict[bool, bool] = {}
        device = layers[0].parameter.device
        model.register_buffer(ACTIVE, torch.zeros(len(layers), dtype=torch.bool, device=device))
        model.register_buffer(RANGES, torch.zeros(num_slots(len(layers)), 2, device=device))
        model.register_load_state_dict_post_hook(self._after_load)

    def remove(self) -> None:
        """Takes buffers and hook out of the model again."""
        for name in (ACTIVE, RANGES):
            delattr(self.model, name)
        hooks = self.model._load_state_dict_post_hooks
        for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
            del hooks[key]

    def _after_load(self, model: nn.Module, keys: Any) -> None:
        self._active = None
        self._is_ready.clear()

    @property
    def active(self) -> frozenset[int]:
        """Numbers of the layers that are quantized."""
        if self._active is None:
            self._active = frozenset(self.model.get_buffer(ACTIVE).nonzero().flatten().tolist())
        return self._active

    @active.setter
    def active(self, layers: Iterable[int]) -> None:
        chosen = sorted(layers)
        buffer = self.model.get_buffer(ACTIVE)
        buffer.zero_()
        buffer[chosen] = True
        self._active = frozenset(chosen)
        self._is_ready.clear()

    @property
    def ranges(self) -> Tensor:
        """(slots, 2) - lowest and highest number of each tensor, 0 and 0 while unknown."""
        return self.model.get_buffer(RANGES)

    # Under torch.compile the model runs as it is written, since a mode that counts steps cannot be compiled.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # untyped in torch
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called in place of the model's own."""
        is_training = self.model.training
        if not self.active:
            return own_forward(self.model, *args, **kwargs)
        if not self._is_ready.get(is_training):
            self._prepare(is_training, args, kwargs)
        limit = self._settings.observed_steps
        # Passes without gradient, such as those that only renew the statistics of BatchNorms, are no steps.
        is_observing = is_training and torch.is_grad_enabled() and (limit is None or self.num_observed < limit)
        follower = _Quantizing(
            self,
            self.plans[is_training],
            is_exact=not is_training,
            is_rounding=not (is_training and self._settings.calibration_only),
            is_observing=is_observing,
        )
        args, kwargs = change_inputs(args, kwargs, lambda tensor, step: follower.result(step, tensor))
        with follower:
            result = own_forward(self.model, *args, **kwargs)
        if is_observing:
            self._follow(follower.seen)
            self.num_observed += 1
        return result

    def observe(self, batches: Iterable[tuple[Any, ...]]) -> None:
        """Sets the ranges of all tensors to their means over batches, in evaluation mode and full precision.

        Args:
            batches: The positional arguments of each call of the model.

        Raises:
            DataError: If there are no batches, or a tensor is not finite.
        """
        total, num_batches = torch.zeros_like(self.ranges), 0
        for args in batches:
            recording = self._record(False, args, {})
            total += self._ranges_in(recording, self.plans[False].sites)
            num_batches += 1
        if num_batches == 0:
            raise DataError("calibration needs at least one batch, but got none.")
        self._set_ranges(self.plans[False].sites, total / num_batches)

    def find_steps(self, batch: Tensor) -> None:
        """Makes the plan of evaluation anew, for a model that was changed; known ranges stay what they are."""
        known = self.ranges.any(dim=1).tolist()
        recording = self._record(False, (batch,), {})
        unknown = [site for site in self.plans[False].sites if not known[site.slot]]
        self._set_ranges(unknown, self._ranges_in(recording, unknown))

    def _prepare(self, is_training: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Makes the plans, and ranges where there are none yet, from the first batch."""
        for mode in sorted({False, is_training}):
            known = self.ranges.any(dim=1).tolist()
            plan = self.plans.get(mode)
            if plan is None or not all(known[site.slot] for site in self.sites(plan).values()):
                recording = self._record(mode, args, kwargs)
                unknown = [site for site in self.plans[mode].sites if not known[site.slot]]
                self._set_ranges(unknown, self._ranges_in(recording, unknown))
            self._is_ready[mode] = True

    def _record(self, is_training: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Recording:
        """Runs the model in full precision, makes the plan, and leaves buffers and random numbers as they were."""
        model = self.model
        held: list[tuple[str, nn.Module, Tensor]] = [
            (name, module, module.running_mean)
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None and is_replaceable(module)
        ]
        held += [(layer.layer, layer.module, layer.parameter) for layer in self.layers]
        forked = [self.ranges.device] if self.ranges.is_cuda else []
        mode = contextlib.nullcontext() if is_training else evaluating(model)
        with torch.random.fork_rng(forked), _unchanged_buffers(model), mode, _owners_at_work(held) as owners:
            recording = record_calls(partial(own_forward, model), owners, args, kwargs)
        numbers = {layer.layer: number for number, layer in enumerate(self.layers)}
        plan = plan_sites(recording, numbers, quantize_inputs=self._settings.quantize_inputs)
        called = {call.layer for call in plan.calls}
        unseen = [layer.layer for number, layer in enumerate(self.layers) if number not in called]
        if unseen and not is_training:
            raise ModelError(
                f"the forward pass of {type(model).__name__} does not use the weights of {', '.join(unseen)} by "
                "calling these layers with a tensor that torch made from its input, so they cannot be quantized: name "
                "them under `ignored_scopes`."
            )
        self.plans[is_training] = plan
        return recording

    def _ranges_in(self, recording: Recording, sites: Iterable[Site]) -> Tensor:
        """(slots, 2) - of a slot that serves several tensors, as where a layer is called twice, around them all."""
        ranges = torch.zeros_like(self.ranges)
        for site in sites:
            low, high = recording.ranges[recording.value_of(site.step)]
            ranges[site.slot, 0] = torch.minimum(ranges[site.slot, 0], low)  # a range holds 0 in any case
            ranges[site.slot, 1] = torch.maximum(ranges[site.slot, 1], high)
        return ranges

    def _set_ranges(self, sites: Sequence[Site], ranges: Tensor) -> None:
        slots = [site.slot for site in sites]
        finite = ranges[slots].isfinite().all(dim=1).tolist()
        names = [layer.layer for layer in self.layers]
        if wrong := [
            describe_slot(slot, names) for slot, is_finite in zip(slots, finite, strict=True) if not is_finite
        ]:
            raise DataError(
                f"the batch from which ranges are taken makes numbers that are not finite at {', '.join(wrong)}: check "
                "the data and the model's weights."
            )
        self.ranges[slots] = ranges[slots]

    @torch.no_grad()
    def _follow(self, seen: Mapping[int, list[Tensor]]) -> None:
        """Moves the averages of the ranges; numbers that are not finite are passed over."""
        slots = list(seen)
        new = torch.stack([end for ends in seen.values() for end in ends]).float().view(-1, 2)
        old = self.ranges[slots]
        moved = torch.lerp(old, new, self._settings.range_momentum)
        self.ranges[slots] = torch.where(new.isfinite(), moved, old)

    def sites(self, plan: Plan) -> dict[int, Site]:
        """Step -> the site that is quantized there."""
        return {site.step: site for site in plan.sites if not self.active.isdisjoint(site.owners)}


class _Quantizing(Follower):
    """One forward pass.

    Attributes:
        seen: Slot -> lowest and highest number that passed; empty unless it is observing.
    """

    def __init__(self, fake: FakeQuantization, plan: Plan, *, is_exact: bool, is_rounding: bool, is_observing: bool):
        self._sites = fake.sites(plan)
        self._layers = {call.step for call in plan.calls if call.layer in fake.active} if is_rounding else set()
        super().__init__({step: plan.names[step] for step in {*self._sites, *self._layers} if step >= 0})
        self._is_exact, self._is_rounding, self._is_observing = is_exact, is_rounding, is_observing
        self._highest = fake.highest
        scales, zero_points = activation_scales(fake.ranges)
        self._scales, self._zero_points = scales.unbind(), zero_points.unbind()
        self.seen: dict[int, list[Tensor]] = {}

    def arguments(self, step: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if step not in self._layers:
            return args
        return (args[0], round_weight(args[1], self._highest), *args[2:])

    def result(self, step: int, result: Tensor) -> Tensor:
        site = self._sites.get(step)
        if site is None:
            return result
        if self._is_observing:
            low, high = torch.aminmax(result.detach())
            if site.slot in self.seen:
                before = self.seen[site.slot]
                low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
            self.seen[site.slot] = [low, high]
        if not self._is_rounding:
            return result
        scale, zero_point = self._scales[site.slot], self._zero_points[site.slot]
        if self._is_exact:
            return round_to_uint8(result.float(), scale, zero_point).to(result.dtype)
        return round_activation(result, scale, zero_point)


@contextlib.contextmanager
def _owners_at_work(held: Sequence[tuple[str, nn.Module, Tensor]]) -> Iterator[Mapping[int, str]]:
    """`id` of a tensor -> name of the module that holds it, while that module's `forward` runs.

    A function that is given the tensor elsewhere is not the module's work, and goes on to ask for the tensor when
    another module has taken this one's place.

    Args:
        held: Name, module, and the tensor that tells its work.
    """
    owners: dict[int, str] = {}

    def noted(name: str, module: nn.Module, tensor: Tensor) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            owners[id(tensor)] = name
            try:
                return own_forward(module, *args, **kwargs)
            finally:
                del owners[id(tensor)]

        return forward

    for name, module, tensor in held:
        vars(module)["forward"] = noted(name, module, tensor)
    try:
        yield owners
    finally:
        for _, module, _ in held:
            del vars(module)["forward"]


@contextlib.contextmanager
def _unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """What is done to the buffers within is undone, such as a BatchNorm's statistics."""
    copies = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, copy in copies:
            buffer.copy_(copy)
