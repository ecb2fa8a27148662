"""Costs of a model: parameters and multiply-accumulate operations (MACs), now and after a cut, without cutting it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from kedro_aat.compression.filters.attention import heads_of
from kedro_aat.compression.filters.cutting import Cut, Kind, axes
from kedro_aat.compression.filters.groups import ChannelGroup, Place
from kedro_aat.compression.layer_table import shape_text
from kedro_aat.compression.quantization.held import counted_parameters
from kedro_aat.modes import evaluating, quiet

KINDS = ("filters", "parameters", "macs")  # what a rate can be the removed share of
_WHOLE: Place = ("", "heads")  # stands for an axis that is never cut


def num_parameters(model: nn.Module) -> int:
    """Counts the numbers in a model's parameters, including zeros and frozen ones; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in counted_parameters(model))


def num_macs(model: nn.Module, example_input: Tensor) -> int:
    """Counts multiply-accumulate operations per example in evaluation mode, including those with zeros.

    Convolutions, matrix products and attention count, as in `torch.utils.flop_counter`; elementwise operations,
    normalization and pooling do not.

    Args:
        model: Its modules keep their modes (training or evaluation).
        example_input: (B, ...), B at least 1, on the device of the model; only the first example is run.
    """
    return _count_operations(model, example_input).get_total_flops() // 2  # a multiplication and an addition


def macs_of_modules(model: nn.Module, example_input: Tensor) -> dict[str, int]:
    """Counts what each module itself, without its children, contributes to `num_macs`.

    Args:
        model: Its modules keep their modes (training or evaluation).
        example_input: (B, ...), B at least 1, on the device of the model; only the first example is run.

    Returns:
        Name as in `named_modules()` -> operations per example; modules without operations are left out.
    """
    counts = _count_operations(model, example_input).get_flop_counts()
    root = type(model).__name__
    with_children = {
        name: sum(counts.get(f"{root}.{name}" if name else root, {}).values()) // 2 for name, _ in model.named_modules()
    }
    own = dict(with_children)
    for name, number in with_children.items():
        if name:
            own[name.rpartition(".")[0]] -= number
    return {name: number for name, number in own.items() if number}


def _count_operations(model: nn.Module, example_input: Tensor) -> FlopCounterMode:
    counter = FlopCounterMode(display=False)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Fused kernels (whole encoder layers, LSTMs, attention) hide their products from the counter.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            evaluating(model),
            quiet(),
            torch.no_grad(),
            torch.backends.mkldnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            counter,
        ):
            model(example_input[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter


@dataclass(frozen=True)
class LayerCost:
    """Costs of one layer.

    Attributes:
        parameters: Numbers in its own parameters.
        macs: Multiply-accumulate operations per example.
    """

    parameters: int
    macs: int


class CutCosts:
    """Filters, parameters and MACs of a model as functions of the units removed from each group.

    Parameters and operations of a layer are proportional to the lengths of the axes that are cut. So the result is
    exact for parameters, and for MACs except those of products of two activations outside of attention.

    Args:
        model: Before any cut.
        example_input: (B, ...), on the device of the model; only the first example is run.
        groups: All groups of the model.
        sizes: The model's `count_channels`.

    Attributes:
        layers: Names of the layers with parameters or operations of their own.
    """

    def __init__(
        self, model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup], sizes: Mapping[Place, int]
    ) -> None:
        self._axes: list[Place] = [_WHOLE, *sizes]
        self._sizes = np.array([1, *sizes.values()], dtype=np.int64)
        number = {place: index for index, place in enumerate(self._axes)}
        self._per_unit = np.zeros((len(self._axes), len(groups)), dtype=np.int64)
        for column, group in enumerate(groups):
            for member in group.members:
                self._per_unit[number[member.layer, member.kind], column] += member.indices.shape[1]
        macs = macs_of_modules(model, example_input)
        self.layers: list[str] = []
        # One row per parameter or product: its layer, its first and second axis, and its numbers or operations.
        parameters: list[tuple[int, int, int, float]] = []
        products: list[tuple[int, int, int, float]] = []
        self._filters: list[int] = []
        counted: set[int] = set()  # ids of parameters, since a shared one counts once
        for name, module in model.named_modules():
            row, is_product = len(self.layers), isinstance(module, _ConvNd | nn.Linear)
            own = [(key, tensor) for key, tensor in module._parameters.items() if tensor is not None]
            own = [(key, tensor) for key, tensor in own if id(tensor) not in counted]
            counted |= {id(tensor) for _, tensor in own}
            if not own and not macs.get(name):
                continue
            self.layers.append(name)
            for key, tensor in own:
                first, second = _axes_of(name, module, key)
                parameters.append((row, number[first], number[second], tensor.numel()))
            if macs.get(name):
                first, second = _axes_of(name, module, "weight") if is_product else (_WHOLE, _WHOLE)
                if heads_of(module) is not None:
                    first, second = (name, "heads"), _WHOLE
                products.append((row, number[first], number[second], macs[name]))
            if is_product and (name, "outputs") in number:
                self._filters.append(number[name, "outputs"])
        self._parameters, self._products = self._per_channel(parameters), self._per_channel(products)
        self._before = {kind: self._count(kind, self._sizes) for kind in KINDS}

    def total(self, rate_of: str) -> int:
        """Filters, parameters or MACs of the model before any cut."""
        return round(self._before[rate_of])

    def left(self, rate_of: str, removed: NDArray[np.int64]) -> int:
        """Filters, parameters or MACs of the model after a cut.

        Args:
            rate_of: `filters` (output channels of convolutions and linear layers), `parameters` or `macs`.
            removed: (groups,) - units removed from each group.
        """
        return round(self._count(rate_of, self._sizes - self._per_unit @ removed))

    def rate(self, rate_of: str, removed: NDArray[np.int64]) -> float:
        """Share of the filters, parameters or MACs of the whole model that a cut removes, in [0, 1)."""
        return 1 - self.left(rate_of, removed) / self.total(rate_of)

    def of_layers(self, removed: NDArray[np.int64]) -> list[LayerCost]:
        """Costs of each of `layers` after a cut."""
        kept = self._sizes - self._per_unit @ removed
        sums = []
        for rows, first, second, amount in (self._parameters, self._products):
            sums.append(np.bincount(rows, amount * kept[first] * kept[second], minlength=len(self.layers)))
        return [LayerCost(round(own), round(macs)) for own, macs in zip(*sums, strict=True)]

    def _count(self, rate_of: str, kept: NDArray[np.int64]) -> float:
        if rate_of == "filters":
            return float(kept[self._filters].sum())
        _, first, second, amount = self._parameters if rate_of == "parameters" else self._products
        return float((amount * kept[first] * kept[second]).sum())

    def _per_channel(self, rows: list[tuple[int, int, int, float]]) -> tuple[NDArray[np.int64], ...]:
        """Columns of the table, with the amount per channel of each axis."""
        table = np.array(rows, dtype=np.float64).reshape(-1, 4)
        layer, first, second = (table[:, column].astype(np.int64) for column in range(3))
        return layer, first, second, table[:, 3] / (self._sizes[first] * self._sizes[second])


def layer_columns(
    model: nn.Module, costs: CutCosts, removed: NDArray[np.int64], plan: Sequence[Cut]
) -> dict[str, list[str] | list[int] | list[float]]:
    """Shapes and costs of every layer before and after a cut, as columns of a `LayerTable`.

    Args:
        model: The model before the cut.
        costs: Costs of that model.
        removed: Units removed from each group, (groups,).
        plan: Cuts that remove them.

    Returns:
        A shape is that of the layer's first parameter; the rate is the removed share of its own parameters, in [0, 1).
    """
    shapes_before, shapes = [], []
    for layer in costs.layers:
        module = model.get_submodule(layer)
        parameter, shape = next(((key, list(p.shape)) for key, p in module.named_parameters(recurse=False)), ("", []))
        shapes_before.append(shape_text(shape))
        for cut in plan:
            if cut.layer == layer:
                for dim in (dim for key, dim in axes(module)[cut.kind] if key == parameter):
                    shape[dim] = len(cut.kept)
        shapes.append(shape_text(shape))
    before, after = costs.of_layers(np.zeros_like(removed)), costs.of_layers(removed)
    return {
        "layer": costs.layers,
        "shape_before": shapes_before,
        "shape": shapes,
        "rate": [
            1 - left.parameters / whole.parameters if whole.parameters else 0.0
            for whole, left in zip(before, after, strict=True)
        ],
        "parameters_before": [cost.parameters for cost in before],
        "parameters": [cost.parameters for cost in after],
        "macs_before": [cost.macs for cost in before],
        "macs": [cost.macs for cost in after],
    }


def _axes_of(layer: str, module: nn.Module, tensor: str) -> tuple[Place, Place]:
    """The axes of a tensor that can be cut, at most two."""
    kinds: list[Kind] = [kind for kind, found in axes(module).items() if any(name == tensor for name, _ in found)]
    first, second, *_ = [*((layer, kind) for kind in kinds), _WHOLE, _WHOLE]
    return first, second
