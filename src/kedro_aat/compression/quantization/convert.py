"""Converts a model that was trained with fake quantization to one that holds the integers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kedro_aat.compression.quantization.arithmetic import (
    activation_scales,
    broadcast_along,
    integer_weight,
    weight_scales,
)
from kedro_aat.compression.quantization.fake import FakeQuantization
from kedro_aat.compression.quantization.layers import (
    QuantizedLayerSpec,
    QuantizedModelSpec,
    QuantizedTensorSpec,
    make_quantized,
)
from kedro_aat.compression.quantization.placement import LayerCall
from kedro_aat.compression.quantization.places import Frame, Place

# Largest integer bias; leaves room below 2**31 for the sum of products that is added to it.
_HIGHEST_BIAS = 2**30


@torch.no_grad()
def hold_integers(model: nn.Module, fake: FakeQuantization, ranges: Tensor, scales: Mapping[str, Tensor]) -> None:
    """Lets the quantized layers of a model hold integers.

    Args:
        model: Changed in place; its `forward` is its own again, not that of `fake`.
        fake: Knows which layers are quantized, and the placement of evaluation.
        ranges: (slots, 2) - lowest and highest number of each activation.
        scales: Key of each quantized weight -> (n,) scales, as in training, even if the inputs with the largest weights
            have been cut since.
    """
    placement = fake.placement
    assert placement is not None  # `end_training` records it
    sites = fake.active_sites()
    slot_scales, zero_points = activation_scales(ranges)
    rounded_slots = {site.slot for site in sites.values()}
    num_calls = Counter(call.layer for call in placement.calls)
    computed = fake.active - set(placement.with_float_inputs)
    calls = {call.layer: call for call in placement.calls if call.layer in computed}
    tensors: dict[str, Tensor] = {}
    layers = []
    for call in calls.values():
        # A bias in int32 has the scale of the products to which it is added, so it is right for one call only.
        is_integer = call.slot in rounded_slots and num_calls[call.layer] == 1
        name = fake.layers[call.layer].layer
        input_scale = slot_scales[call.slot] if is_integer and call.slot is not None else None
        folded = _fold(model, name, call.norm, input_scale, scales[name])
        layers.append(
            QuantizedLayerSpec(
                layer=name, norm=call.norm, has_bias="bias" in folded, has_integer_bias="bias_scale" in folded
            )
        )
        tensors |= {f"{name}.{key}": tensor for key, tensor in folded.items()}
    stored: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for number in sorted(fake.active - calls.keys()):
        layer, axis = fake.layers[number], fake.axis_of(number)
        stored[layer.layer].append((layer.parameter_name, axis))
        now = scales.get(layer.key if axis == layer.axis else layer.name)
        if now is None or len(now) != layer.parameter.shape[axis]:  # some of what has a scale of its own was cut
            now = weight_scales(layer.parameter, fake.highest, axis)
        tensors |= {layer.name: integer_weight(layer.parameter, now, axis), f"{layer.name}_scale": now}
    layers += [QuantizedLayerSpec(layer=name, stored=tuple(weights)) for name, weights in stored.items()]
    numbers = {site: number for number, site in enumerate(sites)}
    with_norms: dict[_Where, list[LayerCall]] = defaultdict(list)
    for call in calls.values():
        if call.norm_place is not None:
            with_norms[_where(call.norm_place)].append(call)
    spec = QuantizedModelSpec(
        layers=tuple(layers),
        tensors=tuple(
            QuantizedTensorSpec(
                place=_without_norms(site.place, with_norms),
                scale=float(slot_scales[site.slot]),
                zero_point=int(zero_points[site.slot]),
            )
            for site in sites.values()
        ),
        frames=tuple(_renumbered(frame, numbers) for frame in placement.frames),
    )
    make_quantized(model, spec)
    state = model.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


def _renumbered(frame: Frame, numbers: Mapping[int, int]) -> Frame:
    """The frame with the numbers of the stripped model's tensors."""
    inputs = tuple((name, numbers[number]) for name, number in frame.inputs if number in numbers)
    return Frame(module=frame.module, caller=frame.caller, call=frame.call, inputs=inputs)


_Where = tuple[int, bool, str]  # a place without its number


def _without_norms(place: Place | None, with_norms: Mapping[_Where, Sequence[LayerCall]]) -> Place | None:
    """The place in the stripped model: the result of a folded BatchNorm is made by its layer."""
    for call in with_norms.get(_where(place), ()) if place is not None else ():
        norm = call.norm_place
        assert place is not None  # or there would be no call
        assert norm is not None
        if place.number == norm.number:
            return call.place
        if place.number > norm.number:
            place = Place(frame=place.frame, is_after=place.is_after, name=place.name, number=place.number - 1)
    return place


def _where(place: Place) -> _Where:
    return place.frame, place.is_after, place.name


def _fold(
    model: nn.Module, name: str, norm_name: str | None, input_scale: Tensor | None, scales: Tensor
) -> dict[str, Tensor]:
    """Integers and scales of a layer together with the BatchNorm that follows it.

    Args:
        model: In full precision.
        name: Name of the layer.
        norm_name: Name of the BatchNorm; None if there is none.
        input_scale: Scale of the layer's input, for a bias in int32; None for a bias in float32.
        scales: (out,) scales of the layer's weight.

    Returns:
        Entries of the `state_dict` of a quantized layer.
    """
    layer = model.get_submodule(name)
    weight = integer_weight(layer.get_parameter("weight"), scales)
    bias: Tensor | None = None if layer.bias is None else layer.get_parameter("bias").detach()
    if norm_name is not None:
        norm = model.get_submodule(norm_name)
        assert isinstance(norm, _BatchNorm)
        factor, shift = _affine(norm)
        # A channel's scale absorbs the size of the factor and its integers the sign, so they stay those of training.
        weight = weight * broadcast_along(0, factor.sign().to(torch.int8), weight)
        scales = scales * factor.abs()
        bias = shift if bias is None else bias * factor + shift
    if bias is None or input_scale is None:
        return _with_nonzero_scales(weight, scales) | ({} if bias is None else {"bias": bias})
    # If a BatchNorm's gamma near 0 scales a channel to almost nothing, its products are so small that the bias in
    # their scale would not fit in int32. Such a channel gets a coarser scale, and integers to match.
    least = bias.abs() / (input_scale * _HIGHEST_BIAS)
    coarser = torch.maximum(scales, least)
    ratio = torch.where(coarser > 0, scales / coarser, 0.0)
    weight = (weight * broadcast_along(0, ratio, weight)).round().to(torch.int8)
    tensors = _with_nonzero_scales(weight, coarser)
    bias_scale = tensors["weight_scale"] * input_scale
    return tensors | {"bias": (bias / bias_scale).round().to(torch.int32), "bias_scale": bias_scale}


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """(channels,) factor and shift of a BatchNorm in evaluation mode."""
    assert norm.running_mean is not None  # a BatchNorm without running statistics is not folded
    assert norm.running_var is not None
    factor = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight
    shift = -norm.running_mean * factor
    return factor, shift + norm.bias if norm.affine else shift


def _with_nonzero_scales(weight: Tensor, scales: Tensor) -> dict[str, Tensor]:
    """Weight and scales without scales of 0: such a channel gets the scale 1 and holds zeros."""
    is_zero = scales == 0
    weight = weight.masked_fill(broadcast_along(0, is_zero, weight), 0)
    return {"weight": weight, "weight_scale": scales.masked_fill(is_zero, 1.0)}
