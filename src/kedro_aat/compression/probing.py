"""Whether masking is cutting: a model with zeros in place of channels is compared with one without the channels.

It is not wherever a zero does not stay zero on the way to the next layer (sigmoid, softplus, a mean over
channels), or where the trace took an operation for something else. So every group is tried before it is used.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree

from kedro_aat.compression.cutting import apply_plan, axes
from kedro_aat.compression.groups import ChannelGroup, Place, layers_with, plan_of
from kedro_aat.export.program import evaluating, first_cause

# Relative to the largest output. In double precision all that is left of an equal computation in another order is
# below the first; with the second a model runs that only knows float32.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}

_NOT_THE_SAME = "a zero in its place is not the same as its absence: something behind it does not keep zeros"


def confirmed(
    model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup], sizes: dict[Place, int]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups that can be cut without another output than masking has, and layer -> why the others cannot.

    Args:
        model: Left as it is; tried out on a copy with changed parameters, so that a scale that happens to be zero
            hides nothing.
        example_input: (B, ...), on the device of the model.
        groups: To be tried; half of the units of each are cut.
        sizes: As `all_places` gives them.
    """
    base, batch = _disturbed(model, example_input)
    reasons: dict[str, str] = {}

    def good(tried: list[ChannelGroup]) -> list[ChannelGroup]:
        """Those that pass together; halves of what does not are tried apart."""
        reason = _difference(base, batch, tried, sizes) if tried else ""
        if not reason:
            return tried
        if len(tried) == 1:
            reasons.update(dict.fromkeys(layers_with(tried), reason))
            return []
        half = len(tried) // 2
        return good(tried[:half]) + good(tried[half:])

    left = good(list(groups))
    while reasons and (reason := _difference(base, batch, left, sizes) if left else ""):
        # Each passes alone, but not together: the smaller of them go first.
        out = min(left, key=lambda group: group.num_units)
        reasons.update(dict.fromkeys(layers_with([out]), reason))
        left.remove(out)
    return left, reasons


def relative_difference(left: list[Tensor], right: list[Tensor]) -> float:
    """Largest difference over the largest number of `left`; infinite for other shapes or what is not finite."""
    if [part.shape for part in left] != [part.shape for part in right]:
        return torch.inf
    worst = 0.0
    for one, other in zip(left, right, strict=True):
        if one.numel():
            gap, largest = (one - other).abs().max(), one.abs().max()
            share = float(gap / largest.clamp_min(torch.finfo(largest.dtype).tiny))
            worst = max(worst, torch.inf if math.isnan(share) else share)
    return worst


@torch.no_grad()
def outputs_of(model: nn.Module, batch: Tensor) -> list[Tensor]:
    """All tensors that a model returns in evaluation mode, in at least single precision."""
    with evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some models draw also when they are evaluated
        leaves = _pytree.tree_leaves(model(batch))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [part if part.dtype == torch.float64 else part.float() for part in tensors]


@torch.no_grad()
def zero_units(model: nn.Module, group: ChannelGroup, units: NDArray[np.int64]) -> None:
    """Sets to zero what makes some units, in place: weights and biases, and those of the normalisation."""
    for member in group.members:
        module = model.get_submodule(member.layer)
        for name, dim in masked_tensors(module, member.kind):
            tensor = module._parameters[name]
            assert tensor is not None  # `axes` names none that is missing
            indices = torch.from_numpy(member.indices[units].ravel()).to(tensor.device)
            tensor.data.index_fill_(dim, indices, 0.0)


def masked_tensors(module: nn.Module, kind: str) -> list[tuple[str, int]]:
    """Parameters that are zero for a masked channel, and along which dimension; buffers never are."""
    if kind in ("inputs", "heads") or isinstance(module, nn.PReLU):  # zero in, zero out
        return []
    return [
        (name, dim)
        for key, found in axes(module).items()
        if key == kind
        for name, dim in found
        if name in module._parameters
    ]


def _disturbed(model: nn.Module, example_input: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of a model and its input in double precision, with noise on its parameters and running means."""
    base = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    statistics = [
        tensor
        for module in base.modules()
        for name, tensor in module.named_buffers(recurse=False)
        if name == "running_mean"
    ]
    with torch.no_grad():
        for tensor in [*base.parameters(), *statistics]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                spread = float(tensor.float().std(correction=0)) if tensor.numel() else 0.0
                tensor.add_((0.02 + 0.1 * spread) * noise.to(tensor))
    is_float = example_input.is_floating_point()
    for dtype in (torch.float64, torch.float32):
        base = base.to(dtype)
        batch = example_input.to(dtype) if is_float else example_input
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs_of(base, batch)
        except Exception:
            if dtype == torch.float64:
                continue  # something in it insists on another type
            raise
        break
    return base, batch


def _difference(base: nn.Module, batch: Tensor, groups: list[ChannelGroup], sizes: dict[Place, int]) -> str:
    """Why half of the units of some groups cannot be cut; empty if they can."""
    masked, cut = copy.deepcopy(base), copy.deepcopy(base)
    kept = [np.arange(group.num_units) % 2 == 0 for group in groups]
    for group, keep in zip(groups, kept, strict=True):
        zero_units(masked, group, np.flatnonzero(~keep))
    expected = outputs_of(masked, batch)
    try:
        apply_plan(cut, plan_of(groups, kept, sizes))
        got = outputs_of(cut, batch)
    except Exception as error:  # a forward function that counts on the width raises anything
        return f"the model does not run without it: {first_cause(error).splitlines()[0][:200]}"
    dtype = next((part.dtype for part in expected), torch.float32)
    return "" if relative_difference(expected, got) <= _TOLERANCE[dtype] else _NOT_THE_SAME
