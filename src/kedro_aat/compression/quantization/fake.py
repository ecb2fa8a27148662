"""Fake quantization: a model computes as if some of its layers were quantized, so that training adapts to the rounding.

`FakeQuantization` runs in place of the model's `forward`. It rounds the weights of quantized layers and the tensors
that `placement.py` finds. The parameters themselves stay in full precision, so a layer can be released again.
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
from kedro_aat.compression.quantization.calls import Recording, StepInterceptor, own_forward, record_calls
from kedro_aat.compression.quantization.layers import is_replaceable
from kedro_aat.compression.quantization.placement import Placement, Site, describe_slot, find_placement, num_slots
from kedro_aat.compression.scopes import PrunableWeight
from kedro_aat.compression.settings import Quantization
from kedro_aat.errors import DataError, ModelError
from kedro_aat.model_inputs import ModelInputs, arguments_of
from kedro_aat.modes import evaluating

# Names of two buffers of the model.
ACTIVE = "_quantized_layers"
RANGES = "_activation_ranges"


def refuse_compressed(model: nn.Module) -> None:
    """Checks that no algorithm compresses the model yet.

    Raises:
        ModelError: If one does; the message explains how to combine algorithms.
    """
    is_masked = carries_masks(model)
    if is_masked or hasattr(model, ACTIVE):
        raise ModelError(
            f"{type(model).__name__} {'carries masks' if is_masked else 'is under quantization'} already: pass a new "
            "model, the controller's strip(), or, to combine algorithms, their settings as a list. They are then "
            "applied in an order that works."
        )


class FakeQuantization:
    """Runs a model with some of its layers quantized.

    Buffers of the model hold which layers these are, and the ranges of activations, so that its `state_dict` carries
    both. They are copied to the host once after each change, never within a step.

    Args:
        model: Receives the two buffers.
        layers: Layers that can be quantized; a layer's number is its index here.
        settings: Settings of the algorithm.
        highest: Largest integer of a weight.

    Attributes:
        placements: Where the forward pass can be quantized in evaluation (False) and in training (True), as far as
            recorded.
        num_observed: Training steps in which the ranges were updated.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[PrunableWeight], settings: Quantization, highest: int
    ) -> None:
        self.model, self.layers, self.highest = model, layers, highest
        self._settings = settings
        self.placements: dict[bool, Placement] = {}
        self.num_observed = 0
        self._active: frozenset[int] | None = None  # None: to be read from the buffer
        self._is_ready: dict[bool, bool] = {}
        device = layers[0].parameter.device
        model.register_buffer(ACTIVE, torch.zeros(len(layers), dtype=torch.bool, device=device))
        model.register_buffer(RANGES, torch.zeros(num_slots(len(layers)), 2, device=device))
        self._load_hook = model.register_load_state_dict_post_hook(self._after_load)

    def remove(self) -> None:
        """Removes the buffers and the hook from the model."""
        for name in (ACTIVE, RANGES):
            delattr(self.model, name)
        self._load_hook.remove()

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
        """(slots, 2) - lowest and highest number of each tensor; 0 and 0 while unknown."""
        return self.model.get_buffer(RANGES)

    # Under torch.compile the model runs uncompiled, since a mode that counts steps cannot be compiled.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # untyped in torch
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs in place of the model's `forward`."""
        is_training = self.model.training
        if not self.active:
            return own_forward(self.model, *args, **kwargs)
        if not self._is_ready.get(is_training):
            self._prepare(is_training, args, kwargs)
        limit = self._settings.observed_steps
        # Passes without gradient, such as those that only update the statistics of BatchNorms, are no training steps.
        is_observing = is_training and torch.is_grad_enabled() and (limit is None or self.num_observed < limit)
        interceptor = _FakeRounding(
            self,
            self.placements[is_training],
            is_exact=not is_training,
            is_rounding=not (is_training and self._settings.calibration_only),
            is_observing=is_observing,
        )
        result = interceptor.run(self.model, args, kwargs)
        if is_observing:
            self._update_ranges(interceptor.observed)
            self.num_observed += 1
        return result

    def observe(self, batches: Iterable[ModelInputs]) -> None:
        """Sets the ranges of all tensors to their means over batches, in evaluation mode and full precision.

        Args:
            batches: What the model is called with, in any structure.

        Raises:
            DataError: If there are no batches, or a tensor is not finite.
        """
        total, num_batches = torch.zeros_like(self.ranges), 0
        for batch in batches:
            recording = self._record(False, *arguments_of(self.model, batch))
            total += self._ranges_in(recording, self.placements[False].sites)
            num_batches += 1
        if num_batches == 0:
            raise DataError("calibration needs at least one batch, but got none.")
        self._set_ranges(self.placements[False].sites, total / num_batches)

    def find_steps(self, batch: ModelInputs) -> None:
        """Finds the placement of evaluation again, for a model that has changed; known ranges are kept."""
        self._set_unknown_ranges(False, self._record(False, *arguments_of(self.model, batch)))

    def _prepare(self, is_training: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Finds missing placements and ranges from the first batch."""
        for mode in sorted({False, is_training}):
            known = self._known_slots()
            placement = self.placements.get(mode)
            if placement is None or not all(known[site.slot] for site in self.active_sites(placement).values()):
                self._set_unknown_ranges(mode, self._record(mode, args, kwargs))
            self._is_ready[mode] = True

    def _known_slots(self) -> list[bool]:
        known: list[bool] = self.ranges.any(dim=1).tolist()
        return known

    def _record(self, is_training: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Recording:
        """Runs the model in full precision and finds the placement; restores buffers and random numbers."""
        model = self.model
        tracked: list[tuple[str, nn.Module, Tensor]] = [
            (name, module, module.running_mean)
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None and is_replaceable(module)
        ]
        tracked += [(layer.layer, layer.module, layer.parameter) for layer in self.layers]
        devices = [self.ranges.device] if self.ranges.is_cuda else []
        mode = contextlib.nullcontext() if is_training else evaluating(model)
        with torch.random.fork_rng(devices), _restored_buffers(model), mode, _owners_at_work(tracked) as owners:
            recording = record_calls(partial(own_forward, model), owners, args, kwargs)
        numbers = {layer.layer: number for number, layer in enumerate(self.layers)}
        placement = find_placement(recording, numbers, quantize_inputs=self._settings.quantize_inputs)
        called = {call.layer for call in placement.calls}
        unused = [layer.layer for number, layer in enumerate(self.layers) if number not in called]
        if unused and not is_training:
            raise ModelError(
                f"the forward pass of {type(model).__name__} does not use the weights of {', '.join(unused)} by "
                "calling these layers with a tensor that depends on its input, so they cannot be quantized: list them "
                "under `ignored_scopes`."
            )
        self.placements[is_training] = placement
        return recording

    def _ranges_in(self, recording: Recording, sites: Iterable[Site]) -> Tensor:
        """(slots, 2) - if a slot serves several tensors, because a layer is called twice, its range covers them all."""
        ranges = torch.zeros_like(self.ranges)
        for site in sites:
            low, high = recording.ranges[recording.value_of(site.step)]
            ranges[site.slot, 0] = torch.minimum(ranges[site.slot, 0], low)  # every range includes 0
            ranges[site.slot, 1] = torch.maximum(ranges[site.slot, 1], high)
        return ranges

    def _set_unknown_ranges(self, is_training: bool, recording: Recording) -> None:
        known = self._known_slots()
        sites = [site for site in self.placements[is_training].sites if not known[site.slot]]
        self._set_ranges(sites, self._ranges_in(recording, sites))

    def _set_ranges(self, sites: Sequence[Site], ranges: Tensor) -> None:
        slots = [site.slot for site in sites]
        finite = ranges[slots].isfinite().all(dim=1).tolist()
        layers = [layer.layer for layer in self.layers]
        wrong = [describe_slot(slot, layers) for slot, is_finite in zip(slots, finite, strict=True) if not is_finite]
        if wrong:
            raise DataError(
                f"the batch from which ranges are taken makes numbers that are not finite at {', '.join(wrong)}: check "
                "the data and the model's weights."
            )
        self.ranges[slots] = ranges[slots]

    @torch.no_grad()
    def _update_ranges(self, observed: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Moves the averages of the ranges towards those of a batch; numbers that are not finite are ignored."""
        slots = list(observed)
        batch_ranges = torch.stack([end for ends in observed.values() for end in ends]).float().view(-1, 2)
        ranges = self.ranges[slots]
        moved = torch.lerp(ranges, batch_ranges, self._settings.range_momentum)
        self.ranges[slots] = torch.where(batch_ranges.isfinite(), moved, ranges)

    def active_sites(self, placement: Placement) -> dict[int, Site]:
        """Step -> the site that is quantized there."""
        return {site.step: site for site in placement.sites if not self.active.isdisjoint(site.owners)}


class _FakeRounding(StepInterceptor):
    """Rounds and observes the tensors of one forward pass.

    Attributes:
        observed: Slot -> lowest and highest number of its tensors; empty unless `is_observing`.
    """

    def __init__(
        self, fake: FakeQuantization, placement: Placement, *, is_exact: bool, is_rounding: bool, is_observing: bool
    ) -> None:
        self._sites = fake.active_sites(placement)
        self._layers = {call.step for call in placement.calls if call.layer in fake.active} if is_rounding else set()
        super().__init__({step: placement.names[step] for step in {*self._sites, *self._layers} if step >= 0})
        self._is_exact, self._is_rounding, self._is_observing = is_exact, is_rounding, is_observing
        self._highest = fake.highest
        scales, zero_points = activation_scales(fake.ranges)
        self._scales, self._zero_points = scales.unbind(), zero_points.unbind()
        self.observed: dict[int, tuple[Tensor, Tensor]] = {}

    def change_arguments(self, step: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if step not in self._layers:
            return args
        return (args[0], round_weight(args[1], self._highest), *args[2:])

    def change_result(self, step: int, result: Tensor) -> Tensor:
        site = self._sites.get(step)
        if site is None:
            return result
        if self._is_observing:
            low, high = torch.aminmax(result.detach())
            if site.slot in self.observed:
                lowest, highest = self.observed[site.slot]
                low, high = torch.minimum(low, lowest), torch.maximum(high, highest)
            self.observed[site.slot] = low, high
        if not self._is_rounding:
            return result
        scale, zero_point = self._scales[site.slot], self._zero_points[site.slot]
        if self._is_exact:  # as the stripped model rounds
            return round_to_uint8(result.float(), scale, zero_point).to(result.dtype)
        return round_activation(result, scale, zero_point)


@contextlib.contextmanager
def _owners_at_work(tracked: Sequence[tuple[str, nn.Module, Tensor]]) -> Iterator[Mapping[int, str]]:
    """`id` of a tensor -> name of its module, but only while that module's `forward` runs.

    A function that reads the tensor elsewhere is not part of the module, and would still read the tensor after another
    module has replaced this one.

    Args:
        tracked: Name, module, and a tensor that the module's main function reads.
    """
    owners: dict[int, str] = {}

    def tracked_forward(name: str, module: nn.Module, tensor: Tensor) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            owners[id(tensor)] = name
            try:
                return own_forward(module, *args, **kwargs)
            finally:
                del owners[id(tensor)]

        return forward

    for name, module, tensor in tracked:
        vars(module)["forward"] = tracked_forward(name, module, tensor)
    try:
        yield owners
    finally:
        for _, module, _ in tracked:
            del vars(module)["forward"]


@contextlib.contextmanager
def _restored_buffers(model: nn.Module) -> Iterator[None]:
    """Undoes changes of buffers within, such as those of a BatchNorm's statistics."""
    copies = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, copy in copies:
            buffer.copy_(copy)
