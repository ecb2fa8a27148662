"""Cuts channels out of layers, as a cut plan of plain data says. The module need not be traced for that.

`axes` says which kinds of channels a layer has.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from kedro_aat.compression.filters.attention import CutMultiheadAttention, without_nested_tensors
from kedro_aat.compression.filters.axes import (
    Axis,
    Kind,
    axes,
    channels_of,
    num_channels,
    number_in,
    own_tensor,
    own_tensors,
)
from kedro_aat.errors import ModelError
from kedro_aat.validated import Settings

__all__ = ["CUT_PLAN", "AttributeChange", "Axis", "Cut", "Kind", "apply_cut_plan", "axes", "num_channels", "read_plan"]

CUT_PLAN = "kedro_aat_plan"  # attribute of a cut model that holds its cut plan


class Cut(Settings):
    """One entry of a cut plan: which channels of one kind a layer keeps.

    Attributes:
        layer: Name of the layer in the model, as in `named_modules()`.
        kind: Kind of channels.
        size: Number of channels before the cut.
        kept: Indices of the channels that stay, rising, in [0, size).
    """

    layer: str
    kind: Kind
    size: int
    kept: tuple[int, ...]


class AttributeChange(Settings):
    """One entry of a cut plan: a number that a module holds, such as its number of heads, and on which a cut depends.

    Attributes:
        layer: Name of the module in the model, as in `named_modules()`; empty for the model itself.
        attribute: Name of the attribute.
        before: Its value before the cut; several numbers for a list or tuple.
        after: Its value after the cut.
    """

    layer: str
    attribute: str
    before: int | tuple[int, ...]
    after: int | tuple[int, ...]


def read_plan(plan: Iterable[Cut | AttributeChange | Mapping[str, Any]]) -> list[Cut | AttributeChange]:
    """Reads the entries of a cut plan, each of which is known by its fields.

    Raises:
        ConfigurationError: If an entry is neither a valid `Cut` nor a valid `AttributeChange`.
    """
    return [
        entry
        if isinstance(entry, Cut | AttributeChange)
        else (AttributeChange if "attribute" in entry else Cut).model_validate(entry)
        for entry in plan
    ]


def apply_cut_plan(model: nn.Module, plan: Iterable[Cut | AttributeChange | Mapping[str, Any]]) -> nn.Module:
    """Cuts a model in place, by a plan made for a model of the same architecture, without running it.

    The entries are applied in order, and what is kept of each tensor keeps its values. A tensor with several names is
    cut once, though the plan cuts it under each of them, and keeps its names. Afterwards the model's attribute
    `kedro_aat_plan` lists all of its entries as mappings, those of earlier plans first.

    Args:
        model: On any device.
        plan: The result of `FilterPruningController.cut_plan()`, or that attribute of a cut model.

    Returns:
        The same model.

    Raises:
        ModelError: If a layer or attribute is missing or does not have the size for which the plan was made.
        ConfigurationError: If an entry of the plan is neither a valid `Cut` nor a valid `AttributeChange`.
    """
    entries = read_plan(plan)
    ties = _find_ties(model)
    recurrent: dict[str, nn.RNNBase | nn.RNNCellBase] = {}
    for entry in entries:
        try:
            module = model.get_submodule(entry.layer)
        except AttributeError as error:
            raise ModelError(
                f"The cut plan cuts '{entry.layer}', but {type(model).__name__} has no such layer."
            ) from error
        if isinstance(module, nn.MultiheadAttention):
            CutMultiheadAttention.replace(module)
        if isinstance(entry, AttributeChange):
            _change(module, entry)
            continue
        _check(module, entry, ties)
        _cut(module, entry, ties)
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            recurrent[entry.layer] = module
    for layer, module in recurrent.items():
        _settle_recurrent(layer, module)
    if entries:
        without_nested_tensors(model)
        everything = [*getattr(model, CUT_PLAN, []), *(entry.model_dump(mode="json") for entry in entries)]
        object.__setattr__(model, CUT_PLAN, everything)
    return model


@dataclass
class _Tie:
    """A tensor with several names.

    Attributes:
        places: The modules that have it, and its name in each.
        cuts: Dimension -> which entries each cut keeps, in order.
        seen: Module, name and dimension -> how many of these cuts the plan has made under this name.
    """

    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    cuts: dict[int, list[list[int]]] = field(default_factory=lambda: defaultdict(list))
    seen: dict[tuple[nn.Module, str, int], int] = field(default_factory=lambda: defaultdict(int))

    def made(self, module: nn.Module, axis: Axis) -> list[int] | None:
        """The next cut under this name, if it was already made under another one."""
        cuts = self.cuts[axis.dim]
        number = self.seen[module, axis.name, axis.dim]
        return cuts[number] if number < len(cuts) else None


_Ties: TypeAlias = dict[tuple[nn.Module, str], _Tie]


def _find_ties(model: nn.Module) -> _Ties:
    """Module and name -> the tensor, for all of a model's parameters and buffers that have several names."""
    ties: defaultdict[int, _Tie] = defaultdict(_Tie)
    for module in model.modules():
        for name, tensor in own_tensors(module):
            ties[id(tensor)].places.append((module, name))
    return {place: tie for tie in ties.values() if len(tie.places) > 1 for place in tie.places}


def _check(module: nn.Module, cut: Cut, ties: _Ties) -> None:
    if cut.kind == "heads":
        fits = getattr(module, "num_heads", None) == cut.size  # in plans of earlier versions, also of custom attention
    else:
        channels = channels_of(module).get(cut.kind)
        fits = channels is not None and all(number_in(module, name) == cut.size for name in channels.sizes)
        for axis in channels.axes if channels else ():
            tie = ties.get((module, axis.name))
            made = tie.made(module, axis) if tie else None
            length = own_tensor(module, axis.name).shape[axis.dim]
            expected = cut.size * axis.repeats if made is None else len(made)
            fits = fits and length == expected and made in (None, _entries(cut, axis))
    if not fits:
        raise ModelError(
            f"The cut plan cuts {cut.size} {cut.kind} of '{cut.layer}', but that is {module}. Build the model with "
            "the arguments of the one for which the plan was made."
        )
    if not cut.kept or list(cut.kept) != sorted({*cut.kept}) or cut.kept[0] < 0 or cut.kept[-1] >= cut.size:
        raise ModelError(
            f"The cut plan must keep rising indices in [0, {cut.size}) of '{cut.layer}', at least one of them, but "
            f"keeps {list(cut.kept)[:20]}."
        )


def _cut(module: nn.Module, cut: Cut, ties: _Ties) -> None:
    if cut.kind == "heads":
        _cut_heads(module, cut)
        return
    channels = channels_of(module)[cut.kind]
    if isinstance(module, _ConvNd) and cut.kind == "outputs":
        module.groups = _groups_left(cut, module.groups)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = _groups_left(cut, module.num_groups)
    for axis in channels.axes:
        tie = ties.get((module, axis.name), _Tie([(module, axis.name)]))
        if tie.made(module, axis) is None:
            _keep(tie.places, axis.dim, _entries(cut, axis))
            tie.cuts[axis.dim].append(_entries(cut, axis))
        tie.seen[module, axis.name, axis.dim] += 1
    for name in channels.sizes:
        value = getattr(module, name)
        setattr(module, name, len(cut.kept) if isinstance(value, int) else type(value)([len(cut.kept)]))


def _entries(cut: Cut, axis: Axis) -> list[int]:
    """The entries of an axis that a cut keeps."""
    return [repeat * cut.size + channel for repeat in range(axis.repeats) for channel in cut.kept]


def _groups_left(cut: Cut, groups: int) -> int:
    """Number of groups of a convolution or normalization that keep channels; each of them keeps as many."""
    numbers = Counter(channel // (cut.size // groups) for channel in cut.kept)
    if len({*numbers.values()}) > 1:
        raise ModelError(
            f"The cut plan keeps {min(numbers.values())} {cut.kind} of one group of '{cut.layer}' and "
            f"{max(numbers.values())} of another, but it must keep equally many in each group that it keeps."
        )
    return len(numbers)


def _keep(places: Sequence[tuple[nn.Module, str]], dim: int, entries: Sequence[int]) -> None:
    """Keeps some entries of a tensor, which may have several names."""
    tensor = own_tensor(*places[0])
    indices = torch.tensor(entries, device=tensor.device)
    remainder = tensor.detach().index_select(dim, indices)
    if isinstance(tensor, nn.Parameter):
        remainder = nn.Parameter(remainder, requires_grad=tensor.requires_grad)
        if tensor.grad is not None:
            remainder.grad = tensor.grad.index_select(dim, indices)
    for module, name in places:
        own: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
        own[name] = remainder


def _cut_heads(module: nn.Module, cut: Cut) -> None:
    """Changes the attributes of an attention module; earlier versions of plans say only how many heads it keeps."""
    before, after = cut.size, len(cut.kept)
    # After the first, names under which widely used attention modules store num_heads * head_dim.
    for name in ("num_heads", "attn_dim", "inner_dim", "all_head_size"):
        width = getattr(module, name, None)
        if isinstance(width, int):
            setattr(module, name, width // before * after)


def _change(module: nn.Module, change: AttributeChange) -> None:
    value = getattr(module, change.attribute, None)
    known = tuple(value) if isinstance(value, list | tuple) else value
    if known == change.after:  # a cut may have changed it already
        return
    if known != change.before:
        raise ModelError(
            f"The cut plan changes {change.attribute} of '{change.layer}' from {change.before} to {change.after}, but "
            f"it is {value}. Build the model with the arguments of the one for which the plan was made."
        )
    after = list(change.after) if isinstance(value, list) and isinstance(change.after, tuple) else change.after
    setattr(module, change.attribute, after)


def _settle_recurrent(layer: str, module: nn.RNNBase | nn.RNNCellBase) -> None:
    """Sets the number of hidden units after a cut, which all layers and directions share."""
    kinds = axes(module)
    sizes = {kind: num_channels(module, kind) for kind in kinds if kind.startswith("hidden")}
    directions = 2 if getattr(module, "bidirectional", False) else 1
    sizes |= {kind: num_channels(module, kind) // directions for kind in kinds if kind.startswith("inputs_l")}
    if len({*sizes.values()}) > 1:
        raise ModelError(
            f"The cut plan leaves layers of '{layer}' with different numbers of hidden units: {sizes}. All layers and "
            "directions of a recurrent module have the same, and each layer reads those of the layer before."
        )
    for size in sizes.values():
        module.hidden_size = size
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()  # its own list of the tensors; on a GPU they become parts of one block of memory
