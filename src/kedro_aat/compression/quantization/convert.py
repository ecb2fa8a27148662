"""From a model that was trained as if it were quantized to one that holds the integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kedro_aat.compression.quantization.arithmetic import activation_scales, broadcast_along, integer_weight
from kedro_aat.compression.quantization.fake import FakeQuantization
from kedro_aat.compression.quantization.layers import (
    QuantizedLayerSpec,
    QuantizedModelSpec,
    QuantizedTensorSpec,
    make_quantized,
)
from kedro_aat.compression.quantization.placement import LayerCall, Plan

# Room below 2**31 for the sum of products that is added to a bias.
_HIGHEST_BIAS = 2**30


@torch.no_grad()
def hold_integers(model: nn.Module, fake: FakeQuantization, ranges: Tensor, scales: Mapping[str, Tensor]) -> None:
    """Gives a model integers in place of its quantized layers' weights.

    Args:
        model: Changed in place; must no longer be run by `fake`.
        fake: Tells which layers are quantized, and where.
        ranges: (slots, 2) of the activations.
        scales: Name of each quantized layer -> (out,) scales of its weight, which are those of training also where
            the inputs with the largest weights have been cut since.
    """
    plan = fake.plans[False]
    sites = fake.sites(plan)
    steps, zero_points = activation_scales(ranges)
    is_rounded = {site.slot for site in sites.values()}
    num_calls = Counter(call.layer for call in plan.calls)
    calls = [call for call in plan.calls if call.layer in fake.active]
    tensors: dict[str, Tensor] = {}
    layers = []
    for call in {call.layer: call for call in calls}.values():
        # A bias in int32 has the scale of the products that it is added to, so it fits one call only.
        is_integer = call.slot in is_rounded and num_calls[call.layer] == 1
        name = fake.layers[call.layer].layer
        input_scale = steps[call.slot] if is_integer and call.slot is not None else None
        folded = _fold(model, name, call.norm, input_scale, scales[name])
        layers.append(
            QuantizedLayerSpec(
                layer=name, norm=call.norm, has_bias="bias" in folded, has_integer_bias="bias_scale" in folded
            )
        )
        tensors |= {f"{name}.{key}": tensor for key, tensor in folded.items()}
    names, moved = _renumbered(plan, calls)
    described = tuple(
        QuantizedTensorSpec(
            step=moved.get(step, step),
            name=names[moved[step]] if step >= 0 else "",
            scale=float(steps[site.slot]),
            zero_point=int(zero_points[site.slot]),
        )
        for step, site in sites.items()
    )
    make_quantized(model, QuantizedModelSpec(layers=tuple(layers), tensors=described))
    state = model.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


def _fold(
    model: nn.Module, name: str, norm_name: str | None, input_scale: Tensor | None, scales: Tensor
) -> dict[str, Tensor]:
    """Integers and scales of a layer together with the BatchNorm behind it."""
    layer = model.get_submodule(name)
    weight = integer_weight(layer.get_parameter("weight"), scales)
    bias: Tensor | None = None if layer.bias is None else layer.get_parameter("bias").detach()
    if norm_name is not None:
        norm = model.get_submodule(norm_name)
        assert isinstance(norm, _BatchNorm)
        factor, shift = _affine(norm)
        # The scale of a channel takes its factor, and the integers its sign, so that they are those of training.
        weight = weight * broadcast_along(0, factor.sign().to(torch.int8), weight)
        scales = scales * factor.abs()
        bias = shift if bias is None else bias * factor + shift
    if bias is None or input_scale is None:
        return _with_sound_scales(weight, scales) | ({} if bias is None else {"bias": bias})
    # A channel that was scaled to almost nothing (a BatchNorm's gamma at 0) has products so fine that its bias would
    # not fit in int32. It gets a coarser scale, and integers to match.
    least = bias.abs() / (input_scale * _HIGHEST_BIAS)
    coarser = torch.maximum(scales, least)
    ratio = torch.where(coarser > 0, scales / coarser, 0.0)
    weight = (weight * broadcast_along(0, ratio, weight)).round().to(torch.int8)
    tensors = _with_sound_scales(weight, coarser)
    bias_scale = tensors["weight_scale"] * input_scale
    return tensors | {"bias": (bias / bias_scale).round().to(torch.int32), "bias_scale": bias_scale}


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """(channels,) factor and shift of a BatchNorm in evaluation mode."""
    assert norm.running_mean is not None  # those without are not folded
    assert norm.running_var is not None
    factor = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight
    shift = -norm.running_mean * factor
    return factor, shift + norm.bias if norm.affine else shift


def _with_sound_scales(weight: Tensor, scales: Tensor) -> dict[str, Tensor]:
    """A channel of scale 0 holds zeros, of whatever scale."""
    is_zero = scales == 0
    weight = weight.masked_fill(broadcast_along(0, is_zero, weight), 0)
    return {"weight": weight, "weight_scale": scales.masked_fill(is_zero, 1.0)}


def _renumbered(plan: Plan, calls: list[LayerCall]) -> tuple[dict[int, str], dict[int, int]]:
    """Steps of the stripped model: a folded BatchNorm makes none, and what it made its layer makes.

    Returns:
        New number -> name, and old number -> new number.
    """
    folded = {call.norm_step: call.step for call in calls if call.norm_step is not None}
    quantized = {call.step for call in calls}
    kept = [step for step in range(len(plan.names)) if step not in folded]
    moved = {step: number for number, step in enumerate(kept)}
    names = {moved[step]: "run_quantized" if step in quantized else plan.names[step] for step in kept}
    return names, moved | {norm: moved[layer] for norm, layer in folded.items()}
