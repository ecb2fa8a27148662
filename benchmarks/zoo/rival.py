"""Torch-Pruning by its usual recipe: magnitudes, the same ratio in each group, the classifier ignored.

For transformers, the recipe has to be told the heads of each projection, and to set the sizes that modules of
attention keep afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch_pruning
from torch import Tensor, nn

from kedro_aat.model_inputs import ModelInputs, call_model, tensors_in

_PROJECTIONS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))
_NUMBERS = ("num_attention_heads", "num_heads", "n_heads", "num_key_value_heads")


def pruned_by_torch_pruning(model: nn.Module, batch: ModelInputs, ratio: float) -> tuple[float, nn.Module]:
    """Prunes a model in place.

    Returns:
        Seconds until it could prune, and the model.
    """
    last = last_layer(model, batch)
    started = time.process_time()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        batch,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=ratio,
        ignored_layers=[last],
        num_heads={layer: number for _, layers, number in attentions(model) for layer in layers},
        forward_fn=call_model,
        output_transform=lambda outputs: [tensor for tensor in tensors_in(outputs) if tensor.requires_grad],
    )
    seconds = time.process_time() - started
    pruner.step()
    for attention, layers, number in attentions(model):
        width = layers[0].out_features
        for name, size in (
            ("attention_head_size", width // number),
            ("head_dim", width // number),
            ("all_head_size", width),
        ):
            if isinstance(getattr(attention, name, None), int):
                setattr(attention, name, size)
    return seconds, model


def attentions(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Linear], int]]:
    """Each attention, the linear layers of its queries, keys and values, and its number of heads."""
    for module in model.modules():
        number = next((n for name in _NUMBERS if isinstance(n := getattr(module, name, None), int)), None)
        for names in _PROJECTIONS:
            layers = [layer for name in names if isinstance(layer := getattr(module, name, None), nn.Linear)]
            if number and len(layers) == 3:
                yield module, layers, number


@torch.no_grad()
def last_layer(model: nn.Module, batch: ModelInputs) -> nn.Module:
    """The linear layer or convolution that is called last."""
    called: list[nn.Module] = []

    def note(module: nn.Module, _: tuple[object, ...], __: Tensor) -> None:
        called.append(module)

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, kinds)]
    call_model(model, batch)
    for hook in hooks:
        hook.remove()
    return called[-1]
