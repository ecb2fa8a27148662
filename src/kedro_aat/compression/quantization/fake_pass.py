"""One forward pass with fake quantization: weights are rounded where they are read, others where they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kedro_aat.compression.quantization.arithmetic import round_activation, round_to_uint8, round_weight
from kedro_aat.compression.quantization.calls import Follower, Pass
from kedro_aat.compression.quantization.placement import Site
from kedro_aat.compression.quantization.places import CallTree
from kedro_aat.compression.quantization.traced import Tracer


class FakePass(Pass):
    """Rounds and observes the tensors of one forward pass.

    Args:
        follower: What makes it.
        tree: Where tensors are found.
        key: The same for all passes of a model, and different for another model.
        sites: Number -> tensor that is rounded.
        axes: `id` of each weight that is rounded -> dimension along which its scales differ.
        highest: Largest integer of a weight.
        scales: Scale and zero point of each slot.
        is_exact: Whether tensors are rounded as the stripped model does it, without a gradient.
        is_rounding: Whether anything is rounded at all.
        is_observing: Whether the ranges of tensors are observed.

    Attributes:
        is_observing: Whether the ranges of tensors are observed.
        observed: Slot -> lowest and highest number of its tensors; empty unless `is_observing`.
        kind: What its graph depends on, apart from model and inputs.
    """

    def __init__(
        self,
        follower: Follower,
        tree: CallTree,
        *,
        key: int,
        sites: Mapping[int, Site],
        axes: Mapping[int, int],
        highest: int,
        scales: tuple[Sequence[Tensor], Sequence[Tensor]],
        is_exact: bool,
        is_rounding: bool,
        is_observing: bool,
    ) -> None:
        super().__init__(follower, tree)
        self._key, self._sites = key, sites
        self._is_exact, self._is_rounding, self.is_observing = is_exact, is_rounding, is_observing
        self._highest = highest
        self._scales, self._zero_points = scales
        self._axes = axes if is_rounding else {}
        # What was rounded in this pass, with gradient and without.
        self._rounded: dict[tuple[int, bool], Tensor] = {}
        self.observed: dict[int, Sequence[Tensor] | Tensor] = {}
        self.kind = frozenset(sites), frozenset(axes.items()), is_rounding, is_observing
        self._call: Callable[..., Any] = _call

    def noted_by(self, tracer: Tracer, scales: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Lets a tracer note roundings and ranges.

        Args:
            tracer: Notes the functions of the pass.
            scales: Scale and zero point of each slot, as the tracer knows them.
        """
        self._call = tracer.call
        self._scales, self._zero_points = scales

    def change_arguments(self, function: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if not kwargs and not any(id(value) in self._axes or isinstance(value, _NESTED) for value in args):
            return args, kwargs  # most functions read no weight
        if getattr(function, "__name__", "") == "__get__" and function.__self__.__name__ not in _VIEWS:
            return args, kwargs  # type, shape, gradient ... of a weight
        return tuple(map(self._change_argument, args)), (
            {name: self._change_argument(value) for name, value in kwargs.items()} if kwargs else kwargs
        )

    def _change_argument(self, value: Any) -> Any:
        axis = self._axes.get(id(value))
        if axis is not None:
            return self._rounded_weight(value, axis)
        if isinstance(value, _NESTED) and any(id(part) in self._axes for part in value):
            return type(value)(map(self._change_argument, value))
        return value

    def _rounded_weight(self, weight: Tensor, axis: int) -> Tensor:
        key = id(weight), torch.is_grad_enabled()
        if key not in self._rounded:
            self._rounded[key] = self._call(round_weight, weight, self._highest, axis)
        return self._rounded[key]

    def change(self, number: int, tensor: Tensor) -> Tensor:
        site = self._sites.get(number)
        mark = self._key, number, self._is_rounding
        if site is None or getattr(tensor, _MARK, None) == mark:
            return tensor
        changed = self._observe_and_round(site, tensor)
        # A tensor of the caller's may come back in another pass, and needs to be observed and rounded again.
        if changed is not tensor or tensor.grad_fn is not None:
            setattr(changed, _MARK, mark)
        return changed

    def _observe_and_round(self, site: Site, tensor: Tensor) -> Tensor:
        if self.is_observing:
            self.observed[site.slot] = self._call(_widened, tensor, *self.observed.get(site.slot, ()))
        if not self._is_rounding:
            return tensor
        scale, zero_point = self._scales[site.slot], self._zero_points[site.slot]
        if self._is_exact:  # as the stripped model rounds
            return round_to_uint8(tensor.float(), scale, zero_point).to(tensor.dtype)
        rounded: Tensor = self._call(round_activation, tensor, scale, zero_point)
        return rounded


def stacked(ranges: Iterable[Sequence[Tensor] | Tensor]) -> Tensor:
    """(K, 2) - lowest and highest numbers, of K slots that were observed."""
    return torch.stack([end for ends in ranges for end in ends]).float().view(-1, 2)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _widened(tensor: Tensor, *range_before: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest number of a tensor, and of those before."""
    low, high = torch.aminmax(tensor.detach())
    if range_before:
        low, high = torch.minimum(low, range_before[0]), torch.maximum(high, range_before[1])
    return low, high


# Attribute of a tensor that a pass made: key of the pass, number of its site, and whether it was rounded. It may be
# passed to another module, in a pass of its own.
_MARK = "_aat_site"
_NESTED = (list, tuple)
# Attributes of a tensor that are tensors with its numbers.
_VIEWS = {"T", "mT", "H", "mH", "data", "real"}
