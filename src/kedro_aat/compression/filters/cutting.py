"""Cutting channels out of layers: a plan in plain data, and its application to a module, traced or not.

A layer has *kinds* of channels that can be cut: `outputs` and `inputs` of convolutions and linear layers,
`outputs` of embeddings, `channels` of normalisation layers, `projections` (rows of query, key and value) of
`nn.MultiheadAttention`, and `heads` of every attention module. Each is an axis of some of its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from kedro_aat.compression.filters.attention import CutMultiheadAttention, is_attention
from kedro_aat.errors import ModelError
from kedro_aat.validated import Settings

CUT_PLAN = "kedro_aat_plan"  # the attribute in which a cut model carries its plan

Kind = Literal["outputs", "inputs", "channels", "projections", "heads"]


class Cut(Settings):
    """One step of a plan: what is kept of one kind of channels of one layer.

    Attributes:
        layer: The layer's name in the model, as in `named_modules()`.
        kind: Which of its channels.
        size: How many there are before the cut.
        kept: Indices of those that stay, rising, in [0, size).
    """

    layer: str
    kind: Kind
    size: int
    kept: tuple[int, ...]


def axes(module: nn.Module) -> dict[Kind, list[tuple[str, int]]]:
    """Kind of channels -> names of the tensors of this very module that have them, and along which dimension.

    Empty for a module that cannot be cut. A grouped convolution is cut by whole groups, whose share of the
    input the shape of its weight does not show; so its `inputs` are an axis of no tensor.
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
        if module.in_proj_weight is not None:  # None where keys or values have another width than queries
            found = {"projections": [("in_proj_weight", 0), ("in_proj_bias", 0)], "heads": []}
    elif is_attention(module):
        found = {"heads": []}
    return {
        kind: [(name, dim) for name, dim in tensors if _tensor(module, name) is not None]
        for kind, tensors in found.items()
    }


def size(module: nn.Module, kind: Kind) -> int:
    """Number of channels of a kind, such as the input channels of a convolution."""
    attribute = {"outputs": "out", "inputs": "in"}.get(kind, "")
    if kind == "heads":
        return int(getattr(module, "num_heads"))  # noqa: B009 - on any module, as far as types know
    if kind == "projections":
        assert isinstance(module, nn.MultiheadAttention)
        return len(module.in_proj_weight)
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if isinstance(module, nn.Linear):
        return int(getattr(module, f"{attribute}_features"))
    if isinstance(module, _ConvNd):
        return int(getattr(module, f"{attribute}_channels"))
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.PReLU):
        return module.num_parameters
    assert isinstance(module, _NormBase)
    return module.num_features


def apply_cut_plan(model: nn.Module, plan: Iterable[Cut | Mapping[str, Any]]) -> nn.Module:
    """Cuts a model in place, as was planned for another one of the same architecture; it is not run for that.

    The steps are taken in order; what is kept of each tensor keeps its values. The model then carries the plan
    as a list of mappings in its attribute `kedro_aat_plan`, behind that of any earlier cut.

    Args:
        model: On any device.
        plan: As `FilterPruningController.cut_plan()` or the attribute of a cut model gives it.

    Returns:
        The same model.

    Raises:
        ModelError: Names the layer that is not there, or that has not the size it had when the plan was made.
        ConfigurationError: For a step that is not of the form of `Cut`.
    """
    steps = [step if isinstance(step, Cut) else Cut.model_validate(step) for step in plan]
    for step in steps:
        try:
            module = model.get_submodule(step.layer)
        except AttributeError as error:
            raise ModelError(f"The plan cuts '{step.layer}', but {type(model).__name__} has no such layer.") from error
        if step.kind not in axes(module) or size(module, step.kind) != step.size:
            raise ModelError(
                f"The plan cuts {step.size} {step.kind} of '{step.layer}', but that is {module}. "
                "Was the plan made for a model built with other arguments?"
            )
        if not step.kept or list(step.kept) != sorted({*step.kept}) or step.kept[0] < 0 or step.kept[-1] >= step.size:
            raise ModelError(
                f"The plan must keep rising indices in [0, {step.size}) of '{step.layer}', at least one of them, "
                f"but keeps {list(step.kept)[:20]}."
            )
        _cut(module, step.kind, step.kept)
    if steps:
        done = [*getattr(model, CUT_PLAN, []), *(step.model_dump(mode="json") for step in steps)]
        object.__setattr__(model, CUT_PLAN, done)
    return model


def _cut(module: nn.Module, kind: Kind, kept: Sequence[int]) -> None:
    before = size(module, kind)
    for name, dim in axes(module)[kind]:
        _keep(module, name, dim, kept)
    if isinstance(module, _ConvNd):
        if kind == "outputs" and module.groups > 1:
            module.groups = module.groups * len(kept) // before
        setattr(module, "out_channels" if kind == "outputs" else "in_channels", len(kept))
    elif isinstance(module, nn.Linear):
        setattr(module, "out_features" if kind == "outputs" else "in_features", len(kept))
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = len(kept)
    elif isinstance(module, _NormBase):
        module.num_features = len(kept)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_groups * len(kept) // before
        module.num_channels = len(kept)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(kept)
    elif kind == "heads":
        _keep_heads(module, before, len(kept))


def _keep_heads(module: nn.Module, before: int, after: int) -> None:
    if isinstance(module, nn.MultiheadAttention):
        CutMultiheadAttention.replace(module)
    setattr(module, "num_heads", after)  # noqa: B010 - likewise
    # Names under which attention modules in use keep num_heads * head_dim.
    for name in ("attn_dim", "inner_dim", "all_head_size"):
        width = getattr(module, name, None)
        if isinstance(width, int):
            setattr(module, name, width // before * after)


def _keep(module: nn.Module, name: str, dim: int, kept: Sequence[int]) -> None:
    tensor = _tensor(module, name)
    assert tensor is not None  # `axes` names none that is missing
    part = tensor.detach().index_select(dim, torch.tensor(kept, device=tensor.device))
    if name in module._buffers:
        module._buffers[name] = part
        return
    parameter = nn.Parameter(part, requires_grad=tensor.requires_grad)
    if tensor.grad is not None:
        parameter.grad = tensor.grad.index_select(dim, torch.tensor(kept, device=tensor.device))
    module._parameters[name] = parameter


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    parameter = module._parameters.get(name)
    return module._buffers.get(name) if parameter is None else parameter


def per_index(tensor: Tensor, dim: int) -> int:
    """Numbers of a tensor that go with one index of a dimension."""
    return math.prod(tensor.shape) // tensor.shape[dim]
