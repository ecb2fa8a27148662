"""Layers that hold int8 weights and are otherwise what they were: same class, same attributes, same code.

The integers are buffers under the name of the weight, and their scales are a parameter beside them, so that the first
parameter of a quantized model, by which models find out their own type, is a floating-point one. The attribute of the
layer's class is a property, which Python finds before the buffer: it returns integers times scales.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from kedro_aat.compression.quantization.arithmetic import dequantize, is_tracing_onnx
from kedro_aat.compression.quantization.calls import paused_pass

_AXES = "_aat_axes"  # attribute of a layer: name of a weight -> axis of its scales
_SCALE = "_scale"
_ZERO_POINT = "_zero_point"  # while PT2E's operators are traced


# `id` of a parameter -> the modules that have it, and its name in each.
Holders = dict[int, list[tuple[nn.Module, str]]]


def holders_in(model: nn.Module) -> Holders:
    """Finds out which modules share which parameters."""
    holders: Holders = defaultdict(list)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            holders[id(parameter)].append((module, name))
    return holders


def hold_weight(holders: Holders, layer: nn.Module, name: str, axis: int) -> None:
    """Lets a layer, and all layers that share this weight, hold int8 zeros and scales of 1 in its place.

    Args:
        holders: Of the model that holds the layer.
        layer: Changed in place.
        name: Name of the weight in the layer.
        axis: Dimension along which the scales differ.
    """
    weight = layer._parameters[name]
    assert weight is not None  # the spec lists weights
    integers = torch.zeros(weight.shape, dtype=torch.int8, device=weight.device)
    scales = nn.Parameter(torch.ones(weight.shape[axis], device=weight.device), requires_grad=False)
    for module, shared in holders[id(weight)]:
        del module._parameters[shared]
        module._buffers[shared] = integers
        module.register_parameter(shared + _SCALE, scales)
        vars(module)[_AXES] = vars(module).get(_AXES, {}) | {shared: axis}
        _add_held(module, shared)


def hold_bias(layer: nn.Module) -> None:
    """Lets a layer hold an int32 bias of zeros, with scales of 1.

    Args:
        layer: A layer with as many outputs as its weight has rows, changed in place.
    """
    weight = layer._buffers["weight"]
    assert weight is not None
    layer._parameters.pop("bias", None)
    layer._buffers["bias"] = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    layer.register_buffer("bias" + _SCALE, torch.ones(len(weight), device=weight.device))
    _add_held(layer, "bias")


def counted_parameters(model: nn.Module) -> Iterator[Tensor]:
    """Yields what counts as a parameter, each tensor once: integers in place of one, but not their scales.

    Of a model without integers these are its parameters.
    """
    seen: set[int] = set()
    for module in model.modules():
        names = module.names if isinstance(module, _Held) else ()
        scales = {name + _SCALE for name in names}
        tensors = [tensor for name, tensor in module._parameters.items() if name not in scales]
        for tensor in (*tensors, *(module._buffers[name] for name in names)):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def held_weight(layer: nn.Module, name: str) -> Tensor:
    """The floating-point weight that the integers of a layer stand for."""
    with paused_pass():
        integers, scales = layer._buffers[name], layer._parameters[name + _SCALE]
        zeros = layer._buffers.get(name + _ZERO_POINT)
        weight = dequantize(integers, scales, vars(layer)[_AXES][name], zeros)  # type: ignore[arg-type]  # none is None
        # A parameter, as it was before, except in graphs, which hold none that is computed.
        return weight if torch.compiler.is_compiling() else nn.Parameter(weight, requires_grad=False)


def _held_bias(layer: nn.Module) -> Tensor:
    with paused_pass():
        bias, scale = layer._buffers["bias"], layer._buffers["bias" + _SCALE]
        assert bias is not None  # a layer without one has no such attribute
        assert scale is not None
        return bias if bias.is_floating_point() else dequantize(bias, scale)


@contextlib.contextmanager
def decomposable(model: nn.Module) -> Iterator[None]:
    """Gives layers that hold int8 what PT2E's operators need as constants, for `arithmetic.as_decomposed_operators`.

    Biases in int32 become float32, which runtimes round to the same integers again; weights get zero points.
    """
    layers = [module for module in model.modules() if isinstance(module, _Held)]
    before = [dict(layer._buffers) for layer in layers]
    for layer in layers:
        for name in layer.names:
            held = layer._buffers[name]
            if name == "bias":
                layer._buffers[name] = _held_bias(layer).detach()
            elif held is not None and held.dtype == torch.int8:
                size = held.shape[vars(layer)[_AXES][name]]
                layer._buffers[name + _ZERO_POINT] = torch.zeros(size, dtype=torch.int64)
    try:
        yield
    finally:
        for layer, buffers in zip(layers, before, strict=True):
            layer._buffers.clear()
            layer._buffers.update(buffers)


def _add_held(module: nn.Module, name: str) -> None:
    """Lets the class of a module compute one more attribute."""
    cls = type(module)
    base, names = (cls.base, cls.names) if issubclass(cls, _Held) else (cls, ())
    module.__class__ = _held_class(base, (*names, name))  # type: ignore[arg-type]  # classes are hashable
    vars(module).pop("_flat_weights", None)  # a recurrent layer's list of its weights


class _Held:
    """A module some of whose weights are held in int8; `_held_class` derives a class from it and the module's class.

    Attributes:
        base: Class of the module.
        names: Attributes that are computed.
    """

    base: type[nn.Module]
    names: tuple[str, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _make_held, (self.base, self.names), self.__getstate__()


def _make_held(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """An empty layer of a class that is made at run time, for copies and for pickle."""
    made = _held_class(base, names)  # type: ignore[arg-type]  # as above
    layer: nn.Module = made.__new__(made)
    return layer


@functools.cache
def _held_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    attributes: dict[str, Any] = {name: property(functools.partial(held_weight, name=name)) for name in names}
    if "bias" in names:
        attributes["bias"] = property(_held_bias)
    if issubclass(base, nn.RNNBase):
        bases: tuple[type, ...] = (_HeldRecurrent, base)
    elif base.forward is nn.Linear.forward:
        bases = (_HeldLinear, base)
    elif base.forward is nn.Embedding.forward:
        bases = (_HeldEmbedding, base)
    else:
        bases = (_Held, base)
    described = {"__module__": base.__module__, "__qualname__": base.__qualname__, "base": base, "names": names}
    return type(base.__name__, bases, attributes | described)


class _HeldLinear(_Held):
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == 2 or not is_tracing_onnx():
            return F.linear(input, self.weight, self.bias)
        return linear(input, self)


def linear(input: Tensor, layer: Any) -> Tensor:
    """A linear layer on more than two dimensions, for ONNX: MatMul, whose weight is fused if nothing transposes it."""
    if has_torch_function((input,)):
        result: Tensor = handle_torch_function(linear, (input,), input, layer)
        return result
    axis = vars(layer)[_AXES]["weight"]
    weight = dequantize(layer._buffers["weight"].t(), layer._parameters["weight" + _SCALE], axis=1 - axis)
    result = input @ weight
    bias = layer.bias
    return result if bias is None else result + bias


class _HeldEmbedding(_Held):
    max_norm: float | None

    def forward(self, input: Tensor) -> Tensor:
        if self.max_norm is not None:  # torch's code rescales the rows that it reads
            return super().forward(input)  # type: ignore[misc,no-any-return]  # of the class behind this one
        return embedding(input, self)


def embedding(input: Tensor, layer: Any) -> Tensor:
    """The rows of an int8 table, so that no runtime multiplies the whole table by its scales."""
    if has_torch_function((input,)):
        result: Tensor = handle_torch_function(embedding, (input,), input, layer)
        return result
    scales = layer._parameters["weight" + _SCALE]
    rows = F.embedding(input, layer._buffers["weight"]).to(scales.dtype)
    scaled: Tensor = rows * (scales if vars(layer)[_AXES]["weight"] else scales[input].unsqueeze(-1))
    return scaled


class _HeldRecurrent(_Held):
    _flat_weights_names: list[str]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor]) -> None:
        """Nothing is stored: the weights are computed when they are read."""

    def _update_flat_weights(self) -> None:
        """Nothing is to be updated."""

    def _init_flat_weights(self) -> None:
        """As above."""

    def flatten_parameters(self) -> None:
        """As above."""
