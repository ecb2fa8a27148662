"""Finds the weights that can be int8: those of convolutions and linear layers, and those that are only stored so.

A convolution or linear layer with torch's own `forward` and a weight of its own is computed in integers. All others are
*stored* in int8 and computed in floating point: transposed convolutions, embeddings, recurrent, bilinear and attention
layers, layers of classes with a `forward` of their own, and weights that several layers share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from kedro_aat.compression.computed_weights import computed_weights, listed_reasons
from kedro_aat.compression.operations import nncf_scope
from kedro_aat.compression.quantization.layers import is_replaceable
from kedro_aat.compression.scopes import PrunableWeight, select_weights
from kedro_aat.errors import ModelError

_STORED = (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# With fewer columns, one scale per row of an embedding would take more than a quarter of the bytes of the row.
_LEAST_COLUMNS = 16


@dataclass
class QuantizableWeight(PrunableWeight):
    """A weight that can be int8.

    Attributes:
        axis: Dimension of the weight along which each index has a scale of its own.
        is_computed: Whether a runtime can compute the layer in integers; otherwise its weight is only stored in int8.
    """

    axis: int = 0
    is_computed: bool = True

    @property
    def key(self) -> str:
        """Name under which its scales are known: that of the layer, if there is one scale per channel that it makes."""
        is_by_output = self.parameter_name == "weight" and not isinstance(self.module, nn.Embedding | nn.EmbeddingBag)
        return self.layer if is_by_output else self.name


@dataclass(frozen=True)
class WeightChoice:
    """The weights of a model.

    Attributes:
        layers: Those that can be int8, the computed ones first.
        left_float: Name of each other weight -> why it stays in full precision.
        total: Number of weights in all of them.
    """

    layers: list[QuantizableWeight]
    left_float: dict[str, str]
    total: int


def choose_weights(
    model: nn.Module, ignored_scopes: Sequence[str], target_scopes: Sequence[str] | None
) -> WeightChoice:
    """Finds the weights that can be int8, and says why the others stay in full precision.

    A weight is a parameter with at least two dimensions; biases and scales of normalizations are none.

    Args:
        model: Any model.
        ignored_scopes: Layers to leave in full precision.
        target_scopes: The only layers to quantize; None for all.

    Raises:
        ConfigurationError: If a scope matches no layer.
        ModelError: If no weight is left.
    """
    found = list(_candidates(model))
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no layer that can be quantized: none of its modules is a convolution, a "
            "linear, an embedding, a recurrent or an attention layer with a weight of its own."
            f"{listed_reasons(computed_weights(model))}"
        )
    chosen = select_weights(model, found, ignored_scopes=ignored_scopes, target_scopes=target_scopes)
    if wrong := [weight.name for weight in chosen if weight.parameter.dtype != torch.float32]:
        raise ModelError(
            f"quantization starts from float32 weights, but {', '.join(wrong)} are {chosen[0].parameter.dtype}: call "
            "model.float(), and train under autocast for speed."
        )
    ids = {id(weight.parameter) for weight in chosen}
    candidates = {id(weight.parameter) for weight in found}
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.ndim > 1]
    left = {
        name: "its layer is excluded by the scopes" if id(parameter) in candidates else _reason(name)
        for name, parameter in parameters
        if id(parameter) not in ids
    }
    chosen.sort(key=lambda weight: not weight.is_computed)
    return WeightChoice(chosen, left, sum(parameter.numel() for _, parameter in parameters))


def _reason(name: str) -> str:
    if "parametrizations." in name:
        return "it is parametrized (weight norm, spectral norm, ...): remove the parametrization to quantize it"
    return "its module is no layer of a kind that can hold int8"


def _candidates(model: nn.Module) -> Iterator[QuantizableWeight]:
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    seen: set[int] = set()
    for layer, module in model.named_modules():
        if not layer or isinstance(module, torch.jit.ScriptModule):
            continue  # a model that is itself a layer keeps its class
        for name, axis in _weights_in(module):
            parameter = module._parameters.get(name)
            if parameter is None or id(parameter) in seen or parameter.ndim < 2:
                continue
            seen.add(id(parameter))
            is_computed = _is_computed(module) and holders[id(parameter)] == 1
            yield QuantizableWeight(layer, nncf_scope(model, layer), module, name, axis=axis, is_computed=is_computed)


def _weights_in(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Name and axis of the scales of each weight that a module can hold in int8."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        yield "weight", 0 if module.embedding_dim >= _LEAST_COLUMNS else 1
    elif isinstance(module, _ConvTransposeNd):
        yield "weight", 1 if module.groups == 1 else 0  # (in, out / groups, ...)
    elif isinstance(module, _STORED):
        yield "weight", 0
    elif type(module).__name__ == "Conv1D" and isinstance(module._parameters.get("weight"), Tensor):
        yield "weight", 1  # (in, out), as GPT-2 of transformers has it
    elif isinstance(module, nn.MultiheadAttention):
        yield from ((name, 0) for name in _ATTENTION)
    elif isinstance(module, _RECURRENT):
        yield from ((name, 0) for name in module._parameters if name.startswith("weight_"))


def _is_computed(module: nn.Module) -> bool:
    is_convolution = isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)
    # An attention layer reads the weight of the linear layer inside it, which has this class, and never calls it.
    is_linear = isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    return (is_convolution or is_linear) and is_replaceable(module)
