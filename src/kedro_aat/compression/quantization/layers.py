"""A model whose layers hold int8 weights: the form in which a quantized model is stripped, saved and exported.

The model keeps its class. `QuantizedConv` and `QuantizedLinear` replace its quantized layers, and `nn.Identity` the
BatchNorms folded into them. Its forward pass rounds the tensors that its `QuantizedModelSpec` lists to 8 bits. All of
it is plain arithmetic that every version of torch can run.
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
from kedro_aat.compression.quantization.calls import StepInterceptor, replace_forward
from kedro_aat.errors import ModelError
from kedro_aat.validated import Settings

_SPEC = "_aat_quantized"  # attribute of a stripped model that holds its spec
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
)


class QuantizedTensorSpec(Settings):
    """A tensor of the forward pass that is rounded to uint8.

    Attributes:
        step: Step that makes the tensor, see `calls.py`; -1 is the model's first input, -2 its second, and so on.
        name: Name of the step; empty for an input.
        scale: Difference between neighboring numbers.
        zero_point: Integer that represents 0.
    """

    step: int
    name: str
    scale: Annotated[float, Field(gt=0)]
    zero_point: Annotated[int, Field(ge=0, le=HIGHEST_ACTIVATION)]


class QuantizedLayerSpec(Settings):
    """A layer that holds int8.

    Attributes:
        layer: Name of the layer in the model.
        norm: Name of the BatchNorm that is folded into it; None if there is none.
        has_bias: Whether it has a bias, that of the BatchNorm included.
        has_integer_bias: Whether the bias is held in int32.
    """

    layer: str
    norm: str | None
    has_bias: bool
    has_integer_bias: bool


class QuantizedModelSpec(Settings):
    """What turns a model in full precision into a quantized one, except for its tensors.

    Attributes:
        layers: Layers that hold int8.
        tensors: Tensors that are rounded to uint8.
    """

    layers: tuple[QuantizedLayerSpec, ...]
    tensors: tuple[QuantizedTensorSpec, ...]


class _QuantizedLayer(nn.Module):
    """A layer that multiplies its integers by their scales in every call.

    Attributes:
        weight: (out, ...) int8. A parameter without gradient, so that it is counted among the parameters.
        weight_scale: (out,) float32.
        bias: (out,) int32 or float32; None without a bias.
        bias_scale: (out,) float32; None without a bias in int32.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    bias_scale: Tensor | None

    def __init__(self, shape: torch.Size, spec: QuantizedLayerSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.int8), requires_grad=False)
        self.register_buffer("weight_scale", torch.ones(shape[0]))
        bias = torch.zeros(shape[0], dtype=torch.int32 if spec.has_integer_bias else torch.float32)
        self.bias = nn.Parameter(bias, requires_grad=False) if spec.has_bias else None
        self.register_buffer("bias_scale", torch.ones(shape[0]) if spec.has_integer_bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Computes what the replaced layer computed."""
        return run_quantized(x, self)

    def compute(self, x: Tensor) -> Tensor:
        """The layer's result."""
        raise NotImplementedError  # subclasses define it

    def float_bias(self) -> Tensor | None:
        """(out,) float32; None without a bias."""
        if self.bias is None or self.bias_scale is None:
            return self.bias
        return dequantize(self.bias, self.bias_scale)


def run_quantized(x: Tensor, layer: _QuantizedLayer) -> Tensor:
    """Calls the layer as a single step of the forward pass; specs of saved models contain this function's name."""
    if has_torch_function((x,)):
        result: Tensor = handle_torch_function(run_quantized, (x,), x, layer)
        return result
    return layer.compute(x)


class QuantizedConv(_QuantizedLayer):
    """`nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` with an int8 weight."""

    def __init__(self, layer: _ConvNd, spec: QuantizedLayerSpec) -> None:
        super().__init__(layer.weight.shape, spec)
        self.stride, self.padding, self.dilation, self.groups = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        self.padding_mode = layer.padding_mode
        self._pad_widths = layer._reversed_padding_repeated_twice

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_mode != "zeros":  # a separate step, as in the replaced layer
            x = F.pad(x, self._pad_widths, mode=self.padding_mode)
        return super().forward(x)

    def compute(self, x: Tensor) -> Tensor:
        convolve = _CONVOLUTIONS[self.weight.ndim - 2]
        padding: Any = self.padding if self.padding_mode == "zeros" else 0
        weight = dequantize(self.weight, self.weight_scale)
        result: Tensor = convolve(x, weight, self.float_bias(), self.stride, padding, self.dilation, self.groups)
        return result


class QuantizedLinear(_QuantizedLayer):
    """`nn.Linear` with an int8 weight."""

    def __init__(self, layer: nn.Linear, spec: QuantizedLayerSpec) -> None:
        super().__init__(layer.weight.shape, spec)

    def compute(self, x: Tensor) -> Tensor:
        bias = self.float_bias()
        if x.ndim == 2 or not is_tracing_onnx():
            return F.linear(x, dequantize(self.weight, self.weight_scale), bias)
        # With more than two dimensions ONNX uses MatMul, whose weight is fused only if nothing transposes it.
        result = x @ dequantize(self.weight.t(), self.weight_scale, axis=1)
        return result if bias is None else result + bias


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
    for layer_spec in spec.layers:
        layer = model.get_submodule(layer_spec.layer)
        _replace(model, layer, _make_quantized_layer(layer, layer_spec))
        if layer_spec.norm is not None:
            _replace(model, model.get_submodule(layer_spec.norm), nn.Identity())
    vars(model)[_SPEC] = spec
    replace_forward(model, _Rounding(model, spec))


def is_replaceable(module: nn.Module) -> bool:
    """Whether a module runs torch's own code, so that another module can replace it.

    A class derived from `nn.Conv2d` or `nn.BatchNorm2d` with a `forward` of its own may pad, scale or activate too.
    """
    methods = [getattr(type(module), name, None) for name in ("forward", "_conv_forward")]
    is_from_torch = all(method is None or method.__module__.startswith("torch.nn.") for method in methods)
    return is_from_torch and "forward" not in vars(module)


def _replace(model: nn.Module, module: nn.Module, replacement: nn.Module) -> None:
    """Replaces a module under all of its names; the replacement takes over its mode and forward hooks."""
    replacement.train(module.training)
    for hooks in _HOOKS:
        vars(replacement)[hooks] = vars(module)[hooks]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is module:
                parent._modules[name] = replacement


def _make_quantized_layer(layer: nn.Module, spec: QuantizedLayerSpec) -> _QuantizedLayer:
    """An empty layer of the same shape, on the same device."""
    if isinstance(layer, nn.Linear):
        replacement: _QuantizedLayer = QuantizedLinear(layer, spec)
    elif isinstance(layer, _ConvNd):
        replacement = QuantizedConv(layer, spec)
    else:
        raise ModelError(
            f"{spec.layer} is a {type(layer).__name__}, but only convolutions and nn.Linear can hold int8."
        )
    return replacement.to(layer.weight.device)


def quantized_spec(model: nn.Module) -> QuantizedModelSpec | None:
    """The spec of a stripped model; None for a model without quantized layers."""
    spec = vars(model).get(_SPEC)
    assert spec is None or isinstance(spec, QuantizedModelSpec)
    return spec


class _Rounding:
    """Runs a model and rounds the tensors that its spec lists."""

    def __init__(self, model: nn.Module, spec: QuantizedModelSpec) -> None:
        self._model = model
        self._tensors = {tensor.step: tensor for tensor in spec.tensors}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # as for `FakeQuantization`
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _RoundingInterceptor(self._tensors).run(self._model, args, kwargs)


class _RoundingInterceptor(StepInterceptor):
    def __init__(self, tensors: dict[int, QuantizedTensorSpec]) -> None:
        super().__init__({step: tensor.name for step, tensor in tensors.items() if step >= 0})
        self._tensors = tensors

    def change_result(self, step: int, result: Tensor) -> Tensor:
        spec = self._tensors.get(step)
        return result if spec is None else round_to_uint8(result, spec.scale, spec.zero_point)
