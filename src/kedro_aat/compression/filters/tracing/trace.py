"""Finds which channels depend on each other: runs the model once and follows labels through every operation.

Each dimension of each parameter and buffer is labeled with the channels of its layer. The operations of a forward pass
(those of ATen, to which every function of torch comes down) carry the labels along, and unite channels that can only be
cut together; `rules` says how. This is the idea of dependency graphs (Fang et al., "DepGraph: Towards Any Structural
Pruning", arXiv:2301.12900, section 3), applied to operations instead of layers, so that it needs no knowledge of
layers, heads or branches. Nothing is cut here, and `probing` tests the result.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from kedro_aat.compression.filters.cutting import axes
from kedro_aat.compression.filters.groups import Couplings, count_channels, is_read
from kedro_aat.compression.filters.normalization import Normalization
from kedro_aat.compression.filters.tracing.labels import (
    Coloring,
    Dependencies,
    Length,
    Split,
    UnevenSplit,
    compressed,
    merged,
)
from kedro_aat.compression.filters.tracing.module_rules import ModuleRule, rule_for
from kedro_aat.compression.filters.tracing.rules import find_rule, unknown
from kedro_aat.errors import ModelError
from kedro_aat.model_inputs import (
    ModelInputs,
    call_model,
    describe_inputs,
    map_tensors,
    num_examples,
    take_examples,
    tensors_in,
)
from kedro_aat.modes import evaluating, quiet

_NUM_EXAMPLES = 2  # BatchNorm cannot be trained with one
_OUTPUT = "its outputs are outputs of the model"


def trace(model: nn.Module, example_input: ModelInputs) -> Couplings:
    """Finds which channels of a model depend on each other, and which cannot be cut as far as its operations show.

    The model runs in evaluation mode, and in training mode as well, in which some models have more outputs.

    Args:
        model: Not changed.
        example_input: What the model is called with, on its device.

    Raises:
        ModelError: If the model does not take the example input.
    """
    couplings = Couplings(count_channels(model))
    inputs = _few_examples(example_input)
    twin = copy.deepcopy(model)
    tracer = Tracer(twin, couplings)
    with _plain_kernels(), quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with evaluating(twin):
            tracer.run(inputs)
        twin.train()
        try:
            tracer.run(inputs)
        except Exception as error:  # such as a layer that needs more examples in training mode
            couplings.notes.append(
                "its training mode cannot be run with the example input, so layers that only training uses are not cut "
                f"along. {error}"
            )
    for (name, kind), size in couplings.sizes.items():
        if (name, kind) not in tracer.visited and size:
            couplings.block((name, kind), "the example input does not pass through it on the way to the output")
    couplings.normalizations = tracer.normalizations
    return couplings


def _few_examples(inputs: ModelInputs) -> ModelInputs:
    number = num_examples(inputs)
    if number >= _NUM_EXAMPLES:
        return take_examples(inputs, slice(_NUM_EXAMPLES))
    return map_tensors(
        lambda part: torch.cat([part, part]) if number == 1 and part.dim() and len(part) == 1 else part, inputs
    )


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Lets fused layers run as the operations of which they consist."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


class Tracer(TorchDispatchMode):
    """Follows labels through forward passes of a model.

    Args:
        model: A copy; its buffers may change.
        couplings: Gains what the passes show.

    Attributes:
        found: What the passes show, in nodes.
        visited: Places whose tensors were used.
        normalizations: Name of each layer that takes statistics over channels -> how.
    """

    def __init__(self, model: nn.Module, couplings: Couplings) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.model, self.couplings = model, couplings
        self.found: Dependencies = couplings.dependencies
        self.visited: set[tuple[str, str]] = set()
        self.normalizations: dict[str, Normalization] = {}
        self._places: dict[int, list[tuple[str, str]]] = {}  # id of a parameter or buffer -> its places
        self._labels: Any = WeakTensorKeyDictionary()
        self._bases: Any = WeakTensorKeyDictionary()  # tensor that shares memory with another -> that one
        self._spoiled: Any = WeakTensorKeyDictionary()  # results for which channels cannot be cut if they are read
        self._flexible: Any = WeakTensorKeyDictionary()  # tensors that have whatever size they are given
        self._names = {module: name for name, module in model.named_modules()}
        self._rules: dict[nn.Module, ModuleRule | None] = {}  # of modules that were called
        self._divided: dict[bytes, tuple[Tensor, set[int], tuple[str, ...]]] = {}
        self._running: list[str] = []  # names of modules, the innermost last
        self._paused = 0
        self._failing = ""
        self._label_parameters()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True  # otherwise the compiler is imported, which takes a second

    def run(self, inputs: ModelInputs) -> None:
        """Runs the model once."""
        with ExitStack() as stack:
            for module in self._names:
                enter = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                leave = module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            self._failing = ""
            try:
                with self:
                    outputs = call_model(self.model, inputs)
            except Exception as error:
                where = f" (it fails in '{self._failing}')" if self._failing else ""
                raise ModelError(
                    f"{type(self.model).__name__} does not take an example input of {describe_inputs(inputs)}{where}. "
                    f"Pass one like a batch of its data. The model says: {error}"
                ) from error
        self._note_pieces()
        for tensor in tensors_in(outputs):
            self.block(tensor, _OUTPUT)

    def _label_parameters(self) -> None:
        for name, module in self.model.named_modules():
            for kind, found in axes(module).items():
                for axis in found:
                    nodes = self.nodes_of(name, kind)
                    tensor = getattr(module, axis.name)
                    shape = [-1 if dim == axis.dim else 1 for dim in range(tensor.dim())]
                    colored = nodes.repeat(axis.repeats).view(shape)
                    is_masked = not is_read(kind) and axis.name in module._parameters
                    is_buffer = axis.name in module._buffers
                    self._label(tensor, Coloring(colored, is_masked, is_parameter=True, is_buffer=is_buffer))
                    self._places.setdefault(id(tensor), []).append((name, kind))

    def _label(self, tensor: Tensor, coloring: Coloring) -> None:
        """Adds a coloring of a parameter; one that two layers share is united."""
        known = self._labels.get(tensor, ())
        if not coloring.dims:
            return
        for other in known:
            if other.dims == coloring.dims:
                self.found.unite(other.nodes, coloring.nodes, "it shares a weight with a layer that cannot be cut")
                if other.is_zero and not coloring.is_zero:  # the weight is one, so it is masked for both
                    return
        self._labels[tensor] = (*(other for other in known if other.dims != coloring.dims), coloring)

    # --- what rules use --------------------------------------------------------------------------------------

    def nodes_of(self, layer: str, kind: str) -> Tensor:
        """(channels,) nodes of a place."""
        start = self.couplings.starts[layer, kind]
        return torch.arange(start, start + self.couplings.sizes[layer, kind])

    @property
    def layer(self) -> str:
        """Name of the innermost module whose forward pass is running."""
        return self._running[-1] if self._running else ""

    @property
    def where(self) -> str:
        """The innermost module whose forward pass is running, as messages call it."""
        return f"'{self.layer}'" if self.layer else "the model's own forward pass"

    def labels(self, tensor: Tensor) -> tuple[Coloring, ...]:
        """The colorings of a tensor."""
        for place in self._places.get(id(tensor), ()):
            self.visited.add(place)
        for nodes, reason in self._spoiled.pop(tensor, ()):
            self.found.block(nodes, reason)
        found: tuple[Coloring, ...] = self._labels.get(tensor, ())
        return found

    def is_flexible(self, tensor: Tensor) -> bool:
        """Whether a tensor would be made with another size if the channels around it were fewer."""
        return tensor in self._flexible

    def put(self, tensor: Tensor, colorings: Sequence[Coloring]) -> None:
        """Labels a result; colorings that vary along a common dimension are united."""
        small = [replace(coloring, nodes=compressed(coloring.nodes)) for coloring in colorings]
        self._labels[tensor] = tuple(merged(small, self.found, f"{self.where} combines it with what cannot be cut"))

    def channels_of_layer(self, shape: Sequence[int]) -> list[Coloring]:
        """The channels of the running layer, if it has a place for them, in a shape; even without a parameter."""
        return self._own_place("channels", shape)

    def inputs_of_layer(self, shape: Sequence[int]) -> list[Coloring]:
        """The inputs of the running layer, if it has a place for them, in a shape."""
        return self._own_place("inputs", shape)

    def _own_place(self, kind: str, shape: Sequence[int]) -> list[Coloring]:
        if (self.layer, kind) not in self.couplings.sizes:
            return []
        self.visited.add((self.layer, kind))
        return [Coloring(self.nodes_of(self.layer, kind).view(*shape), False)]

    def repeated(self, coloring: Coloring, size: int, dim: int = 1) -> Coloring:
        """A coloring that is repeated along a dimension, as InstanceNorm does for each example of a batch.

        Args:
            coloring: The coloring.
            size: Size of the dimension afterwards, a multiple of that before.
            dim: The dimension.
        """
        times = size // coloring.nodes.shape[dim]
        sizes = [times if other == dim else 1 for other in range(coloring.nodes.dim())]
        return replace(coloring, nodes=coloring.nodes.repeat(sizes)) if times > 1 else coloring

    def visit(self, layer: str) -> None:
        """Notes that all places of a layer were used."""
        self.visited |= {place for place in self.couplings.sizes if place[0] == layer}

    def mark_flexible(self, tensor: Tensor) -> None:
        """Notes that a tensor would be made with another size if the channels around it were fewer."""
        self._flexible[tensor] = True

    def spoil(self, tensor: Tensor, nodes: Tensor, reason: str) -> None:
        """Notes that channels cannot be cut if anything reads a result.

        Args:
            tensor: The result.
            nodes: The channels.
            reason: Why they cannot be cut then.
        """
        self._spoiled[tensor] = [*self._spoiled.get(tensor, ()), (nodes, reason)]

    def without(self, coloring: Coloring, dims: Iterable[int], reason: str) -> Coloring | None:
        """A coloring that does not vary along some dimensions any more.

        Args:
            coloring: The coloring.
            dims: Dimensions along which an operation does not keep channels apart.
            reason: Why the channels cannot be cut if they vary along these dimensions only.

        Returns:
            None if they do.
        """
        common = [dim for dim in coloring.dims if dim in set(dims)]
        if len(common) < len(coloring.dims):
            return replace(coloring, nodes=self.found.unite_along(coloring.nodes, common)) if common else coloring
        self.found.block(coloring.nodes, reason)
        return None

    def split(self, nodes: Tensor, fixed_axes: Sequence[int] = ()) -> None:
        """Notes that what is left of some channels must be divisible in this way."""
        fixed = tuple(axis % nodes.dim() for axis in fixed_axes)
        self.found.splits.append(Split(nodes.numpy(), fixed, tuple(reversed(self._running))))

    def divide(self, nodes: Tensor, ends: Sequence[int]) -> None:
        """Notes where channels, along the last dimension, are divided into pieces."""
        if ends:
            key = nodes.numpy().tobytes()
            known = self._divided.setdefault(key, (nodes, set(), tuple(reversed(self._running))))
            known[1].update(ends)

    def note_lengths(self, nodes: Tensor) -> None:
        """Notes channels along dimensions, whose number a module may hold."""
        for dim in (dim for dim, size in enumerate(nodes.shape) if size > 1):
            line = nodes.movedim(dim, 0).reshape(nodes.shape[dim], -1)[:, 0]
            self.found.lengths.append(Length(line.numpy(), tuple(reversed(self._running[-2:]))))

    def _note_pieces(self) -> None:
        for nodes, ends, modules in self._divided.values():
            edges = [0, *sorted(ends), nodes.shape[-1]]
            sizes = {end - start for start, end in itertools.pairwise(edges)}
            flat = nodes.reshape([*(size for size in nodes.shape[:-1] if size > 1), nodes.shape[-1]])
            if len(sizes) == 1:
                parts = flat.unflatten(-1, (len(edges) - 1, -1))
                split = Split(parts.numpy(), (parts.dim() - 2,), modules)
                self.found.splits.append(replace(split, but_the_last=flat[..., : edges[-2]].numpy()))
            else:
                self.found.uneven.append(UnevenSplit(flat.numpy(), tuple(edges), modules))
        self._divided.clear()

    def block(self, tensor: Tensor, reason: str) -> None:
        """Notes that the channels of a tensor cannot be cut."""
        for coloring in self.labels(tensor):
            self.found.block(coloring.nodes, reason)

    # --- running ---------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._running.append(self._names[module])
        if module not in self._rules:
            self._paused += 1
            self._rules[module] = rule_for(module, (*args, *kwargs.values()))
            self._paused -= 1
        self._paused += self._rules[module] is not None

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if (rule := self._rules[module]) is not None:
            if output is not None and self._paused == 1:
                rule(self, module, (*args, *kwargs.values()), output)
            self._paused -= 1
        if output is None and not self._failing:  # of an exception, or a layer that returns nothing
            self._failing = self.layer
        self._running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        try:
            return find_rule(func)(self, func, args, kwargs)
        except Exception:  # of a rule, or of the operation itself, which then fails again
            return unknown(self, func, args, kwargs)

    def follow(self, result: Any, args: Any, *, is_view: bool) -> None:
        """Notes of a result whether its size is free, and whether it shares memory with its first argument.

        Args:
            result: What an operation returned.
            args: Its arguments.
            is_view: Whether it may share memory with the first of them.
        """
        inputs = list(tensors_in(args))
        for out in tensors_in(result):
            if all(self.is_flexible(tensor) for tensor in inputs):
                self._flexible[out] = True
            if is_view and inputs and out is not inputs[0]:
                self._bases[out] = self._bases.get(inputs[0], inputs[0])

    def is_part(self, tensor: Tensor) -> bool:
        """Whether a tensor is a view of another, so that writing into it changes the other."""
        return tensor in self._bases
