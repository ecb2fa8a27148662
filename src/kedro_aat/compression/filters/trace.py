"""Finds which channels of different layers depend on each other: a small interface to the graph of torch-pruning.

torch-pruning runs a model once and follows its gradient functions (Fang et al., "DepGraph: Towards Any Structural
Pruning", arXiv:2301.12900, section 3). It misunderstands some operations, so its result is a proposal that `probing`
tests. Nothing is cut here.
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
from kedro_aat.compression.filters.groups import Couplings, Place, count_channels, couple_within_layers, join_names
from kedro_aat.errors import ModelError


def trace(model: nn.Module, example_input: Tensor) -> Couplings:
    """Finds which channels of a model depend on each other, and which cannot be cut as far as its structure shows.

    Args:
        model: Not changed.
        example_input: (B, ...), on the device of the model.

    Raises:
        ModelError: If the model does not take the example input, or cannot be traced with it.
    """
    couplings = Couplings(count_channels(model))
    couple_within_layers(model, couplings)
    _block_special_layers(model, couplings)
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # the graph lacks parameters without a gradient
    _Tracer(twin, example_input, couplings).run()
    return couplings


class _Tracer:
    """Adds the dependencies in torch-pruning's graph of a model to its couplings.

    Args:
        model: A copy, in any mode; each of its parameters has a gradient.
        example_input: (B, ...), on the device of the model.
        couplings: Gains pairs and blocked channels.
    """

    def __init__(self, model: nn.Module, example_input: Tensor, couplings: Couplings) -> None:
        self._model, self._couplings = model, couplings
        self._graph, self._outputs = _build_graph(model, example_input)
        self._names: dict[Any, str] = {module: name for name, module in model.named_modules()}
        self._names |= {parameter: name for name, parameter in model.named_parameters()}
        self._head_layers = {id(layer) for module in model.modules() for layer in _layers_of_heads(module)}
        self._visited: dict[Place, set[int]] = {}

    def run(self) -> None:
        """Visits all channels of all layers that the graph contains."""
        couplings = self._couplings
        for name, module in self._model.named_modules():
            if module not in self._graph.module2node and id(module) not in self._head_layers:
                for kind in axes(module):
                    couplings.block((name, kind), "the example input does not pass through it on the way to the output")
        for module in list(self._graph.module2node):
            is_layer = isinstance(module, nn.Module) and "outputs" in axes(module)
            if not is_layer or id(module) in self._head_layers:
                continue
            root: Place = (self._names[module], "outputs")
            unvisited = sorted(set(range(couplings.sizes[root])) - self._visited.get(root, set()))
            if unvisited:
                self._couple(module, root, unvisited)

    def _couple(self, module: nn.Module, root: Place, channels: list[int]) -> None:
        """Adds everything that depends on some output channels of a layer.

        Args:
            module: The layer.
            root: Its outputs.
            channels: Indices of some of them.
        """
        couplings = self._couplings
        prune = self._graph.get_pruner_of_module(module).prune_out_channels
        for item in self._graph.get_pruning_group(module, prune, channels):
            node, indices, roots = item.dep.target, [int(i) for i in item.idxs], [int(i) for i in item.root_idxs]
            target = node.module
            kind = self._kind(item.dep, target)
            if kind is None:
                if reason := self._blocking_reason(target):
                    couplings.blocked.append((root, roots, reason))
            else:
                place: Place = (self._names[target], kind)
                inside = [(i, r) for i, r in zip(indices, roots, strict=True) if i < couplings.sizes[place]]
                couplings.pairs.append((root, [r for _, r in inside], place, [i for i, _ in inside]))
                self._visited.setdefault(place, set()).update(i for i, _ in inside)
                if id(target) in self._head_layers:
                    reason = f"it is coupled with the heads around '{self._names[target]}'"
                    couplings.blocked.append((root, roots, reason))
            if kind != "inputs" and (not node.outputs or node.grad_fn in self._outputs):
                couplings.blocked.append((root, roots, "its outputs are outputs of the model"))

    def _kind(self, dependency: Any, module: Any) -> Kind | None:
        """Kind of channels to which a dependency of torch-pruning refers; None if it has no counterpart here."""
        is_known = isinstance(module, nn.Module) and not isinstance(module, nn.LayerNorm | nn.RMSNorm)
        kinds = axes(module) if is_known else {}
        if "channels" in kinds:
            return "channels"
        if "outputs" not in kinds:
            return None
        is_depthwise = getattr(module, "groups", 1) == getattr(module, "out_channels", None) and module.groups > 1
        if is_depthwise or self._graph.is_out_channel_pruning_fn(dependency.handler):
            return "outputs"
        return "inputs" if "inputs" in kinds else None

    def _blocking_reason(self, module: Any) -> str:
        """Why channels that reach a module cannot be cut; empty if they can."""
        if isinstance(module, nn.Parameter):
            return f"it is coupled with '{self._names[module]}', a parameter of no layer that can be cut"
        name = self._names.get(module)
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            return (
                f"it is coupled with '{name}' ({type(module).__name__}), which takes its mean over all channels: "
                "there a channel of zeros is not the same as no channel"
            )
        if name is None or not any(True for _ in module.parameters(recurse=False)):
            return ""  # an operation on each channel separately, as far as known
        return f"it is coupled with '{name}' ({type(module).__name__}), which cannot be cut"


def _build_graph(model: nn.Module, example_input: Tensor) -> tuple[Any, set[Any]]:
    """torch-pruning's graph, and the gradient functions of the model's outputs."""
    model.eval()
    description = f"an example input of shape {tuple(example_input.shape)} and type {example_input.dtype}"
    try:
        with torch.no_grad():
            model(example_input)
    except Exception as error:
        layer = _failing_layer(model, example_input)
        raise ModelError(
            f"{type(model).__name__} does not take {description}{layer}. Pass one like a batch of its data. "
            f"The model says: {error}"
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
    except Exception as error:  # torch-pruning may raise anything
        layer = _failing_layer(model, example_input)
        raise ModelError(
            f"{type(model).__name__} cannot be traced with {description}{layer}, so the dependencies between its "
            f"channels are unknown: {type(error).__name__}: {error}. Use magnitude_sparsity, which needs no tracing."
        ) from error
    if not outputs:
        raise ModelError(
            f"{type(model).__name__} cannot be traced: no gradient reaches its outputs. Does it run under no_grad?"
        )
    return graph, {output.grad_fn for output in outputs}


def _failing_layer(model: nn.Module, example_input: Tensor) -> str:
    """The layer in which a run fails, for a message; empty if it does not fail."""
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


def _layers_of_heads(module: nn.Module) -> Iterator[nn.Module]:
    """An attention module and its linear layers; the graph cannot distinguish their heads."""
    if (heads := heads_of(module)) is not None:
        yield module
        for name in (*filter(None, heads.producers), heads.consumer):
            yield module.get_submodule(name)


def _block_special_layers(model: nn.Module, couplings: Couplings) -> None:
    """Blocks layers that share a tensor, or whose tensors are computed in every call."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for tensor in module._parameters.values():
            if tensor is not None:
                owners.setdefault(id(tensor), []).append(name)
    for name, module in model.named_modules():
        reason = ""
        if parametrize.is_parametrized(module) or _has_computed_weight(module):
            reason = "its weight is made by a parametrization (weight norm, spectral norm ...)"
        elif isinstance(module, _NormBase) and module.track_running_stats and module._parameters.get("weight") is None:
            reason = f"'{name}' normalizes it without a weight of its own, so zeros do not stay zero"
        for kind in axes(module) if reason else ():
            couplings.block((name, kind), reason)
        if isinstance(module, nn.MultiheadAttention):
            couplings.block((join_names(name, "out_proj"), "outputs"), f"it is the width of '{name}'")
        for tensor in module._parameters.values():
            others = [other for other in owners.get(id(tensor), []) if other != name]
            for kind in axes(module) if others else ():
                couplings.block((name, kind), f"'{name}' shares a weight with '{others[0]}'")


def _has_computed_weight(module: nn.Module) -> bool:
    """Whether the weight is computed before each call, as by `torch.nn.utils.weight_norm`."""
    is_own = "weight" in module._parameters or "weight" in module._buffers
    return not is_own and isinstance(getattr(module, "weight", None), Tensor)
