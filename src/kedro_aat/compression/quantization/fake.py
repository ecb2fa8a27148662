"""Fake quantization: a model computes as if some of its layers were quantized, so that training adapts to the rounding.

`FakeQuantization` follows the calls of a model and of the modules in it. Whoever reads the weight of a quantized layer
gets the rounded one, and the tensors that `placement.py` finds are rounded. The parameters themselves stay in full
precision, so a layer can be released again.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kedro_aat.compression.masks import carries_masks
from kedro_aat.compression.quantization.arithmetic import activation_scales, weight_scales
from kedro_aat.compression.quantization.calls import Follower, ModuleCall, Pass
from kedro_aat.compression.quantization.compiled import CompiledPasses
from kedro_aat.compression.quantization.fake_pass import FakePass, stacked
from kedro_aat.compression.quantization.layers import is_replaceable
from kedro_aat.compression.quantization.placement import Placement, Site, describe_slot, find_placement, num_slots
from kedro_aat.compression.quantization.places import CallTree
from kedro_aat.compression.quantization.recording import Recording, record_calls
from kedro_aat.compression.quantization.weights import QuantizableWeight
from kedro_aat.compression.settings import Quantization
from kedro_aat.errors import DataError, ModelError
from kedro_aat.model_inputs import ModelInputs, arguments_of
from kedro_aat.modes import evaluating

# Names of two buffers of the model.
ACTIVE = "_quantized_layers"
RANGES = "_activation_ranges"

_KEYS = itertools.count()


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


class FakeQuantization(Follower):
    """Runs a model with some of its layers quantized.

    Buffers of the model hold which layers these are, and the ranges of activations, so that its `state_dict` carries
    both. They are copied to the host once after each change, never within a step.

    Args:
        model: Receives the two buffers.
        layers: Weights that can be quantized, those that are computed in integers first; a layer's number is its index.
        settings: Settings of the algorithm.
        highest: Largest integer of a weight.
        example: Inputs of the model, for a model that is only called in parts; None if unknown.

    Attributes:
        placement: Where the forward pass can be quantized; None until it is recorded, in evaluation mode.
        num_observed: Training steps in which the ranges were updated.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[QuantizableWeight],
        settings: Quantization,
        highest: int,
        example: ModelInputs | None,
    ) -> None:
        super().__init__(model)
        self.layers, self.highest = layers, highest
        self.computed = [layer for layer in layers if layer.is_computed]
        self._settings, self._example = settings, example
        self._placement: Placement | None = None
        self._tree = CallTree([], [])
        self._key = next(_KEYS)
        self.num_observed = 0
        self._seen: set[int] = set()  # slots that were observed in the present step
        self._scales: tuple[Tensor, Tensor] | None = None  # those of the last pass, and zero points
        self._compiled: CompiledPasses | None = None
        self._indices: dict[tuple[int, ...], Tensor] = {}  # slots -> the same on the device
        self._active: frozenset[int] | None = None  # None: to be read from the buffer
        self._is_ready = False
        device = layers[0].parameter.device
        model.register_buffer(ACTIVE, torch.zeros(len(layers), dtype=torch.bool, device=device))
        model.register_buffer(RANGES, torch.zeros(num_slots(len(self.computed)), 2, device=device))
        self._load_hooks = [
            model.register_load_state_dict_pre_hook(self._before_load),
            model.register_load_state_dict_post_hook(self._after_load),
        ]
        self.follow()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the scales of the last pass and the graphs, and gives the copy a key of its own."""
        return self.__dict__ | {"_scales": None, "_compiled": None, "_indices": {}, "_key": next(_KEYS)}

    def compile(self, mode: str | None = None) -> None:
        """Runs training passes of the whole model as compiled graphs from now on.

        Args:
            mode: Mode of `torch.compile`; None for its default.
        """
        self._compiled = CompiledPasses(self.model, mode)

    def remove(self) -> None:
        """Removes the buffers and the hooks from the model."""
        for name in (ACTIVE, RANGES):
            delattr(self.model, name)
        for hook in self._load_hooks:
            hook.remove()

    def _before_load(self, model: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
        saved = state.get(prefix + ACTIVE)
        if saved is not None and len(saved) == len(self.computed):  # versions up to 0.2 know no other layers
            state[prefix + ACTIVE] = torch.cat([saved, saved.new_zeros(len(self.layers) - len(saved))])

    def _after_load(self, model: nn.Module, keys: Any) -> None:
        self._active = None
        self._is_ready = False

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
        self._is_ready = False

    def axis_of(self, number: int) -> int:
        """Dimension of a layer's weight along which its scales differ: that of its inputs if these are unlike."""
        is_by_input = self.placement is not None and number in self.placement.with_float_inputs
        return 1 if is_by_input else self.layers[number].axis

    def scales_of(self, number: int) -> tuple[str, Tensor]:
        """Key and scales of a quantized weight; the key is the layer's name if there is one scale per output."""
        layer, axis = self.layers[number], self.axis_of(number)
        key = layer.key if axis == layer.axis else layer.name
        return key, weight_scales(layer.parameter, self.highest, axis)

    @property
    def placement(self) -> Placement | None:
        """Where the forward pass can be quantized."""
        return self._placement

    @placement.setter
    def placement(self, placement: Placement | None) -> None:
        self._placement = placement
        self._is_ready = False
        self._tree = CallTree(placement.frames, [site.place for site in placement.sites]) if placement else self._tree

    @property
    def ranges(self) -> Tensor:
        """(slots, 2) - lowest and highest number of each tensor; 0 and 0 while unknown."""
        return self.model.get_buffer(RANGES)

    def begin(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass | None:
        if not self.active:
            return None
        if not self._is_ready:
            self._prepare(call, args, kwargs)
        is_training = self.model.training
        # Within the backward pass, gradient checkpointing calls a part of the forward pass again: with the same scales.
        is_again = torch._C._current_graph_task_id() != -1
        if self._scales is None or not is_again:
            self._scales = activation_scales(self.ranges)
        limit = self._settings.observed_steps
        # Passes without gradient, such as those that only update the statistics of BatchNorms, are no training steps.
        is_observing = is_training and torch.is_grad_enabled() and not is_again
        return FakePass(
            self,
            self._tree,
            key=self._key,
            sites=self.active_sites(),
            axes={id(self.layers[number].parameter): self.axis_of(number) for number in self.active},
            highest=self.highest,
            scales=(self._scales[0].unbind(), self._scales[1].unbind()),
            is_exact=not is_training,
            is_rounding=not (is_training and self._settings.calibration_only),
            is_observing=is_observing and (limit is None or self.num_observed < limit),
        )

    def run_in(self, begun: Pass, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = functools.partial(super().run_in, begun, call, args, kwargs)
        is_again = torch._C._current_graph_task_id() != -1
        if (
            self._compiled is None
            or call.name
            or not self.model.training
            or is_again
            or not isinstance(begun, FakePass)
        ):
            return run()
        assert self._scales is not None  # `begin` has computed them
        return self._compiled.run(begun, self._scales, run, args, kwargs)

    def end(self, done: Pass) -> None:
        assert isinstance(done, FakePass)  # made by `begin`
        if not done.observed:
            if done.is_observing and not self.computed:
                self.num_observed += 1
            return
        self._update_ranges(done.observed)
        # A step may consist of several calls of different modules.
        if not self._seen or not self._seen.isdisjoint(done.observed):
            self.num_observed += 1
            self._seen = set()
        self._seen.update(done.observed)

    def observe(self, batches: Iterable[ModelInputs]) -> None:
        """Sets the ranges of all tensors to their means over batches, in evaluation mode and full precision.

        Args:
            batches: What the model is called with, in any structure.

        Raises:
            DataError: If there are no batches, or a tensor is not finite.
        """
        total, num_batches = torch.zeros_like(self.ranges), 0
        for batch in batches:
            recording, placement = self._record(*arguments_of(self.model, batch), is_new=num_batches == 0)
            total += self._ranges_in(recording, placement.sites)
            num_batches += 1
        if num_batches == 0:
            raise DataError("calibration needs at least one batch, but got none.")
        self._set_ranges(placement.sites, total / num_batches)

    def find_places(self, batch: ModelInputs) -> None:
        """Finds the placement, for a new model or one that has changed; known ranges are kept."""
        self._set_unknown_ranges(*self._record(*arguments_of(self.model, batch)))

    def _prepare(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Finds the placement and missing ranges from the first batch."""
        known = self._known_slots()
        if self.placement is None or not all(known[site.slot] for site in self.active_sites().values()):
            if call.name:
                if self._example is None:
                    raise ModelError(
                        f"{call.name} is called before {type(self.model).__name__} itself, so it is unknown which of "
                        "its tensors are to be quantized: call calibrate(batches) first, or pass an example_input."
                    )
                args, kwargs = arguments_of(self.model, self._example)
            self._set_unknown_ranges(*self._record(args, kwargs))
        self._is_ready = True

    def _known_slots(self) -> list[bool]:
        known: list[bool] = self.ranges.any(dim=1).tolist()
        return known

    def _record(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_new: bool = False
    ) -> tuple[Recording, Placement]:
        """Runs the model in full precision and finds the placement; restores buffers and random numbers."""
        model = self.model
        norms: list[tuple[str, nn.Module, Tensor]] = [
            (name, module, module.running_mean)
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None and is_replaceable(module)
        ]
        owned = {id(layer.parameter): layer.layer for layer in self.computed}
        devices = [self.ranges.device] if self.ranges.is_cuda else []
        with (
            torch.random.fork_rng(devices),
            _restored_buffers(model),
            evaluating(model),
            _norms_at_work(norms) as at_work,
        ):
            recording = record_calls(self, owned, at_work, args, kwargs)
        numbers = {layer.layer: number for number, layer in enumerate(self.computed)}
        before = None if is_new or self.placement is None else self.placement.with_float_inputs
        self.placement = find_placement(
            recording, numbers, quantize_inputs=self._settings.quantize_inputs, with_float_inputs=before
        )
        return recording, self.placement

    def _ranges_in(self, recording: Recording, sites: Iterable[Site]) -> Tensor:
        """(slots, 2) - if a slot serves several tensors, because a layer is called twice, its range covers them all."""
        ranges = torch.zeros_like(self.ranges)
        for site in sites:
            low, high = recording.ranges[site.value]
            ranges[site.slot, 0] = torch.minimum(ranges[site.slot, 0], low)  # every range includes 0
            ranges[site.slot, 1] = torch.maximum(ranges[site.slot, 1], high)
        return ranges

    def _set_unknown_ranges(self, recording: Recording, placement: Placement) -> None:
        known = self._known_slots()
        sites = [site for site in placement.sites if not known[site.slot]]
        self._set_ranges(sites, self._ranges_in(recording, sites))

    def _set_ranges(self, sites: Sequence[Site], ranges: Tensor) -> None:
        slots = [site.slot for site in sites]
        finite = ranges[slots].isfinite().all(dim=1).tolist()
        layers = [layer.layer for layer in self.computed]
        wrong = [describe_slot(slot, layers) for slot, is_finite in zip(slots, finite, strict=True) if not is_finite]
        if wrong:
            raise DataError(
                f"the batch from which ranges are taken makes numbers that are not finite at {', '.join(wrong)}: check "
                "the data and the model's weights."
            )
        self.ranges[slots] = ranges[slots]

    @torch.no_grad()
    def _update_ranges(self, observed: Mapping[int, Sequence[Tensor] | Tensor]) -> None:
        """Moves the averages of the ranges towards those of a batch; numbers that are not finite are ignored."""
        key = tuple(observed)
        if key not in self._indices:  # a list would be copied to the device in every step, which waits for it
            self._indices[key] = torch.tensor(key, device=self.ranges.device)
        slots, batch_ranges = self._indices[key], stacked(observed.values())
        ranges = self.ranges[slots]
        moved = torch.lerp(ranges, batch_ranges, self._settings.range_momentum)
        self.ranges[slots] = torch.where(batch_ranges.isfinite(), moved, ranges)

    def active_sites(self) -> dict[int, Site]:
        """Number -> site that is quantized."""
        sites = self.placement.sites if self.placement else ()
        return {number: site for number, site in enumerate(sites) if not self.active.isdisjoint(site.owners)}


@contextlib.contextmanager
def _norms_at_work(norms: Sequence[tuple[str, nn.Module, Tensor]]) -> Iterator[Mapping[int, str]]:
    """`id` of a BatchNorm's tensor -> its name, but only while its `forward` runs.

    A function that reads the tensor elsewhere would still read it after another module has replaced this one.

    Args:
        norms: Name, BatchNorm, and a tensor that its main function reads.
    """
    at_work: dict[int, str] = {}

    def tracked_forward(name: str, module: nn.Module, tensor: Tensor) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            at_work[id(tensor)] = name
            try:
                return type(module).forward(module, *args, **kwargs)
            finally:
                del at_work[id(tensor)]

        return forward

    for name, module, tensor in norms:
        vars(module)["forward"] = tracked_forward(name, module, tensor)
    try:
        yield at_work
    finally:
        for _, module, _ in norms:
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
