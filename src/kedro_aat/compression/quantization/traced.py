"""Training passes as graphs that `torch.compile` takes: a mode that sees functions cannot be compiled, what it saw can.

The first pass of each kind runs as always, and every PyTorch function that is called in it becomes a node of a graph,
with roundings and ranges as functions of their own, so that their gradients stay. Later passes of the kind run the
compiled graph. What Python decides is fixed in it: a pass that reads numbers out of tensors or draws random numbers
outside of torch is not compiled.
"""

from __future__ import annotations

import logging
import operator
import random
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from kedro_aat.compression.masks import MASKS, SHADOW
from kedro_aat.model_inputs import tensors_in

logger = logging.getLogger(__name__)

# Functions whose result depends on numbers in a tensor, and is none itself.
_READING = {
    *("item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "data_ptr"),
    *("__bool__", "__float__", "__int__", "__index__", "__complex__", "__contains__", "__array__"),
}
# Compilers unroll these step by step, which takes minutes.
_RECURRENT = {"gru", "lstm", "rnn_tanh", "rnn_relu"}


@dataclass
class TracedPass:
    """A pass as a graph.

    Attributes:
        run: Takes the tensors of the arguments, then the scales and zero points of all slots, and returns a tuple of
            the tensors of the result, then the ranges of all observed slots, (K, 2), if there are any.
        slots: Observed slots.
        leaves: Leaves of the result; None in place of each tensor.
        structure: How the leaves form the result.
    """

    run: Callable[..., tuple[Tensor, ...]]
    slots: list[int]
    leaves: list[Any]
    structure: TreeSpec

    def result(self, tensors: Iterable[Tensor]) -> Any:
        """What the model returns.

        Args:
            tensors: The tensors of its result.
        """
        found = iter(tensors)
        return tree_unflatten([next(found) if leaf is None else leaf for leaf in self.leaves], self.structure)


class Tracer(TorchFunctionMode):
    """Notes the functions of one pass as a graph, while they run.

    Args:
        model: Its parameters, buffers and other tensors are those that the graph may read.
        inputs: The tensors that the graph takes.

    Attributes:
        refusal: Why the pass cannot be compiled; None as long as it can.
    """

    def __init__(self, model: nn.Module, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.refusal: str | None = None
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._nodes: dict[int, fx.Node] = {}
        self._kept: list[Any] = []  # as long as they live, no other tensor has their id
        self._owned = {id(tensor) for tensor in _tensors_of(model)}
        self._is_paused = False
        self._random, self._modes, self._has_gradients = _random_state(), _autocast(), torch.is_grad_enabled()
        for number, tensor in enumerate(inputs):
            self._set(tensor, self._graph.placeholder(f"input_{number}"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_paused or self.refusal:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "?")
        if name in _READING:
            self.refusal = f"its forward pass reads numbers out of a tensor ({name})"
            return func(*args, **kwargs)
        if name in _RECURRENT:
            self.refusal = "torch does not compile recurrent layers"
            return func(*args, **kwargs)
        before = self._in_nodes((args, kwargs))
        result = func(*args, **kwargs)
        if next(tensors_in(result), None) is not None:
            self._note(func, name, before, result, args)
        elif name == "__setitem__":
            self._graph.call_function(operator.setitem, before[0])
        elif result is None and name != "__get__" and next(tensors_in((args, kwargs)), None) is not None:
            self.refusal = f"its forward pass changes a tensor by {name}"
        return result

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function, which becomes one node with a gradient of its own.

        Args:
            function: Any function of tensors.
            *args: Its arguments.
        """
        before = self._in_nodes(args)
        was_paused, self._is_paused = self._is_paused, True
        try:
            result = function(*args)
        finally:
            self._is_paused = was_paused
        if not self.refusal:
            self._set_all(result, self._graph.call_function(function, before))
        return result

    def finish(self, result: Any, slots: list[int], ranges: Tensor | None, mode: str | None) -> TracedPass | None:
        """Returns the compiled pass; None if it cannot be compiled.

        Args:
            result: What the model returned.
            slots: Observed slots.
            ranges: Their ranges, (K, 2); None if there are none.
            mode: Mode of `torch.compile`; None for its default.
        """
        leaves, structure = tree_flatten(result)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if _random_state() != self._random:
            self.refusal = self.refusal or "its forward pass draws random numbers outside of torch"
        if len(list(tensors_in(result))) != len(tensors):
            self.refusal = self.refusal or f"it returns a {type(result).__name__}, which torch does not take apart"
        outputs = self._in_nodes((*tensors, *([] if ranges is None else [ranges])))
        if self.refusal:
            return None
        self._graph.output(outputs)
        module = fx.GraphModule(self._root, self._graph)
        constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return TracedPass(torch.compile(module, dynamic=False, mode=mode), slots, constants, structure)

    def _note(self, func: Any, name: str, before: Any, result: Any, originals: Any) -> None:
        args, kwargs = before
        node: fx.Node
        if name == "__get__":
            node = self._graph.call_function(getattr, (args[0], func.__self__.__name__))
        elif name.startswith("__") and hasattr(operator, name):
            node = self._graph.call_function(getattr(operator, name), args)
        elif name.startswith("__r") and hasattr(operator, f"__{name[3:]}"):
            node = self._graph.call_function(getattr(operator, f"__{name[3:]}"), (args[1], args[0]))
        elif getattr(Tensor, name, None) is func:
            node = self._graph.call_method(name, args, kwargs)
        else:
            node = self._graph.call_function(func, args, kwargs)
        if _autocast() != self._modes:
            self.refusal = "its forward pass switches autocast"
        is_in_place = isinstance(result, Tensor) and any(result is arg for arg in originals)
        if self._has_gradients and not torch.is_grad_enabled() and isinstance(result, Tensor) and not is_in_place:
            node = self._graph.call_method("detach", (node,))
        self._set_all(result, node)

    def _set_all(self, result: Any, node: fx.Node) -> None:
        if isinstance(result, Tensor):
            self._set(result, node)
            return
        for number, part in enumerate(result):
            if isinstance(part, Tensor):
                self._set(part, self._graph.call_function(operator.getitem, (node, number)))
            elif next(tensors_in(part), None) is not None:
                self._set_all(part, self._graph.call_function(operator.getitem, (node, number)))

    def _set(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._kept.append(tensor)

    def _in_nodes(self, values: Any) -> Any:
        return fx.node.map_aggregate(values, lambda value: self._node(value) if isinstance(value, Tensor) else value)

    def _node(self, tensor: Tensor) -> Any:
        if id(tensor) not in self._nodes:
            if id(tensor) not in self._owned:
                self.refusal = self.refusal or "its forward pass reads a tensor that is neither its own nor an input"
                return None
            name = f"tensor_{len(self._kept)}"
            if isinstance(tensor, nn.Parameter):
                self._root.register_parameter(name, tensor)
            else:
                self._root.register_buffer(name, tensor)
            self._set(tensor, self._graph.get_attr(name))
        return self._nodes[id(tensor)]


def kind_of(model: nn.Module, args: Any, kwargs: Any) -> tuple[Hashable, list[Tensor]]:
    """What the graph of a pass depends on, beside the pass itself, and the tensors of its arguments.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    leaves, structure = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    described = tuple(
        (tuple(leaf.shape), leaf.dtype, leaf.device, leaf.requires_grad) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in leaves
    )
    buffers = dict(model.named_buffers())
    state = *model.parameters(), *(buffer for name, buffer in buffers.items() if not _is_shadow(name, buffers))
    # `training`, and whatever else a forward pass may ask for, which is fixed in a graph.
    flags = tuple(
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, bool | int | float | str)
    )
    return (described, str(structure), tuple(map(id, state)), flags, torch.is_grad_enabled(), _autocast()), tensors


def _is_shadow(name: str, buffers: Collection[str]) -> bool:
    """Whether a buffer keeps the values of masked weights: a new one whenever the rate becomes 0 or leaves it."""
    return name.endswith(SHADOW) and any(name.removesuffix(SHADOW) + mask in buffers for mask in MASKS)


def _tensors_of(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():  # tensors that are neither, which models keep as plain attributes
        yield from tensors_in(list(vars(module).values()))


def _random_state() -> tuple[Any, ...]:
    _, numbers, *more = np.random.get_state()
    return random.getstate(), np.asarray(numbers).tobytes(), *more


def _autocast() -> tuple[Any, ...]:
    return tuple((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda"))
