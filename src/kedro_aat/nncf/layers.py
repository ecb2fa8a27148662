"""Which layers NNCF's algorithms compress and leave alone, whatever the scopes say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from kedro_aat.compression.matrices import layers_with_matrices
from kedro_aat.compression.quantization.recording import LAYERS, record_model
from kedro_aat.compression.scopes import all_layer_weights, prunable_weights
from kedro_aat.errors import ModelError
from kedro_aat.model_inputs import ModelInputs, call_model, placed_like
from kedro_aat.modes import evaluating
from kedro_aat.nncf.sections import FilterPruningParams

# Functions of the layers whose filters NNCF prunes.
_PRUNED = LAYERS | {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}

# Layers whose weights NNCF's sparsity algorithms set to zero, position embeddings included.
_SPARSE = (_ConvNd, nn.Linear, nn.Embedding, nn.EmbeddingBag)


def find_sparse_layers(model: nn.Module) -> tuple[str, ...] | None:
    """Names of the layers that NNCF makes sparse; None if there are none, so that the model's other matrices are.

    Recurrent layers, attention, parameters outside of layers and weights that a parametrization computes stay dense.

    Args:
        model: The model before compression.
    """
    known = layers_with_matrices(model)
    found = (
        name
        for name, module in model.named_modules()
        if isinstance(module, _SPARSE)
        and not isinstance(module, NonDynamicallyQuantizableLinear)  # an attention's own
        and name in known
    )
    return tuple(found) or None


def find_unpruned_layers(
    model: nn.Module, params: FilterPruningParams, example_input: ModelInputs | None, *, as_in_nncf: bool
) -> list[str]:
    """Names of the layers whose filters all stay.

    Args:
        model: The model before compression.
        params: Its `prune_first_conv` and `prune_downsample_convs` count.
        example_input: What the model is called with.
        as_in_nncf: Whether grouped convolutions, linear layers with outputs of more than two dimensions, and layers of
            other kinds stay, too, such as recurrent ones and attention.

    Raises:
        ModelError: Without an example input, if it is needed.
    """
    names = {} if params.prune_first_conv else dict.fromkeys(_find_first(model, example_input))
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            if not params.prune_downsample_convs and _is_downsampling(module):
                names[name] = None
            if as_in_nncf and module.groups > 1 and not _is_depthwise(module):
                names[name] = None
    if as_in_nncf:
        others = (each.layer for each in prunable_weights(model) if not isinstance(each.module, _ConvNd | nn.Linear))
        names |= dict.fromkeys(others) | dict.fromkeys(_find_batched_linear_layers(model, example_input))
    known = {layer for weight in all_layer_weights(model) for layer, _ in weight.layers}
    return [name for name in names if name in known]  # others, such as parametrized ones, cannot be pruned anyway


def _is_downsampling(module: _ConvNd) -> bool:
    return max(module.stride) > 1 and not isinstance(module, _ConvTransposeNd)


def _is_depthwise(module: _ConvNd) -> bool:
    return module.groups == module.in_channels == module.out_channels


def _required(example_input: ModelInputs | None, model: nn.Module) -> ModelInputs:
    if example_input is None:
        raise ModelError(
            "Filter pruning runs the model once to find the first convolutions: give create_compressed_model a config "
            "with input_info.sample_size, or an example_input."
        )
    return placed_like(example_input, model)


def _find_first(model: nn.Module, example_input: ModelInputs | None) -> list[str]:
    """Names of the convolutions and linear layers whose input does not depend on another one."""
    inputs = _required(example_input, model)
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, _ConvNd | nn.Linear))
    owners = {id(module.weight): name for name, module in layers}
    with evaluating(model):
        recording = record_model(model, owners, inputs)
    weighted: set[int | None] = set()  # values that depend on a layer
    names = []
    for operation in recording.operations:
        is_layer = operation.name in _PRUNED and operation.owner is not None
        depends_on_layer = not weighted.isdisjoint(operation.inputs)
        if is_layer and not depends_on_layer:
            assert operation.owner is not None
            names.append(operation.owner)
        if is_layer or depends_on_layer:
            weighted.update(operation.outputs)
    return names


def _find_batched_linear_layers(model: nn.Module, example_input: ModelInputs | None) -> list[str]:
    """Names of the linear layers that return more than two dimensions."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        return []
    names: dict[str, None] = {}

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() > 2:
                names[name] = None

        return note

    hooks = [module.register_forward_hook(noting(name)) for name, module in layers]
    try:
        with evaluating(model):
            call_model(model, _required(example_input, model))
    finally:
        for hook in hooks:
            hook.remove()
    return list(names)
