"""Cuts channels out of layers, as a cut plan of plain data says. The module need not be traced for that.

Every dimension of a module's parameters and buffers that can be cut belongs to a *kind* of channels. Kinds that torch's
own layers have: `outputs` and `inputs` of convolutions, linear, bilinear and embedding layers, `channels` of
normalization layers, `hidden...` and `inputs...` of recurrent layers, and the rows (`projections`, or `q`, `k`, `v`)
and columns (`inputs`, or `q_inputs`, `k_inputs`, `v_inputs`) of `nn.MultiheadAttention`. Any other tensor `gamma` has
the kinds `gamma:0`, `gamma:1` ..., one for each dimension.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from kedro_aat.compression.filters.attention import CutMultiheadAttention, is_attention
from kedro_aat.errors import ModelError
from kedro_aat.validated import Settings

CUT_PLAN = "kedro_aat_plan"  # attribute of a cut model that holds its cut plan

Kind: TypeAlias = str

_GATES = {"LSTM": 4, "GRU": 3}  # of recurrent layers and their cells; any other has one


class Axis(NamedTuple):
    """One dimension of a module's own tensor. It has `repeats` entries for each channel.

    Attributes:
        name: Name of the tensor.
        dim: The dimension.
        repeats: The dimension is `repeats` times as long as there are channels, and its entry i belongs to channel i
            modulo their number, as the gates of a recurrent layer do.
    """

    name: str
    dim: int
    repeats: int = 1


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


class _Channels(NamedTuple):
    """One kind of channels of a module: its axes, and the attributes that hold the number of channels."""

    axes: Sequence[Axis]
    sizes: Sequence[str] = ()


def axes(module: nn.Module) -> dict[Kind, list[Axis]]:
    """Kind of channels -> the axes of the module's own tensors that have this kind.

    A kind without axes has an attribute only. A grouped convolution is cut by whole groups, and the shape of its weight
    does not show how many inputs belong to them, so its `inputs` are an axis of no tensor.
    """
    return {kind: list(channels.axes) for kind, channels in _channels_of(module).items()}


def num_channels(module: nn.Module, kind: Kind) -> int:
    """Number of channels of a kind that `axes` lists, such as the input channels of a convolution."""
    channels = _channels_of(module)[kind]
    for name, dim, repeats in channels.axes:
        return _own_tensor(module, name).shape[dim] // repeats
    return _number_in(module, channels.sizes[0])


def _channels_of(module: nn.Module) -> dict[Kind, _Channels]:
    known, covered = _known_channels(module)
    own = {name for name, _ in _own_tensors(module)}
    found = {
        kind: _Channels([axis for axis in channels.axes if axis.name in own], channels.sizes)
        for kind, channels in known.items()
    }
    covered |= {axis.name for channels in found.values() for axis in channels.axes}
    for name, tensor in _own_tensors(module):
        if name not in covered:
            found |= {f"{name}:{dim}": _Channels([Axis(name, dim)]) for dim in range(tensor.dim())}
    # Without a tensor and an attribute, as for recurrent weights that are computed, there is nothing to cut.
    return {kind: channels for kind, channels in found.items() if channels.axes or channels.sizes}


def _known_channels(module: nn.Module) -> tuple[dict[Kind, _Channels], set[str]]:
    """The kinds of a layer of torch, and names of tensors that no other kind may cover."""
    outputs = [Axis("weight", 0), Axis("bias", 0)]
    covered = {"weight", "bias"}
    if isinstance(module, _ConvNd):
        inputs = [Axis("weight", 1)] if module.groups == 1 else []
        if isinstance(module, _ConvTransposeNd):
            # In groups, the filters of an output lie behind the inputs of its group, which are cut with it.
            outputs, inputs = [Axis("weight", 1), Axis("bias", 0)][module.groups > 1 :], [Axis("weight", 0)]
        return {"outputs": _Channels(outputs, ["out_channels"]), "inputs": _Channels(inputs, ["in_channels"])}, covered
    if isinstance(module, nn.Linear):
        inputs = [Axis("weight", 1)]
        return {"outputs": _Channels(outputs, ["out_features"]), "inputs": _Channels(inputs, ["in_features"])}, covered
    if isinstance(module, nn.Bilinear):
        return {
            "outputs": _Channels(outputs, ["out_features"]),
            "inputs": _Channels([Axis("weight", 1)], ["in1_features"]),
            "inputs2": _Channels([Axis("weight", 2)], ["in2_features"]),
        }, covered
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return {"outputs": _Channels([Axis("weight", 1)], ["embedding_dim"])}, covered
    if isinstance(module, _NormBase):
        statistics = [Axis("running_mean", 0), Axis("running_var", 0)]
        return {"channels": _Channels([*outputs, *statistics], ["num_features"])}, covered
    if isinstance(module, nn.GroupNorm):
        return {"channels": _Channels(outputs, ["num_channels"])}, covered
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        is_over_channels = len(module.normalized_shape) == 1
        return {"channels": _Channels(outputs, ["normalized_shape"])} if is_over_channels else {}, covered
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return {"channels": _Channels(outputs, ["num_parameters"])}, covered
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _recurrent_channels(module)
    if isinstance(module, nn.MultiheadAttention):
        return _attention_channels(module), set()
    # Only `trace` asks for heads.
    return {"heads": _Channels([], ["num_heads"])} if is_attention(module) else {}, set()


def _recurrent_channels(module: nn.RNNBase | nn.RNNCellBase) -> tuple[dict[Kind, _Channels], set[str]]:
    """The hidden units of each layer and direction, and what each layer reads."""
    gates = next((number for name, number in _GATES.items() if isinstance(module, _recurrent_classes(name))), 1)
    layers: list[list[str]] = [[""]]
    if isinstance(module, nn.RNNBase):
        directions = ["", "_reverse"] if module.bidirectional else [""]
        layers = [[f"_l{layer}{direction}" for direction in directions] for layer in range(module.num_layers)]
    found, covered = {}, set()
    for layer, suffixes in enumerate(layers):
        columns = [Axis(f"weight_ih{suffix}", 1) for suffix in suffixes]
        found[f"inputs_l{layer}" if layer else "inputs"] = _Channels(columns, [] if layer else ["input_size"])
        for suffix in suffixes:
            rows = [Axis(f"{name}{suffix}", 0, gates) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            # The size of all layers together is set at the end.
            found[f"hidden{suffix}"] = _Channels([*rows, Axis(f"weight_hh{suffix}", 1)])
            covered |= {f"weight_hr{suffix}", *(axis.name for axis in rows)}
    if getattr(module, "proj_size", 0):
        found = {"inputs": found["inputs"]}
    return found, covered


def _recurrent_classes(name: str) -> tuple[type[nn.Module], ...]:
    return getattr(nn, name), getattr(nn, f"{name}Cell")


def _attention_channels(module: nn.MultiheadAttention) -> dict[Kind, _Channels]:
    """The rows and columns of the projections; keys or values of another width than queries have their own weights."""
    if module.in_proj_weight is not None:
        found = {
            "projections": _Channels([Axis("in_proj_weight", 0), Axis("in_proj_bias", 0)]),
            "inputs": _Channels([Axis("in_proj_weight", 1)], ["embed_dim", "kdim", "vdim"]),
        }
        return found | ({"heads": _Channels([], ["num_heads"])} if is_attention(module) else {})
    found = {}
    for part, size in zip("qkv", ("embed_dim", "kdim", "vdim"), strict=True):
        found[part] = _Channels([Axis(f"{part}_proj_weight", 0)])
        found[f"{part}_inputs"] = _Channels([Axis(f"{part}_proj_weight", 1)], [size])
    return found


# --- plans -------------------------------------------------------------------------------------------------------


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
    for encoder in model.modules() if entries else ():
        if isinstance(encoder, nn.TransformerEncoder):
            if any(isinstance(module, CutMultiheadAttention) for module in encoder.modules()):
                encoder.use_nested_tensor = False  # only the fused kernel of an uncut layer takes nested tensors
    if entries:
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
        for name, tensor in _own_tensors(module):
            ties[id(tensor)].places.append((module, name))
    return {place: tie for tie in ties.values() if len(tie.places) > 1 for place in tie.places}


def _check(module: nn.Module, cut: Cut, ties: _Ties) -> None:
    if cut.kind == "heads":
        fits = getattr(module, "num_heads", None) == cut.size  # in plans of earlier versions, also of custom attention
    else:
        channels = _channels_of(module).get(cut.kind)
        fits = channels is not None and all(_number_in(module, name) == cut.size for name in channels.sizes)
        for axis in channels.axes if channels else ():
            tie = ties.get((module, axis.name))
            made = tie.made(module, axis) if tie else None
            length = _own_tensor(module, axis.name).shape[axis.dim]
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
    channels = _channels_of(module)[cut.kind]
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
    tensor = _own_tensor(*places[0])
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
    module.num_heads = after
    # Names under which widely used attention modules store num_heads * head_dim.
    for name in ("attn_dim", "inner_dim", "all_head_size"):
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
    after = change.after
    setattr(module, change.attribute, after if isinstance(after, int) else type(value)(after))  # type: ignore[misc]


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


def _number_in(module: nn.Module, attribute: str) -> int:
    value = getattr(module, attribute)
    return int(value[0] if isinstance(value, list | tuple) else value)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for own in (module._parameters, module._buffers):
        yield from ((name, tensor) for name, tensor in own.items() if tensor is not None)


def _own_tensor(module: nn.Module, name: str) -> Tensor:
    return dict(_own_tensors(module))[name]
