"""Tests whether masking a group is the same as cutting it, by comparing a model with zeros to one without the channels.

It is not the same if a zero does not stay zero on the way to the next layer (sigmoid, softplus, a mean over channels),
or if the trace misunderstood an operation. So every group is tested before it is used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree

from kedro_aat.compression.filters.cutting import Kind, apply_cut_plan, axes
from kedro_aat.compression.filters.groups import ChannelGroup, Place, plan_cuts, producing_layers
from kedro_aat.errors import ModelError
from kedro_aat.modes import evaluating, first_cause

# Relative to the largest output. In double precision, equal computations in another order differ by less than the
# first. The second is for models that run in float32 only.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}

_NUM_PROBES = 3

_NOT_EQUIVALENT = "a zero in its place is not the same as its absence: something behind it does not keep zeros"


def confirm_groups(
    model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup], sizes: dict[Place, int]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Finds the groups for which the cut model and the masked model return the same outputs.

    Args:
        model: Not changed. Copies with changed parameters are tested, so that no scale that happens to be zero, and no
            ReLU that is always zero, hides a difference.
        example_input: (B, ...), on the device of the model.
        groups: To be tested. One test cuts half of the units of each group, the next the other half.
        sizes: The model's `count_channels`.

    Returns:
        The groups that can be cut, and layer -> why the other groups cannot.
    """
    probes = [_make_probe(model, example_input, number) for number in range(_NUM_PROBES)]
    reasons: dict[str, str] = {}

    def passing(tested: list[ChannelGroup]) -> list[ChannelGroup]:
        """The groups if they pass together; otherwise those of each half that pass."""
        reason = _find_reason(probes, tested, sizes) if tested else ""
        if not reason:
            return tested
        if len(tested) == 1:
            reasons.update(dict.fromkeys(producing_layers(tested), reason))
            return []
        half = len(tested) // 2
        return passing(tested[:half]) + passing(tested[half:])

    confirmed = passing(list(groups))
    while reasons and (reason := _find_reason(probes, confirmed, sizes) if confirmed else ""):
        # Each half passes, but not all together: drop the smallest groups until they do.
        smallest = min(confirmed, key=lambda group: group.num_units)
        reasons.update(dict.fromkeys(producing_layers([smallest]), reason))
        confirmed.remove(smallest)
    return confirmed, reasons


def relative_difference(left: list[Tensor], right: list[Tensor]) -> float:
    """Largest difference over the largest number in `left`; infinite if shapes differ or a number is not finite."""
    if [part.shape for part in left] != [part.shape for part in right]:
        return torch.inf
    worst = 0.0
    for one, other in zip(left, right, strict=True):
        if one.numel():
            gap, largest = (one - other).abs().max(), one.abs().max()
            ratio = float(gap / largest.clamp_min(torch.finfo(largest.dtype).tiny))
            worst = max(worst, torch.inf if math.isnan(ratio) else ratio)
    return worst


@torch.no_grad()
def outputs_of(model: nn.Module, batch: Tensor) -> list[Tensor]:
    """All tensors that a model returns in evaluation mode, in at least single precision."""
    with evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some models draw random numbers in evaluation mode too
        leaves = _pytree.tree_leaves(model(batch))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [part if part.dtype == torch.float64 else part.float() for part in tensors]


def masked_tensors(module: nn.Module, kind: Kind) -> list[tuple[str, int]]:
    """Name and dimension of each parameter that is zero for a masked channel; buffers never are."""
    if kind in ("inputs", "heads") or isinstance(module, nn.PReLU):  # these return zero for zero
        return []
    return [(axis.name, axis.dim) for axis in axes(module).get(kind, []) if axis.name in module._parameters]


@torch.no_grad()
def _zero_units(model: nn.Module, group: ChannelGroup, units: NDArray[np.int64]) -> None:
    """Sets everything that produces some units to zero, in place, including their normalization."""
    for member in group.members:
        module = model.get_submodule(member.layer)
        for name, dim in masked_tensors(module, member.kind):
            tensor = module._parameters[name]
            assert tensor is not None  # `axes` lists existing tensors only
            indices = torch.from_numpy(member.indices[units].ravel()).to(tensor.device)
            tensor.data.index_fill_(dim, indices, 0.0)


@dataclass(frozen=True)
class _Probe:
    """A model of the same structure with other numbers, an input for it, and which units stay: even or odd ones."""

    model: nn.Module
    batch: Tensor
    parity: int


def _make_probe(model: nn.Module, example_input: Tensor, number: int) -> _Probe:
    """Copies a model in double precision, with noise on its parameters and running means.

    All probes but the first also get random signs.
    """
    twin = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(number)
    means = [buffer for name, buffer in twin.named_buffers() if name.endswith("running_mean")]
    with torch.no_grad():
        for tensor in [*twin.parameters(), *means]:
            if tensor.is_floating_point() and tensor.numel():
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                signs = torch.randint(2, tensor.shape, generator=generator).to(tensor) * 2 - 1 if number else 1
                tensor.mul_(signs).add_((0.02 + 0.1 * tensor.float().std(correction=0)).to(tensor) * noise)
    for dtype in (torch.float64, torch.float32):
        twin = twin.to(dtype)
        batch = example_input.to(dtype) if example_input.is_floating_point() else example_input
        try:
            outputs_of(twin, batch)
        except Exception as error:
            if dtype == torch.float64:
                continue  # some models insist on another type
            raise ModelError(
                f"{type(model).__name__} runs in neither double nor single precision, but its channels are tested in "
                f"one of them before any is cut. The model says: {error}"
            ) from error
        break
    return _Probe(twin, batch, number % 2)


def _find_reason(probes: Sequence[_Probe], groups: list[ChannelGroup], sizes: dict[Place, int]) -> str:
    """Why half of the units of some groups cannot be cut; empty if they can in every probe."""
    return next(filter(None, (_compare(probe, groups, sizes) for probe in probes)), "")


def _compare(probe: _Probe, groups: list[ChannelGroup], sizes: dict[Place, int]) -> str:
    """Why half of the units cannot be cut; empty if the masked and the cut model return the same."""
    masked, cut = copy.deepcopy(probe.model), copy.deepcopy(probe.model)
    kept = [np.arange(group.num_units) % 2 == probe.parity for group in groups]
    for group, keep in zip(groups, kept, strict=True):
        _zero_units(masked, group, np.flatnonzero(~keep))
    expected = outputs_of(masked, probe.batch)
    try:
        apply_cut_plan(cut, plan_cuts(groups, kept, sizes))
        outputs = outputs_of(cut, probe.batch)
    except Exception as error:  # a forward function that relies on the width may raise anything
        return f"the model does not run without it: {first_cause(error).splitlines()[0][:200]}"
    same_shapes = [part.shape for part in expected] == [part.shape for part in outputs]
    if same_shapes and not all(part.isfinite().all() for part in expected):
        return ""  # other signs take some models out of range; then the probe proves nothing
    dtype = next((part.dtype for part in expected), torch.float32)
    return "" if relative_difference(expected, outputs) <= _TOLERANCE[dtype] else _NOT_EQUIVALENT
