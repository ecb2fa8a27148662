"""Costs of a model: parameters and multiply-accumulate operations (MACs), now and after a cut, without cutting it."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from kedro_aat.compression.filters.cutting import AttributeChange, Cut, axes
from kedro_aat.compression.filters.groups import ChannelGroup, Place
from kedro_aat.compression.layer_table import shape_text
from kedro_aat.compression.quantization.held import counted_parameters
from kedro_aat.model_inputs import ModelInputs, call_model, take_examples
from kedro_aat.modes import evaluating, quiet

KINDS = ("filters", "parameters", "macs")  # what a rate can be the removed share of
_WHOLE: Place = ("", "")  # stands for an axis that is never cut


def num_parameters(model: nn.Module) -> int:
    """Counts the numbers in a model's parameters, including zeros and frozen ones; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in counted_parameters(model))


def num_macs(model: nn.Module, example_input: ModelInputs) -> int:
    """Counts multiply-accumulate operations per example in evaluation mode, including those with zeros.

    Convolutions, matrix products and attention count, as in `torch.utils.flop_counter`; elementwise operations,
    normalization and pooling do not.

    Args:
        model: Its modules keep their modes (training or evaluation).
        example_input: A batch of at least one example, on the device of the model; only the first example is run.
    """
    return sum(count_products(model, example_input).values())


class Product(NamedTuple):
    """Where products are computed.

    Attributes:
        module: Name of the module that computes them, as in `named_modules()`.
        weight: The parameter that is one of the factors: name of its module, and its own name. None for a product of
            activations, or of weights that are computed anew in every call.
    """

    module: str
    weight: tuple[str, str] | None


def count_products(model: nn.Module, example_input: ModelInputs) -> dict[Product, int]:
    """Counts the multiply-accumulate operations per example, by module and weight; see `num_macs`."""
    names = {
        f"{type(model).__name__}.{name}" if name else type(model).__name__: name for name, _ in model.named_modules()
    }
    weight_at = _Weights(model)
    counted: Counter[Product] = Counter()

    def counting(formula: Callable[..., int]) -> Callable[..., int]:
        def count(*args: Any, **kwargs: Any) -> int:
            operations = formula(*args, **kwargs)
            innermost = max(counter.mod_tracker.parents, key=lambda name: len(names.get(name, "")))
            factors = [factor for factor in _pytree.tree_leaves(args) if isinstance(factor, Tensor)]
            weight = next((found for factor in factors if (found := weight_at(factor)) is not None), None)
            counted[Product(names.get(innermost, ""), weight)] += operations // 2  # a multiplication and an addition
            return operations

        count._get_raw = True  # type: ignore[attr-defined]  # so that it gets tensors instead of their shapes
        return count

    counter = FlopCounterMode(
        display=False, custom_mapping={operator: counting(formula) for operator, formula in flop_registry.items()}
    )
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Fused kernels (whole encoder layers, LSTMs, attention) hide their products from the counter.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            evaluating(model),
            quiet(),
            torch.no_grad(),
            _without_gradients(model),
            torch.backends.mkldnn.flags(enabled=False),
            torch.backends.cudnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            counter,
        ):
            call_model(model, take_examples(example_input, slice(1)))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return dict(counted)


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Lets no parameter ask for a gradient.

    The counter hooks the gradient of whatever a module is called with, and a view of a parameter, which is made without
    gradients here, has none though it asks for it.
    """
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


class _Weights:
    """Finds the parameter of a model that a tensor is a part of, by its address in memory."""

    def __init__(self, model: nn.Module) -> None:
        found = {
            parameter.data_ptr(): (parameter.numel() * parameter.element_size(), (name, key))
            for name, module in model.named_modules()
            for key, parameter in module._parameters.items()
            if parameter is not None and parameter.dim() > 1  # a bias is no factor
        }
        self._starts = sorted(found)
        self._found = [found[start] for start in self._starts]

    def __call__(self, tensor: Tensor) -> tuple[str, str] | None:
        if tensor.layout != torch.strided:  # sparse tensors have no address
            return None
        address = tensor.data_ptr()
        number = bisect.bisect_right(self._starts, address) - 1
        if number < 0 or address >= self._starts[number] + self._found[number][0]:
            return None
        return self._found[number][1]


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
    exact for parameters, and for MACs of products with a weight. Products of two activations, as in attention, are
    taken to be proportional to the units that exist inside of their module only, such as its heads.

    Args:
        model: Before any cut.
        example_input: A batch, on the device of the model; only the first example is run.
        groups: All groups of the model.
        sizes: The model's `count_channels`.

    Attributes:
        layers: Names of the layers with parameters or operations of their own.
    """

    def __init__(
        self, model: nn.Module, example_input: ModelInputs, groups: Sequence[ChannelGroup], sizes: Mapping[Place, int]
    ) -> None:
        places: list[Place] = [_WHOLE, *sizes]
        self._sizes = np.array([1, *sizes.values()], dtype=np.int64)
        self._number = {place: index for index, place in enumerate(places)}
        # Place and group of each member, and the channels that it loses with a unit.
        members = [
            (self._number[member.layer, member.kind], number, member.indices.shape[1])
            for number, group in enumerate(groups)
            for member in group.members
        ]
        self._of_places, self._of_groups, self._per_unit = np.array(members, dtype=np.int64).reshape(-1, 3).T
        modules = dict(model.named_modules())
        products = count_products(model, example_input)
        own: dict[str, list[str]] = {name: [] for name in modules}
        counted: set[int] = set()  # ids of parameters, since a shared one counts once
        for name, module in modules.items():
            for key, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in counted:
                    counted.add(id(parameter))
                    own[name].append(key)
        computing = {product.module for product in products}
        self.layers = [name for name in modules if own[name] or name in computing]
        row = {name: index for index, name in enumerate(self.layers)}
        self._parameters = self._table(
            (row[name], _places_of(name, modules[name], key), modules[name].get_parameter(key).numel())
            for name in self.layers
            for key in own[name]
        )
        self._products = self._table(
            (row[product.module], part, operations / len(parts))
            for product, operations in products.items()
            for parts in [_factors_of(product, modules, groups)]
            for part in parts
        )
        made = {(member.layer, member.kind) for group in groups for member in group.producers}
        self._filters = [
            self._number[place] for place in sizes if place in made or _is_filter(modules[place[0]], place[1])
        ]
        self._before = {kind: self._count(kind, self._sizes) for kind in KINDS}

    def total(self, rate_of: str) -> int:
        """Filters, parameters or MACs of the model before any cut."""
        return round(self._before[rate_of])

    def left(self, rate_of: str, removed: NDArray[np.int64]) -> int:
        """Filters, parameters or MACs of the model after a cut.

        Args:
            rate_of: `filters` (output channels of convolutions, linear and recurrent layers), `parameters` or `macs`.
            removed: (groups,) - units removed from each group.
        """
        return round(self._count(rate_of, self._kept(removed)))

    def rate(self, rate_of: str, removed: NDArray[np.int64]) -> float:
        """Share of the filters, parameters or MACs of the whole model that a cut removes, in [0, 1)."""
        return 1 - self.left(rate_of, removed) / self.total(rate_of) if self.total(rate_of) else 0.0

    def of_layers(self, removed: NDArray[np.int64]) -> list[LayerCost]:
        """Costs of each of `layers` after a cut."""
        kept = self._kept(removed)
        sums = []
        for rows, places, amount in (self._parameters, self._products):
            sums.append(np.bincount(rows, amount * kept[places].prod(1), minlength=len(self.layers)))
        return [LayerCost(round(own), round(macs)) for own, macs in zip(*sums, strict=True)]

    def _kept(self, removed: NDArray[np.int64]) -> NDArray[np.int64]:
        """(places,) channels that are left."""
        kept = self._sizes.copy()
        np.subtract.at(kept, self._of_places, self._per_unit * np.asarray(removed)[self._of_groups])
        return kept

    def _count(self, rate_of: str, kept: NDArray[np.int64]) -> float:
        if rate_of == "filters":
            return float(kept[self._filters].sum())
        _, places, amount = self._parameters if rate_of == "parameters" else self._products
        return float((amount * kept[places].prod(1)).sum())

    def _table(self, rows: Iterable[tuple[int, list[Place], float]]) -> _Table:
        """Collects rows: a layer, the axes by which its numbers are cut, and how many numbers these are."""
        layers, places, amounts = [], [], []
        for layer, cut_places, amount in rows:
            layers.append(layer)
            places.append([self._number.get(place, 0) for place in cut_places])
            amounts.append(amount)
        width = max(map(len, places), default=0) or 1
        table = np.array([[*each, *[0] * (width - len(each))] for each in places], dtype=np.int64).reshape(-1, width)
        return _Table(np.array(layers, dtype=np.int64), table, np.array(amounts) / self._sizes[table].prod(1))


class _Table(NamedTuple):
    """Numbers that are cut along several axes.

    Attributes:
        layers: (rows,) - the layer to which each row belongs.
        places: (rows, axes) - indices of the axes along which it is cut; 0 for none.
        amounts: (rows,) - numbers for one channel of each of its axes.
    """

    layers: NDArray[np.int64]
    places: NDArray[np.int64]
    amounts: NDArray[np.float64]


def layer_columns(
    model: nn.Module, costs: CutCosts, removed: NDArray[np.int64], plan: Sequence[Cut | AttributeChange]
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
            if isinstance(cut, Cut) and cut.layer == layer:
                for axis in (axis for axis in axes(module)[cut.kind] if axis.name == parameter):
                    shape[axis.dim] = axis.repeats * len(cut.kept)
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


def _places_of(layer: str, module: nn.Module, tensor: str) -> list[Place]:
    """The axes along which a tensor is cut."""
    return [(layer, kind) for kind, found in axes(module).items() for axis in found if axis.name == tensor]


def _factors_of(
    product: Product, modules: Mapping[str, nn.Module], groups: Sequence[ChannelGroup]
) -> list[list[Place]]:
    """The axes by which operations are cut, for equal parts of these operations."""
    module = modules[product.module]
    if product.weight is not None:
        layer, tensor = product.weight
        return [_places_of(layer, modules[layer], tensor)]
    if isinstance(module, _ConvNd | nn.Linear):  # a computed weight
        return [
            [(product.module, kind) for kind in ("outputs", "inputs") if kind == "outputs" or _groups_of(module) == 1]
        ]
    units = [group for group in groups if _is_inside(group, product.module)]
    return [[(group.producers[0].layer, group.producers[0].kind)] for group in units] or [[]]


def _groups_of(module: nn.Module) -> int:
    return module.groups if isinstance(module, _ConvNd) else 1


def _is_inside(group: ChannelGroup, module: str) -> bool:
    """Whether a group's units are a module's own, such as heads, and not the width of what it reads and returns."""
    prefix = f"{module}." if module else ""
    inside = [member for member in group.members if member.layer == module or member.layer.startswith(prefix)]
    made = sum(member.indices.shape[1] for member in group.producers if member in inside)
    read = sum(member.indices.shape[1] for member in inside if member.kind == "inputs")
    return made > read or (len(inside) == len(group.members) and made > 0)


def _is_filter(module: nn.Module, kind: str) -> bool:
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return kind.startswith("hidden")
    return isinstance(module, _ConvNd | nn.Linear) and kind == "outputs"
