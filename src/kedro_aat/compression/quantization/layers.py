"""A model whose layers hold int8 weights: the form in which a quantized model is stripped, saved and exported.

The model and its layers keep their classes, attributes and code. Of a quantized layer, `state_dict` and the exported
files hold int8, while whoever reads its `weight`, such as its own `forward`, gets the floating-point tensor that the
integers stand for. `nn.Identity` replaces BatchNorms folded into a layer. The forward pass rounds the tensors that its
`QuantizedModelSpec` lists to 8 bits, whichever module of the model is called.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from kedro_aat.compression.quantization.arithmetic import HIGHEST_ACTIVATION, round_to_uint8
from kedro_aat.compression.quantization.calls import Follower, ModuleCall, Pass
from kedro_aat.compression.quantization.held import Holders, hold_bias, hold_weight, holders_in
from kedro_aat.compression.quantization.numbered import NumberedPass
from kedro_aat.compression.quantization.places import CallTree, Frame, Place
from kedro_aat.errors import ModelError
from kedro_aat.validated import Settings

_SPEC = "_aat_quantized"  # attribute of a stripped model that holds its spec
_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
)


class QuantizedTensorSpec(Settings):
    """A tensor of the forward pass that is rounded to uint8.

    Attributes:
        place: Step that makes the tensor; None for an input of the model.
        step: Versions up to 0.2 number the steps instead; -1 is the model's first input, -2 its second, and so on.
        name: Of the numbered step; empty for an input.
        scale: Difference between neighboring numbers.
        zero_point: Integer that represents 0.
    """

    place: Place | None = None
    step: int | None = None
    name: str = ""
    scale: Annotated[float, Field(gt=0)]
    zero_point: Annotated[int, Field(ge=0, le=HIGHEST_ACTIVATION)]


class QuantizedLayerSpec(Settings):
    """A layer that holds int8.

    Attributes:
        layer: Name of the layer in the model.
        norm: Name of the BatchNorm that is folded into it; None if there is none.
        has_bias: Whether it has a bias, that of the BatchNorm included.
        has_integer_bias: Whether the bias is held in int32.
        stored: Name and axis of each weight, if they are only stored in int8 and the bias stays as it is; empty for a
            convolution or linear layer that is computed in integers.
    """

    layer: str
    norm: str | None = None
    has_bias: bool = False
    has_integer_bias: bool = False
    stored: tuple[tuple[str, int], ...] = ()


class QuantizedModelSpec(Settings):
    """What turns a model in full precision into a quantized one, except for its tensors.

    Attributes:
        layers: Layers that hold int8.
        tensors: Tensors that are rounded to uint8.
        frames: Calls of modules in the forward pass; their inputs are numbers of tensors.
    """

    layers: tuple[QuantizedLayerSpec, ...]
    tensors: tuple[QuantizedTensorSpec, ...]
    frames: tuple[Frame, ...] = ()


def make_quantized(model: nn.Module, spec: QuantizedModelSpec) -> None:
    """Gives a model quantized layers, in place; its `state_dict` then has the entries of a stripped model.

    Args:
        model: In full precision, as its class creates it.
        spec: Of a model of the same class.

    Raises:
        ModelError: If the spec does not fit the model.
    """
    names = {name for name, _ in model.named_modules()}
    required = {layer.layer for layer in spec.layers} | {layer.norm for layer in spec.layers if layer.norm}
    if missing := sorted(required - names):
        raise ModelError(
            f"{type(model).__name__} has no layers {', '.join(missing)}, which its quantization needs: build the model "
            "with the class and arguments of the one that was quantized."
        )
    holders = holders_in(model)
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = defaultdict(list)  # parents of a module, and its names
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places[child].append((parent, name))
    for layer_spec in spec.layers:
        _make_quantized_layer(model, layer_spec, holders)
        if layer_spec.norm is not None:
            norm = model.get_submodule(layer_spec.norm)
            _replace(norm, nn.Identity(), places[norm])
    vars(model)[_SPEC] = spec
    if spec.tensors:
        _Rounding(model, spec).follow()


def is_replaceable(module: nn.Module) -> bool:
    """Whether a module runs torch's own code, which integers can compute.

    A class derived from `nn.Conv2d` or `nn.BatchNorm2d` with a `forward` of its own may pad, scale or activate too.
    """
    methods = [getattr(type(module), name, None) for name in ("forward", "_conv_forward")]
    is_from_torch = all(method is None or method.__module__.startswith("torch.nn.") for method in methods)
    return is_from_torch and "forward" not in vars(module)


def _replace(module: nn.Module, replacement: nn.Module, places: Iterable[tuple[nn.Module, str]]) -> None:
    """Replaces a module in all of its places; the replacement takes over its mode and forward hooks."""
    replacement.train(module.training)
    for hooks in _HOOKS:
        vars(replacement)[hooks] = vars(module)[hooks]
    for parent, name in places:
        parent._modules[name] = replacement


def _make_quantized_layer(model: nn.Module, spec: QuantizedLayerSpec, holders: Holders) -> None:
    """Lets a layer hold int8 zeros, and its copies under other names that share the weight."""
    layer = model.get_submodule(spec.layer)
    if spec.stored:
        for name, axis in spec.stored:
            hold_weight(holders, layer, name, axis)
        return
    if not isinstance(layer, nn.Linear | _ConvNd):
        raise ModelError(
            f"{spec.layer} is a {type(layer).__name__}, but only convolutions and nn.Linear are computed in integers."
        )
    hold_weight(holders, layer, "weight", 0)
    device, size = layer.weight.device, layer.weight.shape[0]
    if spec.has_integer_bias:
        hold_bias(layer)
    else:
        zeros = torch.zeros(size, device=device)
        layer.bias = nn.Parameter(zeros, requires_grad=False) if spec.has_bias else None


def quantized_spec(model: nn.Module) -> QuantizedModelSpec | None:
    """The spec of a stripped model; None for a model without quantized layers."""
    spec = vars(model).get(_SPEC)
    assert spec is None or isinstance(spec, QuantizedModelSpec)
    return spec


class _Rounding(Follower):
    """Runs a model and rounds the tensors that its spec lists."""

    def __init__(self, model: nn.Module, spec: QuantizedModelSpec) -> None:
        super().__init__(model)
        self.spec = spec
        self._tree = CallTree(spec.frames, [tensor.place for tensor in spec.tensors])

    def begin(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass:
        if self.spec.frames:
            return _RoundingPass(self, self._tree)
        numbers = {tensor.step: number for number, tensor in enumerate(self.spec.tensors) if tensor.step is not None}
        return _NumberedRoundingPass(self, numbers)


class _RoundingPass(Pass):
    follower: _Rounding

    def change(self, number: int, tensor: Tensor) -> Tensor:
        spec = self.follower.spec.tensors[number]
        return round_to_uint8(tensor, spec.scale, spec.zero_point)


class _NumberedRoundingPass(NumberedPass, _RoundingPass):
    """Rounds the tensors of a model that version 0.1 or 0.2 saved."""
