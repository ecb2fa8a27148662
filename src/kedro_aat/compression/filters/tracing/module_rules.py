"""How layers carry labels along that are followed as a whole: recurrent layers, and statistics over channels."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNCellBase
from torch.nn.utils.rnn import PackedSequence

from kedro_aat.compression.filters.cutting import axes
from kedro_aat.compression.filters.normalization import Normalization, recognize
from kedro_aat.compression.filters.tracing.labels import Coloring
from kedro_aat.model_inputs import tensors_in

if TYPE_CHECKING:
    from kedro_aat.compression.filters.tracing.trace import Tracer


class ModuleRule(Protocol):
    """Labels the output of a layer."""

    def __call__(self, tracer: Tracer, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Receives what the layer received, positional arguments first, and what it returned."""
        ...


def rule_for(module: nn.Module, inputs: tuple[Any, ...]) -> ModuleRule | None:
    """The rule of a layer that is followed as a whole; None for a module whose operations are followed.

    Args:
        module: Any module.
        inputs: What it is called with.
    """
    if isinstance(module, nn.RNNBase):
        return run_recurrent
    if isinstance(module, RNNCellBase):
        return run_cell
    sample = next(tensors_in(inputs), None)
    own = [tensor for tensor in module._parameters.values() if tensor is not None]
    is_leaf = not module._modules and all(tensor.dim() == 1 for tensor in own)
    if sample is None or not sample.is_floating_point() or not is_leaf:
        return None
    known = isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)
    if not (known or own) or isinstance(module, nn.modules.batchnorm._NormBase | nn.PReLU):
        return None
    found = recognize(_without_hooks(module), sample)
    if found is None or (found.groups > 1 and not _is_cut_within_groups(found, sample)):
        return None
    return partial(run_normalization, normalization=found)


def _without_hooks(module: nn.Module) -> nn.Module:
    """The same module without hooks: those of the tracer refer to the whole model, which would be copied with it."""
    bare = module.__class__.__new__(module.__class__)
    hooks: dict[str, Any] = {name: OrderedDict() for name in vars(module) if name.endswith(("_hooks", "_with_kwargs"))}
    vars(bare).update({**vars(module), **hooks})
    return bare


def _is_cut_within_groups(normalization: Normalization, sample: Tensor) -> bool:
    """Whether the channels of each group are cut; groups that are many and small are cut as a whole."""
    return sample.shape[normalization.dim] // normalization.groups > normalization.groups


def run_normalization(
    tracer: Tracer, module: nn.Module, args: tuple[Any, ...], output: Any, *, normalization: Normalization
) -> None:
    """Statistics over channels: the masked layer takes them over the channels that are kept.

    Args:
        tracer: Follows the labels, and is inside the layer.
        module: The layer.
        args: Its arguments.
        output: What it returned for them.
        normalization: Over which entries it takes its statistics.
    """
    source = next(tensors_in(args))
    dim = normalization.dim % source.dim()
    shape = [-1 if other == dim else 1 for other in range(source.dim())]
    labeled = list(tracer.labels(source))
    tracer.normalizations[tracer.layer] = normalization
    for kind, found in axes(module).items():
        for axis in found:
            tracer.labels(getattr(module, axis.name))  # visited
        labeled.append(Coloring(tracer.nodes_of(tracer.layer, kind).view(shape), True))
    if normalization.groups > 1:
        for coloring in labeled:
            if dim in coloring.dims:
                nodes = coloring.nodes.movedim(dim, 0).flatten()
                tracer.found.unite_along(nodes.view(normalization.groups, -1), [0])
    tracer.visit(tracer.layer)
    if not any(dim in each.dims for each in tracer.labels(source)):
        for each in labeled:
            tracer.found.block(each.nodes, f"{tracer.where} reads a tensor of fixed size")
    result = next(tensors_in(output))
    tracer.put(result, [replace(each, is_zero=dim in each.dims, is_parameter=False) for each in labeled])


def run_recurrent(tracer: Tracer, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """GRU, LSTM or RNN: its inputs and its hidden units, which are the same in all layers and directions.

    Args:
        tracer: Follows the labels, and is inside the layer.
        module: The layer.
        args: Its arguments.
        output: What it returned for them.
    """
    assert isinstance(module, nn.RNNBase)
    layer = tracer.layer
    tracer.visit(layer)
    source = args[0].data if isinstance(args[0], PackedSequence) else args[0]
    suffixes = ["", "_reverse"] if module.bidirectional else [""]
    read = tracer.nodes_of(layer, "inputs") if (layer, "inputs") in tracer.couplings.sizes else None
    _read(tracer, source, read)
    hidden = [kind for name, kind in tracer.couplings.sizes if name == layer and kind.startswith("hidden")]
    if not hidden:  # a layer with projections
        return
    nodes = {kind: tracer.nodes_of(layer, kind) for kind in hidden}
    for kind in hidden[1:]:
        tracer.found.unite(nodes[hidden[0]], nodes[kind], "")
    for number in range(module.num_layers):
        made = torch.cat([nodes[f"hidden_l{number}{suffix}"] for suffix in suffixes])
        if number + 1 < module.num_layers:
            tracer.found.unite(made, tracer.nodes_of(layer, f"inputs_l{number + 1}"), "")
    sequence, states = output
    sequence = sequence.data if isinstance(sequence, PackedSequence) else sequence
    tracer.put(sequence, [Coloring(made.view([1] * (sequence.dim() - 1) + [-1]), True)])
    first = nodes[hidden[0]]
    for state in tensors_in(states):
        tracer.put(state, [Coloring(first.view([1] * (state.dim() - 1) + [-1]), True)])
    for given in list(tensors_in(args[1:])):
        _meet(tracer, given, first)


def run_cell(tracer: Tracer, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """One time step of a recurrent layer.

    Args:
        tracer: Follows the labels, and is inside the layer.
        module: The layer.
        args: Its arguments.
        output: What it returned for them.
    """
    layer = tracer.layer
    tracer.visit(layer)
    source, *states = list(tensors_in(args))
    _read(tracer, source, tracer.nodes_of(layer, "inputs"))
    hidden = tracer.nodes_of(layer, "hidden")
    for state in states:
        _meet(tracer, state, hidden)
    for out in tensors_in(output):
        tracer.put(out, [Coloring(hidden.view([1] * (out.dim() - 1) + [-1]), True)])


def _read(tracer: Tracer, source: Tensor, nodes: Tensor | None) -> None:
    """Unites the channels of an input with the columns that read them."""
    last = source.dim() - 1
    labeled = [each for each in tracer.labels(source) if last in each.dims]
    reason = f"{tracer.where} reads it beside channels that cannot be cut"
    for each in labeled:
        if nodes is None or each.dims != [last]:
            tracer.found.block(each.nodes, reason)
            continue
        tracer.found.unite(each.nodes.flatten(), nodes, reason)
        if not each.is_zero:
            tracer.found.mask(nodes)
    if not labeled and nodes is not None:
        tracer.found.block(nodes, "its inputs are not the channels of a layer")


def _meet(tracer: Tracer, state: Tensor, hidden: Tensor) -> None:
    """Unites a state that a recurrent layer is given with its hidden units."""
    last = state.dim() - 1
    labeled = [each for each in tracer.labels(state) if last in each.dims]
    reason = f"{tracer.where} is given a state that is not zero where it is masked"
    for each in labeled:
        if each.dims == [last] and each.is_zero:
            tracer.found.unite(each.nodes.flatten(), hidden, reason)
        else:
            tracer.found.block(each.nodes, reason)
            tracer.found.block(hidden, reason)
    if not labeled and (bool(state.ne(0).any()) or not tracer.is_flexible(state)):
        tracer.found.block(hidden, f"{tracer.where} is given a state of fixed size")
