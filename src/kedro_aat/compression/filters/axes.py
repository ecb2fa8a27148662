"""Which dimensions of a module's tensors can be cut, and which of them belong together.

Every dimension of a module's parameters and buffers that can be cut belongs to a *kind* of channels. Kinds that torch's
own layers have: `outputs` and `inputs` of convolutions, linear, bilinear and embedding layers, `channels` of
normalization layers, `hidden...` and `inputs...` of recurrent layers, and the rows (`projections`, or `q`, `k`, `v`)
and columns (`inputs`, or `q_inputs`, `k_inputs`, `v_inputs`) of `nn.MultiheadAttention`. Any other tensor `gamma` has
the kinds `gamma:0`, `gamma:1` ..., one for each dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from kedro_aat.compression.filters.attention import packed_weight

Kind: TypeAlias = str

# Layers with one number for each channel, and their attribute that holds the number of channels.
_PER_CHANNEL: dict[type[nn.Module], str] = {
    _NormBase: "num_features",
    nn.GroupNorm: "num_channels",
    nn.LayerNorm: "normalized_shape",
    nn.RMSNorm: "normalized_shape",
    nn.PReLU: "num_parameters",
}
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


class Channels(NamedTuple):
    """One kind of channels of a module: its axes, and the attributes that hold the number of channels."""

    axes: Sequence[Axis]
    sizes: Sequence[str] = ()


def axes(module: nn.Module) -> dict[Kind, list[Axis]]:
    """Kind of channels -> the axes of the module's own tensors that have this kind.

    A kind without axes has an attribute only. A grouped convolution is cut by whole groups, and the shape of its weight
    does not show how many inputs belong to them, so its `inputs` are an axis of no tensor. A transposed one can be cut
    if it has as many outputs as inputs.
    """
    return {kind: list(channels.axes) for kind, channels in channels_of(module).items()}


def num_channels(module: nn.Module, kind: Kind) -> int:
    """Number of channels of a kind that `axes` lists, such as the input channels of a convolution."""
    channels = channels_of(module)[kind]
    for name, dim, repeats in channels.axes:
        return own_tensor(module, name).shape[dim] // repeats
    return number_in(module, channels.sizes[0])


def channels_of(module: nn.Module) -> dict[Kind, Channels]:
    """Kind of channels -> its axes, and the attributes that hold the number of channels; see `axes`."""
    known, covered = _known_channels(module)
    own = {name for name, _ in own_tensors(module)}
    found = {
        kind: Channels([axis for axis in channels.axes if axis.name in own], channels.sizes)
        for kind, channels in known.items()
    }
    covered |= {axis.name for channels in found.values() for axis in channels.axes}
    for name, tensor in own_tensors(module):
        if name not in covered:
            found |= {f"{name}:{dim}": Channels([Axis(name, dim)]) for dim in range(tensor.dim())}
    # Without a tensor and an attribute, as for recurrent weights that are computed, there is nothing to cut.
    return {kind: channels for kind, channels in found.items() if channels.axes or channels.sizes}


def _known_channels(module: nn.Module) -> tuple[dict[Kind, Channels], set[str]]:
    """The kinds of a layer of torch, and names of tensors that no other kind may cover."""
    outputs, covered = [Axis("weight", 0), Axis("bias", 0)], {"weight", "bias"}
    if isinstance(module, _ConvNd):
        return _convolution_channels(module), covered
    if isinstance(module, nn.Linear):
        inputs = Channels([Axis("weight", 1)], ["in_features"])
        return {"outputs": Channels(outputs, ["out_features"]), "inputs": inputs}, covered
    if isinstance(module, nn.Bilinear):
        inputs, others = (
            Channels([Axis("weight", 1)], ["in1_features"]),
            Channels([Axis("weight", 2)], ["in2_features"]),
        )
        return {"outputs": Channels(outputs, ["out_features"]), "inputs": inputs, "inputs2": others}, covered
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return {"outputs": Channels([Axis("weight", 1)], ["embedding_dim"])}, covered
    for layer, size in _PER_CHANNEL.items():
        if isinstance(module, layer):
            own = [Axis(name, 0) for name in ("weight", "bias", "running_mean", "running_var")]
            # LayerNorm over several dimensions, and PReLU with one number for all channels, have no channels.
            number = getattr(module, size)
            has_channels = len(number) == 1 if isinstance(number, tuple) else number > 1 or layer is not nn.PReLU
            return {"channels": Channels(own, [size])} if has_channels else {}, covered
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _recurrent_channels(module)
    if isinstance(module, nn.MultiheadAttention):
        return _attention_channels(module), set()
    return {}, set()


def _convolution_channels(module: _ConvNd) -> dict[Kind, Channels]:
    outputs, inputs = [Axis("weight", 0), Axis("bias", 0)], [Axis("weight", 1)]
    if module.groups > 1:
        # The rows of a transposed weight are inputs. Whole groups are the same rows if there are as many outputs.
        if isinstance(module, _ConvTransposeNd) and len(module.weight) != module.out_channels:
            return {}
        found = {"outputs": Channels(outputs, ["out_channels"]), "inputs": Channels([], ["in_channels"])}
        is_shared = module.weight.shape[1] > 1 and not isinstance(module, _ConvTransposeNd)
        # What one group reads; if the same channel of each group is cut, these are the columns of all groups.
        return found | ({"columns": Channels(inputs)} if is_shared else {})
    if isinstance(module, _ConvTransposeNd):
        outputs, inputs = [Axis("weight", 1), Axis("bias", 0)], [Axis("weight", 0)]
    return {"outputs": Channels(outputs, ["out_channels"]), "inputs": Channels(inputs, ["in_channels"])}


def _recurrent_channels(module: nn.RNNBase | nn.RNNCellBase) -> tuple[dict[Kind, Channels], set[str]]:
    """The hidden units of each layer and direction, and what each layer reads."""
    gates = next((number for name, number in _GATES.items() if isinstance(module, _recurrent_classes(name))), 1)
    layers: list[list[str]] = [[""]]
    if isinstance(module, nn.RNNBase):
        directions = ["", "_reverse"] if module.bidirectional else [""]
        layers = [[f"_l{layer}{direction}" for direction in directions] for layer in range(module.num_layers)]
    found, covered = {}, set()
    for layer, suffixes in enumerate(layers):
        columns = [Axis(f"weight_ih{suffix}", 1) for suffix in suffixes]
        found[f"inputs_l{layer}" if layer else "inputs"] = Channels(columns, [] if layer else ["input_size"])
        for suffix in suffixes:
            rows = [Axis(f"{name}{suffix}", 0, gates) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            # The size of all layers together is set at the end.
            found[f"hidden{suffix}"] = Channels([*rows, Axis(f"weight_hh{suffix}", 1)])
            covered |= {f"weight_hr{suffix}", *(axis.name for axis in rows)}
    if getattr(module, "proj_size", 0):
        found = {"inputs": found["inputs"]}
    return found, covered


def _recurrent_classes(name: str) -> tuple[type[nn.Module], ...]:
    return getattr(nn, name), getattr(nn, f"{name}Cell")


def _attention_channels(module: nn.MultiheadAttention) -> dict[Kind, Channels]:
    """The rows and columns of the projections; keys or values of another width than queries have their own weights."""
    if packed_weight(module) is not None:
        return {
            "projections": Channels([Axis("in_proj_weight", 0), Axis("in_proj_bias", 0)]),
            "inputs": Channels([Axis("in_proj_weight", 1)], ["embed_dim", "kdim", "vdim"]),
        }
    found = {}
    for part, size in zip("qkv", ("embed_dim", "kdim", "vdim"), strict=True):
        found[part] = Channels([Axis(f"{part}_proj_weight", 0)])
        found[f"{part}_inputs"] = Channels([Axis(f"{part}_proj_weight", 1)], [size])
    return found


def number_in(module: nn.Module, attribute: str) -> int:
    """The number that an attribute holds, alone or as the only one of a tuple or list."""
    value = getattr(module, attribute)
    return int(value[0] if isinstance(value, list | tuple) else value)


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields name and tensor for the parameters and buffers of a module without its children."""
    for own in (module._parameters, module._buffers):
        yield from ((name, tensor) for name, tensor in own.items() if tensor is not None)


def own_tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of the module itself."""
    return dict(own_tensors(module))[name]
