"""Which channels of different layers hang together: our small interface to the graph of torch-pruning.

torch-pruning runs a model once and follows its gradient functions (Fang et al., "DepGraph: Towards Any
Structural Pruning", arXiv:2301.12900, section 3). Some operations it takes for something else; so what it says is
a proposal, which `probing` puts to the test. Nothing is cut here.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize
from torch.utils import _pytree
from torch_pruning.dependency import DependencyGraph

from kedro_aat.compression.filters.attention import heads_of
from kedro_aat.compression.filters.cutting import Kind, axes
from kedro_aat.compression.filters.groups import Couplings, Place, all_places, couple_within_layers
from kedro_aat.errors import ModelError

_OUTPUT = "its outputs are outputs of the model"


def trace(model: nn.Module, example_input: Tensor) -> Couplings:
    """What hangs together in a model, and which channels cannot be cut as far as its structure shows.

    Args:
        model: Left as it is.
        example_input: (B, ...), on the device of the model.

    Raises:
        ModelError: The model does not take the example input, or cannot be traced with it.
    """
    couplings = Couplings(all_places(model))
    couple_within_layers(model, couplings)
    _block_special_layers(model, couplings)
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # what has no gradient is not seen
    graph, outputs = _graph(twin, example_input)
    names: dict[Any, str] = {module: name for name, module in twin.named_modules()}
    names |= {parameter: name for name, parameter in twin.named_parameters()}
    heads = {id(child) for module in twin.modules() for child in _layers_of_heads(module)}
    for name, module in twin.named_modules():
        if module not in graph.module2node and id(module) not in heads:
            for kind in axes(module):
                couplings.block((name, kind), "the example input does not pass through it on the way to the output")
    seen: dict[Place, set[int]] = {}
    for module in list(graph.module2node):
        if not isinstance(module, nn.Module) or "outputs" not in axes(module) or id(module) in heads:
            continue
        root: Place = (names[module], "outputs")
        left = sorted(set(range(couplings.sizes[root])) - seen.get(root, set()))
        if left:
            _follow(graph, module, root, left, names, outputs, couplings, seen, heads)
    return couplings


def _graph(model: nn.Module, example_input: Tensor) -> tuple[Any, set[Any]]:
    """torch-pruning's graph, and the gradient functions of the model's outputs."""
    model.eval()
    given = f"an example input of shape {tuple(example_input.shape)} and type {example_input.dtype}"
    try:
        with torch.no_grad():
            model(example_input)
    except Exception as error:
        at = _where(model, example_input)
        raise ModelError(
            f"{type(model).__name__} does not take {given}{at}. Give one like a batch of its data. It says: {error}"
        ) from error
    outputs: list[Tensor] = []

    def tensors_of(out: Any) -> list[Tensor]:
        outputs.extend(leaf for leaf in _pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.requires_grad)
        return list(outputs)

    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = DependencyGraph().build_dependency(
                model,
                example_input,
                forward_fn=lambda traced, batch: traced(batch),
                output_transform=tensors_of,
                verbose=False,
            )
    except Exception as error:  # whatever its graph runs into
        at = _where(model, example_input)
        raise ModelError(
            f"{type(model).__name__} cannot be traced with {given}{at}, so it is not known which of its channels "
            f"hang together: {type(error).__name__}: {error}. magnitude_sparsity needs no tracing."
        ) from error
    if not outputs:
        raise ModelError(
            f"{type(model).__name__} cannot be traced: no gradient reaches its outputs. Does it run under no_grad?"
        )
    return graph, {output.grad_fn for output in outputs}


def _where(model: nn.Module, example_input: Tensor) -> str:
    """The layer at which a run ends, for a message; empty if it does not end early."""
    entered: list[str] = []
    hooks = [
        handle
        for name, module in model.named_modules()
        if name
        for handle in (
            module.register_forward_pre_hook(lambda _, __, name=name: entered.append(name)),
            module.register_forward_hook(lambda _, __, ___, name=name: entered.remove(name)),
        )
    ]
    try:
        model(example_input)
    except Exception:
        return f" (it fails in '{entered[-1]}')" if entered else ""
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def _follow(
    graph: Any,
    module: nn.Module,
    root: Place,
    channels: list[int],
    names: dict[Any, str],
    outputs: set[Any],
    couplings: Couplings,
    seen: dict[Place, set[int]],
    heads: set[int],
) -> None:
    """Notes what hangs on some channels of a layer."""
    prune = graph.get_pruner_of_module(module).prune_out_channels
    for item in graph.get_pruning_group(module, prune, channels):
        node, indices, roots = item.dep.target, [int(i) for i in item.idxs], [int(i) for i in item.root_idxs]
        target = node.module
        kind = _kind(graph, item.dep, target)
        if kind is None:
            reason = _coupled_with(node, target, names)
            if reason:
                couplings.blocked.append((root, roots, reason))
        else:
            place: Place = (names[target], kind)
            inside = [(i, r) for i, r in zip(indices, roots, strict=True) if i < couplings.sizes[place]]
            couplings.pairs.append((root, [r for _, r in inside], place, [i for i, _ in inside]))
            seen.setdefault(place, set()).update(i for i, _ in inside)
            if id(target) in heads:
                couplings.blocked.append((root, roots, f"it is coupled with the heads around '{names[target]}'"))
        if kind != "inputs" and (not node.outputs or node.grad_fn in outputs):
            couplings.blocked.append((root, roots, _OUTPUT))


def _kind(graph: Any, dependency: Any, module: Any) -> Kind | None:
    """Which channels of a module a step of torch-pruning means; None for a step that has no counterpart."""
    kinds = axes(module) if isinstance(module, nn.Module) else {}
    if "channels" in kinds:
        return "channels"
    if "outputs" not in kinds:
        return None
    is_depthwise = getattr(module, "groups", 1) == getattr(module, "out_channels", None) and module.groups > 1
    if is_depthwise or graph.is_out_channel_pruning_fn(dependency.handler):
        return "outputs"
    return "inputs" if "inputs" in kinds else None


def _coupled_with(node: Any, module: Any, names: dict[Any, str]) -> str:
    """Why channels that meet a module cannot be cut; empty if they can."""
    if isinstance(module, nn.Parameter):
        return f"it is coupled with '{names[module]}', a parameter of no layer that can be cut"
    name = names.get(module)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return (
            f"it is coupled with '{name}' ({type(module).__name__}), which takes its mean over all channels: "
            "there a channel of zeros is not the same as none"
        )
    if name is None or not any(True for _ in module.parameters(recurse=False)):
        return ""  # an operation on each channel for itself, as far as is known
    return f"it is coupled with '{name}' ({type(module).__name__}), which cannot be cut"


def _layers_of_heads(module: nn.Module) -> Iterator[nn.Module]:
    """An attention module and what it has of linear layers; the graph does not tell its heads apart."""
    if (heads := heads_of(module)) is not None:
        yield module
        for name in (*filter(None, heads.producers), heads.consumer):
            yield module.get_submodule(name)


def _block_special_layers(model: nn.Module, couplings: Couplings) -> None:
    """Layers whose tensors are not their own, or are made anew at every call."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for tensor in module._parameters.values():
            if tensor is not None:
                owners.setdefault(id(tensor), []).append(name)
    for name, module in model.named_modules():
        reason = ""
        if parametrize.is_parametrized(module) or _has_made_weight(module):
            reason = "its weight is made by a parametrization (weight norm, spectral norm ...)"
        elif isinstance(module, _NormBase) and module.track_running_stats and module._parameters.get("weight") is None:
            reason = f"'{name}' normalises it without a weight of its own, which makes something of zeros"
        for kind in axes(module) if reason else ():
            couplings.block((name, kind), reason)
        if isinstance(module, nn.MultiheadAttention):
            couplings.block((f"{name}.out_proj" if name else "out_proj", "outputs"), f"it is the width of '{name}'")
        for tensor in module._parameters.values():
            others = [other for other in owners.get(id(tensor), []) if other != name]
            for kind in axes(module) if others else ():
                couplings.block((name, kind), f"'{name}' shares a weight with '{others[0]}'")


def _has_made_weight(module: nn.Module) -> bool:
    """Whether the weight is computed before each call, as `torch.nn.utils.weight_norm` does."""
    is_own = "weight" in module._parameters or "weight" in module._buffers
    return not is_own and isinstance(getattr(module, "weight", None), Tensor)
