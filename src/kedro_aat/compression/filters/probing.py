"""Whether masking is cutting: a model with zeros in place of channels is compared with one without the channels.

It is not wherever a zero does not stay zero on the way to the next layer (sigmoid, softplus, a mean over
channels), or where the trace took an operation for something else. So every group is tried before it is used.
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

from kedro_aat.compression.filters.cutting import apply_cut_plan, axes
from kedro_aat.compression.filters.groups import ChannelGroup, Place, layers_with, plan_of
from kedro_aat.errors import ModelError
from kedro_aat.modes import evaluating, first_cause

# Relative to the largest output. In double precision all that is left of an equal computation in another order is
# below the first; with the second a model runs that only knows float32.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}

_TRIALS = 3

_NOT_THE_SAME = "a zero in its place is not the same as its absence: something behind it does not keep zeros"


def confirmed(
    model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup], sizes: dict[Place, int]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups that can be cut without another output than masking has, and layer -> why the others cannot.

    Args:
        model: Left as it is; copies with changed parameters are tried, so that nothing is hidden by a scale that
            happens to be zero, or by ReLUs that are.
        example_input: (B, ...), on the device of the model.
        groups: To be tried; half of the units of each are cut, the other half the next time.
        sizes: As `all_places` gives them.
    """
    trials = [_trial(model, example_input, number) for number in range(_TRIALS)]
    reasons: dict[str, str] = {}

    def good(tried: list[ChannelGroup]) -> list[ChannelGroup]:
        """Those that pass together; halves of what does not are tried apart."""
        reason = _why_not(trials, tried, sizes) if tried else ""
        if not reason:
            return tried
        if len(tried) == 1:
            reasons.update(dict.fromkeys(layers_with(tried), reason))
            return []
        half = len(tried) // 2
        return good(tried[:half]) + good(tried[half:])

    left = good(list(groups))
    while reasons and (reason := _why_not(trials, left, sizes) if left else ""):
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


@dataclass(frozen=True)
class _Trial:
    """A model in which nothing is as it was but its structure, an input for it, and which units stay: even or odd."""

    model: nn.Module
    batch: Tensor
    parity: int


def _trial(model: nn.Module, example_input: Tensor, number: int) -> _Trial:
    """A copy in double precision, with noise on parameters and running means; from the second on with random signs."""
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
                continue  # something in it insists on another type
            raise ModelError(
                f"{type(model).__name__} runs neither in double nor in single precision, in which its channels are "
                f"tried out before any is cut. It says: {error}"
            ) from error
        break
    return _Trial(twin, batch, number % 2)


def _why_not(trials: Sequence[_Trial], groups: list[ChannelGroup], sizes: dict[Place, int]) -> str:
    """Why half of the units of some groups cannot be cut; empty if they can, in every trial."""
    return next(filter(None, (_difference(trial, groups, sizes) for trial in trials)), "")


def _difference(trial: _Trial, groups: list[ChannelGroup], sizes: dict[Place, int]) -> str:
    masked, cut = copy.deepcopy(trial.model), copy.deepcopy(trial.model)
    kept = [np.arange(group.num_units) % 2 == trial.parity for group in groups]
    for group, keep in zip(groups, kept, strict=True):
        zero_units(masked, group, np.flatnonzero(~keep))
    expected = outputs_of(masked, trial.batch)
    try:
        apply_cut_plan(cut, plan_of(groups, kept, sizes))
        got = outputs_of(cut, trial.batch)
    except Exception as error:  # a forward function that counts on the width raises anything
        return f"the model does not run without it: {first_cause(error).splitlines()[0][:200]}"
    same_shapes = [part.shape for part in expected] == [part.shape for part in got]
    if same_shapes and not all(part.isfinite().all() for part in expected):
        return ""  # other signs take some models out of range; then the trial says nothing
    dtype = next((part.dtype for part in expected), torch.float32)
    return "" if relative_difference(expected, got) <= _TOLERANCE[dtype] else _NOT_THE_SAME
