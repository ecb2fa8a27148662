"""Cuts channels out of layers, as a cut plan of plain data says. The module need not be traced for that.

A layer has *kinds* of channels that can be cut: `outputs` and `inputs` of convolutions and linear layers, `outputs` of
embeddings, `channels` of normalization layers, `projections` (the rows of queries, keys and values) of
`nn.MultiheadAttention`, and `heads` of every attention module. Each kind is an axis of some of the layer's tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from kedro_aat.compression.filters.attention import CutMultiheadAttention, is_attention
from kedro_aat.errors import ModelError
from kedro_aat.validated import Settings

CUT_PLAN = "kedro_aat_plan"  # attribute of a cut model that holds its cut plan

Kind = Literal["outputs", "inputs", "channels", "projections", "heads"]


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


def axes(module: nn.Module) -> dict[Kind, list[tuple[str, int]]]:
    """Kind of channels -> name and dimension of each of the module's own tensors that has this kind.

    Empty for a module that cannot be cut. A grouped convolution is cut by whole groups, and the shape of its weight
    does not show how many inputs belong to them, so its `inputs` are an axis of no tensor.
    """
    found: dict[Kind, list[tuple[str, int]]] = {}
    if isinstance(module, _ConvTransposeNd):
        if module.groups == 1:
            found = {"outputs": [("weight", 1), ("bias", 0)], "inputs": [("weight", 0)]}
    elif isinstance(module, _ConvNd):
        found = {"outputs": [("weight", 0), ("bias", 0)], "inputs": [("weight", 1)] if module.groups == 1 else []}
    elif isinstance(module, nn.Linear):
        found = {"outputs": [("weight", 0), ("bias", 0)], "inputs": [("weight", 1)]}
    elif isinstance(module, nn.Embedding):
        found = {"outputs": [("weight", 1)]}
    elif isinstance(module, _NormBase):
        found = {"channels": [(name, 0) for name in ("weight", "bias", "running_mean", "running_var")]}
    elif isinstance(module, nn.GroupNorm):
        found = {"channels": [("weight", 0), ("bias", 0)]}
    elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
        found = {"channels": [("weight", 0)]}
    elif isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:  # None if keys or values have another width than queries
            found = {"projections": [("in_proj_weight", 0), ("in_proj_bias", 0)], "heads": []}
    elif is_attention(module):
        found = {"heads": []}
    return {
        kind: [(name, dim) for name, dim in tensors if _own_tensor(module, name) is not None]
        for kind, tensors in found.items()
    }


def num_channels(module: nn.Module, kind: Kind) -> int:
    """Number of channels of a kind that `axes` lists, such as the input channels of a convolution."""
    if isinstance(module, nn.MultiheadAttention) and kind == "projections":
        return len(module.in_proj_weight)
    return int(getattr(module, _size_attribute(module, kind)))


def _size_attribute(module: nn.Module, kind: Kind) -> str:
    """Name of the attribute that holds the number of channels of a kind, for any kind but `projections`."""
    if kind == "heads":
        return "num_heads"
    if isinstance(module, nn.Embedding):
        return "embedding_dim"
    if isinstance(module, nn.Linear):
        return "out_features" if kind == "outputs" else "in_features"
    if isinstance(module, _ConvNd):
        return "out_channels" if kind == "outputs" else "in_channels"
    if isinstance(module, nn.GroupNorm):
        return "num_channels"
    if isinstance(module, nn.PReLU):
        return "num_parameters"
    assert isinstance(module, _NormBase)
    return "num_features"


def apply_cut_plan(model: nn.Module, plan: Iterable[Cut | Mapping[str, Any]]) -> nn.Module:
    """Cuts a model in place, by a plan made for a model of the same architecture, without running it.

    The cuts are made in order, and what is kept of each tensor keeps its values. Afterwards the model's attribute
    `kedro_aat_plan` lists all of its cuts as mappings, those of earlier plans first.

    Args:
        model: On any device.
        plan: The result of `FilterPruningController.cut_plan()`, or that attribute of a cut model.

    Returns:
        The same model.

    Raises:
        ModelError: If a layer is missing or does not have the size for which the plan was made.
        ConfigurationError: If an entry of the plan is no valid `Cut`.
    """
    cuts = [cut if isinstance(cut, Cut) else Cut.model_validate(cut) for cut in plan]
    for cut in cuts:
        try:
            module = model.get_submodule(cut.layer)
        except AttributeError as error:
            raise ModelError(
                f"The cut plan cuts '{cut.layer}', but {type(model).__name__} has no such layer."
            ) from error
        if cut.kind not in axes(module) or num_channels(module, cut.kind) != cut.size:
            raise ModelError(
                f"The cut plan cuts {cut.size} {cut.kind} of '{cut.layer}', but that is {module}. Build the model with "
                "the arguments of the one for which the plan was made."
            )
        if not cut.kept or list(cut.kept) != sorted({*cut.kept}) or cut.kept[0] < 0 or cut.kept[-1] >= cut.size:
            raise ModelError(
                f"The cut plan must keep rising indices in [0, {cut.size}) of '{cut.layer}', at least one of them, but "
                f"keeps {list(cut.kept)[:20]}."
            )
        _cut(module, cut.kind, cut.kept)
    if cuts:
        all_cuts = [*getattr(model, CUT_PLAN, []), *(cut.model_dump(mode="json") for cut in cuts)]
        object.__setattr__(model, CUT_PLAN, all_cuts)
    return model


def _cut(module: nn.Module, kind: Kind, kept: Sequence[int]) -> None:
    num_before = num_channels(module, kind)
    for name, dim in axes(module)[kind]:
        _keep(module, name, dim, kept)
    if isinstance(module, _ConvNd) and kind == "outputs" and module.groups > 1:
        module.groups = module.groups * len(kept) // num_before
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_groups * len(kept) // num_before
    elif kind == "heads":
        _adapt_attention(module, num_before, len(kept))
    if kind != "projections":  # their number is not an attribute
        setattr(module, _size_attribute(module, kind), len(kept))


def _adapt_attention(module: nn.Module, heads_before: int, heads_after: int) -> None:
    if isinstance(module, nn.MultiheadAttention):
        CutMultiheadAttention.replace(module)
    # Names under which widely used attention modules store num_heads * head_dim.
    for name in ("attn_dim", "inner_dim", "all_head_size"):
        width = getattr(module, name, None)
        if isinstance(width, int):
            setattr(module, name, width // heads_before * heads_after)


def _keep(module: nn.Module, name: str, dim: int, kept: Sequence[int]) -> None:
    tensor = _own_tensor(module, name)
    assert tensor is not None  # `axes` lists existing tensors only
    indices = torch.tensor(kept, device=tensor.device)
    remainder = tensor.detach().index_select(dim, indices)
    if name in module._buffers:
        module._buffers[name] = remainder
        return
    parameter = nn.Parameter(remainder, requires_grad=tensor.requires_grad)
    if tensor.grad is not None:
        parameter.grad = tensor.grad.index_select(dim, indices)
    module._parameters[name] = parameter


def _own_tensor(module: nn.Module, name: str) -> Tensor | None:
    parameter = module._parameters.get(name)
    return module._buffers.get(name) if parameter is None else parameter
