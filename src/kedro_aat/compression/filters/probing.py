"""Tests whether masking a group is the same as cutting it, by comparing a model with zeros to one without the channels.

It is not the same if the trace misunderstood an operation, or if a forward pass relies on a number of channels that is
written in its code. So every group is tested before it is used. Where a number in a module is the reason, such as that
of the heads, it is found by trying.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kedro_aat.compression.filters.attention import without_nested_tensors
from kedro_aat.compression.filters.channel_masks import is_normalized, kept_channels, mask_of, masked_axes
from kedro_aat.compression.filters.cutting import apply_cut_plan
from kedro_aat.compression.filters.groups import (
    ChannelGroup,
    Couplings,
    ScaledAttribute,
    attributes_by_length,
    plan_cuts,
    producing_layers,
)
from kedro_aat.compression.filters.normalization import normalize_over_kept, set_kept
from kedro_aat.errors import ModelError
from kedro_aat.model_inputs import ModelInputs, call_model, placed_like, tensors_in
from kedro_aat.modes import evaluating, first_cause

# Relative to the largest output. Equal computations in another order differ by less, even where a model that runs in
# double precision computes its normalizations in float32. The second is for models that run in float32 only.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}

_NUM_PROBES = 2

_MOST_SETS = 16  # of failed groups that are tried together
_MOST_SINGLE = 10  # attributes that are tried one by one

_NUM_RANDOM = 10_007  # a prime, so that no dimension of a tensor repeats with it

_NOT_EQUIVALENT = "a zero in its place is not the same as its absence: something behind it does not keep zeros"


def confirm_groups(
    model: nn.Module, example_input: ModelInputs, groups: Sequence[ChannelGroup], couplings: Couplings
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Finds the groups for which the cut model and the masked model return the same outputs.

    Args:
        model: Not changed. Copies with changed parameters are tested, so that no scale that happens to be zero, and no
            ReLU that is always zero, hides a difference.
        example_input: What the model is called with, on its device.
        groups: To be tested. Each test cuts a random part of the units of each group, so that no symmetry hides a
            mistake.
        couplings: The model's couplings.

    Returns:
        The groups that can be cut, with the attributes that follow them, and layer -> why the others cannot.
    """
    return _Confirmation(model, example_input, couplings).confirm(groups)


class _Confirmation:
    def __init__(self, model: nn.Module, example_input: ModelInputs, couplings: Couplings) -> None:
        self._model, self._couplings = model, couplings
        self._probes = [_make_probe(model, example_input, number) for number in range(_NUM_PROBES)]
        self._choices: dict[tuple[bool, tuple[tuple[type, str], ...]], tuple[bool, ...]] = {}
        self._failed: list[tuple[ChannelGroup, str]] = []  # with the reason of each
        self.reasons: dict[str, str] = {}

    def confirm(self, groups: Sequence[ChannelGroup]) -> tuple[list[ChannelGroup], dict[str, str]]:
        tested = [self._with_heads(group) for group in groups]
        if not tested or not self._find_reason(tested):
            return tested, {}
        tested = [self._with_attributes(group) for group in groups]
        confirmed = self._passing(tested)
        rescued = [*self._joined(), *self._with_enclosed(), *self._without_pieces()]
        confirmed += rescued
        while (confirmed != tested or rescued) and confirmed and (reason := self._find_reason(confirmed)):
            # Each half passes, but not all together: drop the smallest groups until they do.
            smallest = min(confirmed, key=lambda group: group.num_units)
            self.reasons.update(dict.fromkeys(producing_layers([smallest]), reason))
            confirmed.remove(smallest)
        for group, reason in self._failed:
            self.reasons.update(dict.fromkeys(producing_layers([group]), reason))
        return confirmed, self.reasons

    def _passing(self, tested: list[ChannelGroup]) -> list[ChannelGroup]:
        """The groups if they pass together; otherwise those of each half that pass."""
        reason = self._find_reason(tested) if tested else ""
        if not reason:
            return tested
        if len(tested) == 1:
            self._failed.append((tested[0], reason))
            return []
        half = len(tested) // 2
        return self._passing(tested[:half]) + self._passing(tested[half:])

    def _with_heads(self, group: ChannelGroup) -> ChannelGroup:
        """The group with the numbers of heads that follow it, and no other attributes."""
        found = attributes_by_length(self._model, group, self._couplings.dependencies.lengths)
        return replace(group, attributes=tuple(itertools.compress(found, next(_choices(found)))))

    def _with_attributes(self, group: ChannelGroup, *, is_joined: bool = False) -> ChannelGroup:
        """The group with those attributes that must follow it; tried once for modules of the same classes.

        Groups that are joined are tried again: alone, none of them may have passed with any attribute.
        """
        found = attributes_by_length(self._model, group, self._couplings.dependencies.lengths)
        if not found:
            return group
        key = is_joined, tuple((type(self._model.get_submodule(each.layer)), each.name) for each in found)
        if key not in self._choices:
            self._choices[key] = self._choose(group, found)
        return replace(group, attributes=tuple(itertools.compress(found, self._choices[key])))

    def _choose(self, group: ChannelGroup, found: Sequence[ScaledAttribute]) -> tuple[bool, ...]:
        """Which attributes must follow a group for it to pass; none if it passes with none of the choices."""
        for choice in dict.fromkeys(_choices(found)):
            changed = replace(group, attributes=tuple(itertools.compress(found, choice)))
            if not self._find_reason([changed]):
                return choice
        return (False,) * len(found)

    def _joined(self) -> list[ChannelGroup]:
        """Groups that pass only together: a forward pass expects as many channels in one as in the other."""
        by_size: dict[int, list[ChannelGroup]] = {}
        for group, reason in self._failed:
            if reason != _NOT_EQUIVALENT:
                by_size.setdefault(group.num_units, []).append(group)
        passing: list[ChannelGroup] = []
        for groups in by_size.values():
            sets = [groups, *itertools.combinations(groups, 2)][:_MOST_SETS]
            for members in sets:
                if len(members) < 2 or not all(any(group is failed for failed, _ in self._failed) for group in members):
                    continue
                whole = self._with_attributes(functools.reduce(ChannelGroup.joined, members), is_joined=True)
                if not self._find_reason([whole]):
                    passing.append(whole)
                    self._failed = [each for each in self._failed if not any(each[0] is group for group in members)]
        return passing

    def _with_enclosed(self) -> list[ChannelGroup]:
        """Residual streams with the heads of the attentions on them, where only both together pass.

        So it is where a forward pass computes the width of a head as that of the stream over the number of heads, or
        shapes all heads like the stream. A unit is then a head of each attention and its share of the stream.
        """
        passing: list[ChannelGroup] = []
        for stream, _ in sorted(self._failed, key=lambda each: -each[0].num_units):
            heads = [group for group, _ in self._failed if group is not stream and stream.encloses(group)]
            num_units = math.gcd(*(group.num_units for group in (stream, *heads)))
            if not heads or num_units < 2 or not any(group is stream for group, _ in self._failed):
                continue
            members = [group.coarser(num_units) for group in (stream, *heads)]
            whole = self._with_attributes(functools.reduce(ChannelGroup.joined, members), is_joined=True)
            if not self._find_reason([whole]):
                passing.append(whole)
                joined = (stream, *heads)
                self._failed = [each for each in self._failed if not any(each[0] is group for group in joined)]
        return passing

    def _without_pieces(self) -> list[ChannelGroup]:
        """Of groups that failed, the units in the last piece of what is divided at a fixed place, if they pass."""
        found = self._couplings.dependencies
        fixed = [split.but_the_last for split in found.splits if split.but_the_last is not None]
        fixed += [split.nodes[..., : split.edges[-2]] for split in found.uneven]
        passing: list[ChannelGroup] = []
        for number, (group, _) in enumerate(self._failed):
            for nodes in fixed:
                is_free = np.logical_not(np.isin(group.nodes, nodes).any(axis=1))
                if not is_free.any() or is_free.all():
                    continue
                if not self._find_reason([rest := group.only(is_free)]):
                    passing.append(rest)
                    self._failed[number] = (group, "the forward pass divides it at a fixed place")
                    break
        return passing

    def _find_reason(self, groups: Sequence[ChannelGroup]) -> str:
        """Why a part of the units of some groups cannot be cut; empty if it can in every probe."""
        return next(filter(None, (_compare(probe, groups, self._couplings) for probe in self._probes)), "")


def _choices(found: Sequence[ScaledAttribute]) -> Iterator[tuple[bool, ...]]:
    """Sets of attributes that may have to follow a group, the likeliest first."""
    names = list(dict.fromkeys(each.name for each in found))
    # Numbers of heads follow even where no forward pass reads them, since users do.
    yield tuple(each.name.endswith("heads") for each in found)
    yield (False,) * len(found)
    yield (True,) * len(found)
    for name in names:
        yield tuple(each.name == name for each in found)
    for name in names:
        yield tuple(each.name != name for each in found)
    if len(found) <= _MOST_SINGLE:  # the same attribute of two modules may mean two things
        for number in (1, 2):
            for left_out in itertools.combinations(range(len(found)), number):
                yield tuple(index not in left_out for index in range(len(found)))


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
def outputs_of(model: nn.Module, inputs: ModelInputs) -> list[Tensor]:
    """All tensors that a model returns in evaluation mode, in at least single precision."""
    with evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some models draw random numbers in evaluation mode too
        found = list(tensors_in(call_model(model, inputs)))
    return [part if part.dtype == torch.float64 or part.is_complex() else part.float() for part in found]


@dataclass(frozen=True)
class _Probe:
    """A model of the same structure with other numbers, an input for it, and a seed of which units stay."""

    model: nn.Module
    inputs: ModelInputs
    seed: int


def _make_probe(model: nn.Module, example_input: ModelInputs, number: int) -> _Probe:
    """Copies a model in double precision, with noise on its parameters and running means.

    All probes but the first also get random signs.
    """
    twin = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(number)
    noise = torch.randn(_NUM_RANDOM, generator=generator)
    means = [buffer for name, buffer in twin.named_buffers() if name.endswith("running_mean")]
    with torch.no_grad():
        for tensor in [*twin.parameters(), *means]:
            if tensor.is_floating_point() and tensor.numel():
                shift = int(torch.randint(_NUM_RANDOM, (1,), generator=generator))
                drawn = _repeated(noise.roll(shift), tensor)
                if number:
                    tensor.mul_(_repeated(noise.roll(shift + 1).sign(), tensor))
                tensor.add_(drawn, alpha=float(0.02 + 0.1 * tensor.float().std(correction=0)))
    for dtype in (torch.float64, torch.float32):
        _set_precision(twin, dtype)
        inputs = placed_like(example_input, twin)
        try:
            outputs_of(twin, inputs)
        except Exception as error:
            if dtype == torch.float64:
                continue  # some models insist on another type
            raise ModelError(
                f"{type(model).__name__} runs in neither double nor single precision, but its channels are tested in "
                f"one of them before any is cut. The model says: {error}"
            ) from error
        break
    return _Probe(twin, inputs, number)


def _set_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Converts a model in place; complex numbers stay complex, which `Module.to` would make real."""

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(dtype.to_complex())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    model._apply(converted)


def _repeated(numbers: Tensor, like: Tensor) -> Tensor:
    """Some random numbers over and over, in the shape of a tensor; much faster than new ones."""
    times = -(-like.numel() // len(numbers))
    return numbers.to(like).repeat(times)[: like.numel()].view(like.shape)


def _compare(probe: _Probe, groups: Sequence[ChannelGroup], couplings: Couplings) -> str:
    """Why a part of the units cannot be cut; empty if the masked and the cut model return the same."""
    kept = [_some_units(group.num_units, number, is_first=probe.seed == 0) for number, group in enumerate(groups)]
    masked = _light_copy(probe.model)
    _mask_units(masked, groups, kept, couplings)
    without_nested_tensors(masked)
    expected = outputs_of(masked, probe.inputs)
    try:
        cut = apply_cut_plan(_light_copy(probe.model), plan_cuts(groups, kept, couplings.sizes))
        outputs = outputs_of(cut, probe.inputs)
    except Exception as error:  # a forward function that relies on the width may raise anything
        words = first_cause(error).splitlines() or [type(error).__name__]
        return f"the model does not run without it: {words[0][:200]}"
    same_shapes = [part.shape for part in expected] == [part.shape for part in outputs]
    if same_shapes and not all(part.isfinite().all() for part in expected):
        return ""  # other signs take some models out of range; then the probe proves nothing
    dtype = next((part.dtype for part in expected), torch.float32)
    return "" if relative_difference(expected, outputs) <= _TOLERANCE[dtype] else _NOT_EQUIVALENT


def _some_units(number: int, seed: int, *, is_first: bool) -> NDArray[np.bool_]:
    """(number,) - which units stay: a random part, at least one, and at least one does not.

    The first probe and the others remove the opposite parts, since one unit may differ from all others: a slice that
    begins at a fixed place moves only if a channel before it is cut.
    """
    generator = np.random.default_rng(seed)
    num_kept = int(generator.integers(max(1, number // 3), max(2, number * 2 // 3 + 1)))
    kept = np.zeros(number, dtype=np.bool_)
    kept[generator.permutation(number)[: min(num_kept, max(1, number - 1))]] = True
    return kept if is_first or number == 1 else ~kept


def _light_copy(model: nn.Module) -> nn.Module:
    """A copy of a model that shares its tensors, so that only modules are copied."""
    shared: Iterable[Tensor] = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in shared})


@torch.no_grad()
def _mask_units(
    model: nn.Module, groups: Sequence[ChannelGroup], kept: Sequence[NDArray[np.bool_]], couplings: Couplings
) -> None:
    """Replaces parameters of a model by masked ones, and masks its statistics over channels."""
    channels = kept_channels(couplings.sizes, groups, kept)
    modules = dict(model.named_modules())
    places: dict[int, list[tuple[dict[str, nn.Parameter | None], str]]] = {}  # a shared parameter has several
    for module in modules.values():
        for name, tensor in module._parameters.items():
            places.setdefault(id(tensor), []).append((module._parameters, name))
    masks: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for (layer, name), along in masked_axes(model, groups).items():
        parameter = modules[layer].get_parameter(name)
        lost = [(axis, channels[layer, kind]) for kind, axis in along if (layer, kind) in channels]
        mask = mask_of(parameter.dim(), lost).to(parameter)
        _, known = masks.get(id(parameter), (parameter, None))
        masks[id(parameter)] = parameter, mask if known is None else known * mask
    for key, (parameter, mask) in masks.items():
        masked = nn.Parameter(parameter * mask, parameter.requires_grad)
        for own, name in places[key]:
            own[name] = masked
    for (layer, kind), kept_here in channels.items():
        module = modules[layer]
        if layer in couplings.normalizations and is_normalized(module, kind):
            normalize_over_kept(module, couplings.normalizations[layer])
            set_kept(module, torch.from_numpy(kept_here))
