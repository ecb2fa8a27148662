"""Masks on a model's parameters, applied before every forward pass, and what stood under them.

They are applied in place, which costs one fused multiplication and works with any optimizer, whatever its
momentum or weight decay did to a masked weight. What a weight was when it was masked is kept beside it, so that
the rate can fall again. Both are buffers of the layer. Two algorithms may mask the same weight: each has a mask of its
own, and they share what stood under them, so that a weight comes back when the last of them lets go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.scopes import PrunableWeight

# Behind a weight's name: the mask of filter pruning, that of sparsity, and what stands under both.
MASK, SPARSITY_MASK, SHADOW = "_mask", "_sparsity_mask", "_shadow"
_MASKS = (MASK, SPARSITY_MASK)


def carries_masks(model: nn.Module) -> bool:
    """Whether any algorithm masks weights of a model."""
    # Told by what stands under the masks: buffers of a model's own may be called attn_mask, too.
    return any(name + SHADOW in module._buffers for module in model.modules() for name in module._parameters)


class WeightMasks:
    """The masks of a model's weights; holds on to the layers, so that deep copies stay whole.

    Args:
        weights: The parameters that are masked.
        statistics: Buffers that belong to one of these, such as the running mean of a masked scale. They are not
            masked, but brought back together with it: under a mask they only follow the zeros.
        suffix: Behind a weight's name that of its mask, another one for each algorithm.
    """

    def __init__(
        self,
        weights: Sequence[PrunableWeight],
        statistics: Sequence[tuple[PrunableWeight, str]] = (),
        *,
        suffix: str = MASK,
    ) -> None:
        self.weights = weights
        self.statistics = statistics
        self.is_active = False
        self._suffix = suffix
        for weight in weights:
            parameter = weight.parameter.detach()
            weight.module.register_buffer(weight.parameter_name + suffix, torch.ones_like(parameter))
            if not hasattr(weight.module, weight.parameter_name + SHADOW):
                weight.module.register_buffer(weight.parameter_name + SHADOW, parameter.clone())
        for weight, name in statistics:
            weight.module.register_buffer(name + SHADOW, weight.module.get_buffer(name).clone())

    def attach(self, model: nn.Module) -> None:
        """From now on the masks hold whenever `model` is called or its state is read."""
        model.register_forward_pre_hook(self._before_forward)
        model.register_state_dict_pre_hook(self._before_state_dict)

    def detach(self, model: nn.Module) -> None:
        """Takes hooks and buffers out of `model` again; its weights stay as they are."""
        for hooks in (model._forward_pre_hooks, model._state_dict_pre_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
        self.is_active = False
        for weight in self.weights:
            delattr(weight.module, weight.parameter_name + self._suffix)
            if not _masks_on(weight):
                delattr(weight.module, weight.parameter_name + SHADOW)
        for weight, name in self.statistics:
            delattr(weight.module, name + SHADOW)

    def _before_forward(self, model: nn.Module, args: Any) -> None:
        self.apply()

    def _before_state_dict(self, model: nn.Module, prefix: str, keep_vars: bool) -> None:
        self.apply()

    def apply(self) -> None:
        """Sets the masked weights to zero, in place."""
        if not self.is_active:  # at rate 0 every mask is one
            return
        # `.data` leaves autograd's version counter alone: masked weights are zero already when a model is
        # called twice before one backward pass, so what the first call saved stays right.
        torch._foreach_mul_([weight.parameter.data for weight in self.weights], self.masks())

    def masks(self) -> list[Tensor]:
        """One mask a weight, 1 where this algorithm keeps it and 0 where not."""
        # Not by `get_buffer`, which looks for dots in names: that took longer than the multiplication itself.
        found = [weight.module._buffers[weight.parameter_name + self._suffix] for weight in self.weights]
        return [mask for mask in found if mask is not None]  # none is

    @torch.no_grad()
    def unmasked(self) -> list[Tensor]:
        """The weights, those under a mask as they were before it; they are read, never written."""
        shadows = [weight.module.get_buffer(weight.parameter_name + SHADOW) for weight in self.weights]
        for weight, shadow in zip(self.weights, shadows, strict=True):
            shadow.copy_(torch.where(_joint_mask(weight).bool(), weight.parameter, shadow))
        return shadows

    @torch.no_grad()
    def put(self, keep: Sequence[Tensor], *, is_active: bool) -> None:
        """Puts on new masks, and brings back what is no longer masked.

        Args:
            keep: Of as many numbers as each weight; true where it is kept.
            is_active: Whether anything is masked.
        """
        shadows = self.unmasked()
        for weight, name in self.statistics:
            mask = weight.module.get_buffer(weight.parameter_name + self._suffix)
            now, before = weight.module.get_buffer(name), weight.module.get_buffer(name + SHADOW)
            before.copy_(torch.where(mask.bool(), now, before))
            now.copy_(before)
        for weight, mask, shadow, kept in zip(self.weights, self.masks(), shadows, keep, strict=True):
            mask.copy_(kept.view_as(mask))
            weight.parameter.copy_(shadow * _joint_mask(weight))
        self.is_active = is_active


def _masks_on(weight: PrunableWeight) -> list[Tensor]:
    names = [weight.parameter_name + suffix for suffix in _MASKS]
    return [weight.module.get_buffer(name) for name in names if hasattr(weight.module, name)]


def _joint_mask(weight: PrunableWeight) -> Tensor:
    """1 where every algorithm keeps the weight, 0 where one does not."""
    first, *others = _masks_on(weight)
    for other in others:
        first = first * other
    return first
