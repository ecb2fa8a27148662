"""A model whose layers hold int8 weights: what a quantized model is stripped to, saved as and exported from.

The model keeps its class. Its quantized layers are replaced by `QuantizedConv` and `QuantizedLinear`, BatchNorms
folded into them by `nn.Identity`, and its forward pass rounds the tensors that its description names to 8 bits.
All of it is plain arithmetic that any torch can run.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.overrides import handle_torch_function, has_torch_function

from kedro_aat.compression.quantization.arithmetic import (
    HIGHEST_ACTIVATION,
    dequantize,
    is_tracing_onnx,
    round_to_uint8,
)
from kedro_aat.compression.quantization.calls import Follower, change_inputs, install, own_forward
from kedro_aat.errors import ModelError
from kedro_aat.validated import Settings

_DESCRIPTION = "_aat_quantized"
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
)


class QuantizedTensorSpec(Settings):
    """A tensor of the forward pass that is held in uint8.

    Attributes:
        step: The step that makes it; see `flow.py`. -1 is the model's first input, -2 its second ...
        name: Of the step.
        scale: Difference between neighbouring numbers.
        zero_point: The integer that stands for 0.
    """

    step: int
    name: str
    scale: Annotated[float, Field(gt=0)]
    zero_point: Annotated[int, Field(ge=0, le=HIGHEST_ACTIVATION)]


class QuantizedLayerSpec(Settings):
    """A layer that holds int8.

    Attributes:
        layer: Its name in the model.
        norm: Name of the BatchNorm that is folded into it; None if none is.
        has_bias: Whether there is a bias, the BatchNorm's share included.
        has_integer_bias: Whether it is held in int32.
    """

    layer: str
    norm: str | None
    has_bias: bool
    has_integer_bias: bool


class QuantizedModelSpec(Settings):
    """What a model has to be told, beside its tensors, to be a quantized one."""

    layers: tuple[QuantizedLayerSpec, ...]
    tensors: tuple[QuantizedTensorSpec, ...]


class _QuantizedLayer(nn.Module):
    """Integers that are multiplied by their scales at every call.

    Attributes:
        weight: (out, ...) int8. A parameter without gradient, so that it counts as one.
        weight_scale: (out,) float32.
        bias: (out,) int32 or float32, None for none.
        bias_scale: (out,) float32, None for a float32 bias.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    bias_scale: Tensor | None

    def __init__(self, shape: torch.Size, described: QuantizedLayerSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.int8), requires_grad=False)
        self.register_buffer("weight_scale", torch.ones(shape[0]))
        bias = torch.zeros(shape[0], dtype=torch.int32 if described.has_integer_bias else torch.float32)
        self.bias = nn.Parameter(bias, requires_grad=False) if described.has_bias else None
        self.register_buffer("bias_scale", torch.ones(shape[0]) if described.has_integer_bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Like the layer that it stands for."""
        return run_quantized(x, self)

    def compute(self, x: Tensor) -> Tensor:
        """The layer's result."""
        raise NotImplementedError  # the kinds of layers below do

    def float_bias(self) -> Tensor | None:
        """(out,) float32, None for none."""
        if self.bias is None or self.bias_scale is None:
            return self.bias
        return dequantize(self.bias, self.bias_scale)


def run_quantized(x: Tensor, layer: _QuantizedLayer) -> Tensor:
    """Calls the layer; one step of the forward pass, whatever is computed within."""
    if has_torch_function((x,)):
        result: Tensor = handle_torch_function(run_quantized, (x,), x, layer)
        return result
    return layer.compute(x)


class QuantizedConv(_QuantizedLayer):
    """`nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` with an int8 weight."""

    def __init__(self, layer: _ConvNd, described: QuantizedLayerSpec) -> None:
        super().__init__(layer.weight.shape, described)
        self.stride, self.padding, self.dilation, self.groups = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        self.padding_mode = layer.padding_mode
        self._padded = layer._reversed_padding_repeated_twice

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_mode != "zeros":  # a step of its own, as in the layer that this one stands for
            x = F.pad(x, self._padded, mode=self.padding_mode)
        return super().forward(x)

    def compute(self, x: Tensor) -> Tensor:
        convolve = _CONVOLUTIONS[self.weight.ndim - 2]
        padding: Any = self.padding if self.padding_mode == "zeros" else 0
        weight = dequantize(self.weight, self.weight_scale)
        result: Tensor = convolve(x, weight, self.float_bias(), self.stride, padding, self.dilation, self.groups)
        return result


class QuantizedLinear(_QuantizedLayer):
    """`nn.Linear` with an int8 weight."""

    def __init__(self, layer: nn.Linear, described: QuantizedLayerSpec) -> None:
        super().__init__(layer.weight.shape, described)

    def compute(self, x: Tensor) -> Tensor:
        bias = self.float_bias()
        if x.ndim == 2 or not is_tracing_onnx():
            return F.linear(x, dequantize(self.weight, self.weight_scale), bias)
        # Of more than two dimensions ONNX makes a MatMul, whose weight is fused only as it is.
        result = x @ dequantize(self.weight.t(), self.weight_scale, axis=1)
        return result if bias is None else result + bias


def make_quantized(model: nn.Module, description: QuantizedModelSpec) -> None:
    """Gives a model quantized layers, in place; its `state_dict` is then that of a stripped model.

    Args:
        model: As its class makes it, in full precision.
        description: Of a model of the same class.

    Raises:
        ModelError: If it is not a description of such a model.
    """
    names = {name for name, _ in model.named_modules()}
    wanted = {weight.layer for weight in description.layers} | {w.norm for w in description.layers if w.norm}
    if missing := sorted(wanted - names):
        raise ModelError(f"{type(model).__name__} has no layers {', '.join(missing)}, which a description names.")
    for described in description.layers:
        layer = model.get_submodule(described.layer)
        _replace(model, layer, quantized_layer(layer, described))
        if described.norm is not None:
            _replace(model, model.get_submodule(described.norm), nn.Identity())
    vars(model)[_DESCRIPTION] = description
    install(model, _Rounding(model, description))


def is_replaceable(module: nn.Module) -> bool:
    """Whether a module runs torch's own code, and so can give way to another one that does the same.

    A class derived from `nn.Conv2d` or `nn.BatchNorm2d` with a `forward` of its own may pad, scale or activate too.
    """
    methods = [getattr(type(module), name, None) for name in ("forward", "_conv_forward")]
    is_torchs = all(method is None or method.__module__.startswith("torch.nn.") for method in methods)
    return is_torchs and "forward" not in vars(module)


def _replace(model: nn.Module, replaced: nn.Module, made: nn.Module) -> None:
    """Puts one module in another's place, under all of its names, in its mode and with its forward hooks."""
    made.train(replaced.training)
    for hooks in _HOOKS:
        vars(made)[hooks] = vars(replaced)[hooks]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is replaced:
                parent._modules[name] = made


def quantized_layer(layer: nn.Module, described: QuantizedLayerSpec) -> _QuantizedLayer:
    """An empty layer of the same shape, on the same device."""
    if isinstance(layer, nn.Linear):
        made: _QuantizedLayer = QuantizedLinear(layer, described)
    elif isinstance(layer, _ConvNd):
        made = QuantizedConv(layer, described)
    else:
        raise ModelError(f"{described.layer} is a {type(layer).__name__}; only convolutions and nn.Linear hold int8.")
    return made.to(layer.weight.device)


def quantized_spec(model: nn.Module) -> QuantizedModelSpec | None:
    """The description of a stripped model, None for one without quantized layers."""
    description = vars(model).get(_DESCRIPTION)
    assert description is None or isinstance(description, QuantizedModelSpec)
    return description


class _Rounding:
    """Runs a model and rounds the tensors that a description names."""

    def __init__(self, model: nn.Module, description: QuantizedModelSpec) -> None:
        self._model = model
        self._tensors = {tensor.step: tensor for tensor in description.tensors}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # as for `FakeQuantization`
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = change_inputs(args, kwargs, lambda tensor, step: _rounded(tensor, self._tensors.get(step)))
        with _RoundingFollower(self._tensors):
            return own_forward(self._model, *args, **kwargs)


class _RoundingFollower(Follower):
    def __init__(self, tensors: dict[int, QuantizedTensorSpec]) -> None:
        super().__init__({step: tensor.name for step, tensor in tensors.items() if step >= 0})
        self._tensors = tensors

    def result(self, step: int, result: Tensor) -> Tensor:
        return _rounded(result, self._tensors[step])


def _rounded(tensor: Tensor, described: QuantizedTensorSpec | None) -> Tensor:
    return tensor if described is None else round_to_uint8(tensor, described.scale, described.zero_point)
