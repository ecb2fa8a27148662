"""Masks on a model's parameters, applied before every forward pass, and the values of the masked weights.

A mask is applied in place, which costs one fused multiplication and works with any optimizer, whatever its momentum or
weight decay did to a masked weight. A model need not be called as a whole: the first call of any of its modules after
an optimizer step applies all masks. The value that a weight had when it was masked is kept in a second buffer, the
shadow, so that the rate can fall again; the buffer is empty where no value is needed. Two algorithms may mask the same
weight: each has its own mask, and they share the shadow, so that a weight comes back when neither masks it any more.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from kedro_aat.compression.multiplying import multiply, records_graph
from kedro_aat.compression.scopes import PrunableWeight
from kedro_aat.ranks.shards import is_sharded, like, local, part_of, whole

# Suffixes of the buffers' names, after the name of the weight.
MASK = "_mask"  # of filter pruning
SPARSITY_MASK = "_sparsity_mask"
ZEROS_MASK = "_zeros_mask"  # of quantization that keeps zeros
SHADOW = "_shadow"  # shared by all masks
MASKS = (MASK, SPARSITY_MASK, ZEROS_MASK)

# So many numbers at most are multiplied faster by numbers that are converted once, and these take little memory.
_SMALL = 1 << 16
# Steps of all fused optimizers. They change weights without telling autograd, whose versions stay.
_FUSED_STEPS = [0]


def carries_masks(model: nn.Module) -> bool:
    """Whether any algorithm masks weights of a model."""
    # By the shadow, not by the masks: a model's own buffers may be called attn_mask.
    return any(
        name + SHADOW in dict(module.named_buffers(recurse=False))
        for module in model.modules()
        for name, _ in module.named_parameters(recurse=False)
    )


class WeightMasks:
    """The masks of one algorithm on a model's weights.

    It refers to layers, not to tensors, so that a deep copy of model and controller stays consistent.

    Args:
        weights: The parameters to mask.
        statistics: Buffers that belong to one of these parameters, such as the running mean of a masked scale. They
            are not masked, but restored together with the parameter: while it is masked, they only follow the zeros.
        suffix: Ending of the masks' names, different for each algorithm.
        shadow_on_host: Whether shadows are in the memory of the host, wherever the weights are.

    Attributes:
        is_active: Whether any weight is masked.
        forgets: Whether weights that are no longer masked begin at zero, and so do not disturb what the other weights
            have learned since; otherwise they get back the value that they had when they were masked.
    """

    def __init__(
        self,
        weights: Sequence[PrunableWeight],
        statistics: Sequence[tuple[PrunableWeight, str]] = (),
        *,
        suffix: str = MASK,
        shadow_on_host: bool = False,
    ) -> None:
        self.weights = weights
        self.statistics = statistics
        self.is_active = False
        self.forgets = False
        self._suffix = suffix
        self._shadow_on_host = shadow_on_host
        self._are_divided = False  # among ranks
        self._are_applied = False  # before the graph that runs now
        # module -> number, layer and name of each weight in it
        self._inside: dict[nn.Module, list[tuple[int, nn.Module, str]]] = {}
        self._seen: list[int] | None = None  # version of each weight when the masks were last applied
        self._seen_steps = 0  # of fused optimizers, at the same time
        self._numbers: dict[Tensor, tuple[int, Tensor]] = {}  # small mask -> its version then, and the mask as numbers
        for weight in weights:
            mask = torch.ones_like(weight.parameter, dtype=torch.bool)
            weight.module.register_buffer(weight.parameter_name + suffix, mask)
            if not hasattr(weight.module, weight.parameter_name + SHADOW):
                weight.module.register_buffer(weight.parameter_name + SHADOW, weight.parameter.detach().new_empty(0))
        for weight, name in statistics:
            weight.module.register_buffer(name + SHADOW, weight.module.get_buffer(name).clone())
        self._hooks: list[RemovableHandle] = [
            module.register_load_state_dict_pre_hook(self._before_load)
            for module in dict.fromkeys(weight.module for weight in weights)
        ]

    def attach(self, model: nn.Module) -> None:
        """Applies the masks from now on whenever `model` or a module in it is called, or its state is read."""
        _count_fused_steps()
        self._of_calls = model.register_forward_pre_hook(self._before_forward)
        self._hooks += [self._of_calls, model.register_state_dict_pre_hook(self._before_state_dict)]
        owned: dict[nn.Module, list[tuple[int, nn.Module, str]]] = {}
        for number, weight in enumerate(self.weights):
            owned.setdefault(weight.module, []).append((number, weight.module, weight.parameter_name))
        for module in model.modules():
            if type(module) is nn.Sequential:  # it does nothing but call modules, which have hooks of their own
                continue
            inside = [each for part in module.modules() for each in owned.get(part, ())]
            if inside and module is not model and not isinstance(module, torch.jit.ScriptModule):
                self._inside[module] = inside
                self._hooks.append(module.register_forward_pre_hook(self._before_module))

    def apply_before(self, compiled: nn.Module) -> None:
        """Applies the masks before each call of a compiled form of the model, so that its graphs leave them out.

        A graph that changes weights writes each of them twice, and starts two kernels for it.
        """
        forward = compiled.forward

        @functools.wraps(forward)
        def masked(*args: Any, **kwargs: Any) -> Any:
            self.apply()
            was_applied, self._are_applied = self._are_applied, True
            try:
                return forward(*args, **kwargs)
            finally:  # torch's hooks that are always called are not called for Ctrl-C
                self._are_applied = was_applied

        compiled.forward = masked

    def divide(self, model: nn.Module) -> None:
        """Divides masks and shadows as the weights have been divided among ranks, by torch's `fully_shard`.

        From then on, masks are applied when the whole model is called, before the ranks gather weights for that.
        """
        self._are_divided = True
        for weight in self.weights:
            for suffix in (self._suffix, SHADOW):
                name = weight.parameter_name + suffix
                buffer = weight.module.get_buffer(name)
                if buffer.shape == weight.parameter.shape and not is_sharded(buffer):  # there may be no shadow
                    weight.module._buffers[name] = part_of(buffer, weight.parameter)
        self._of_calls.remove()
        self._hooks.append(model.register_forward_pre_hook(self._before_forward, prepend=True))

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what belongs to versions of weights and masks, since copies begin with versions of their own."""
        return self.__dict__ | {"_seen": None, "_numbers": {}, "_are_applied": False}

    def detach(self) -> None:
        """Removes hooks and buffers from the model; its weights keep their values."""
        for hook in self._hooks:
            hook.remove()
        self.is_active = False
        for weight in self.weights:
            delattr(weight.module, weight.parameter_name + self._suffix)
            if not _masks_on(weight):
                delattr(weight.module, weight.parameter_name + SHADOW)
        for weight, name in self.statistics:
            delattr(weight.module, name + SHADOW)

    def leave_zeros(self) -> None:
        """Sets the masked weights to zero for good, and removes hooks and buffers."""
        self.apply()
        self.detach()
        with torch.no_grad():
            for weight in self.weights:
                weight.parameter.add_(0.0)  # turns the -0.0 that a mask leaves into 0.0, which compresses better

    def _before_forward(self, model: nn.Module, args: Any) -> None:
        if not self._are_applied:
            self.apply()

    def _before_module(self, module: nn.Module, args: Any) -> None:
        """Applies all masks if the optimizer has changed a weight of this module since they were last applied.

        Within a call of the whole model that is never so, and the comparison is all that it costs.
        """
        if self._are_divided or self._are_applied:
            return
        is_recorded = records_graph()
        if self._are_ones(is_recorded):
            return
        if is_recorded:  # a graph cannot compare versions, so it holds the module's own masks
            self._apply_within(module)
            return
        if (seen := self._seen) is not None and self._seen_steps == _FUSED_STEPS[0]:
            for number, owner, name in self._inside[module]:  # as fast as it can be: it runs for each call of a module
                if owner._parameters[name]._version != seen[number]:  # type: ignore[union-attr]  # none is None
                    break
            else:
                return
        self.apply()

    def _apply_within(self, module: nn.Module) -> None:
        for weight in self.weights:
            if weight.module is module:
                mask = module._buffers[weight.parameter_name + self._suffix]
                assert mask is not None
                weight.parameter.data.mul_(mask)

    def _before_state_dict(self, model: nn.Module, prefix: str, keep_vars: bool) -> None:
        self.apply()

    def apply(self) -> None:
        """Sets the masked weights to zero, in place."""
        is_recorded = records_graph()
        if self._are_ones(is_recorded):
            return
        # `.data` does not touch autograd's version counter: if a model is called twice before one backward pass, the
        # masked weights are already zero, so what autograd saved in the first call is still correct.
        parameters = [weight.parameter for weight in self.weights]
        masks = self.masks()
        if is_recorded:
            multiply([parameter.data for parameter in parameters], masks)
            return
        if self._are_divided:
            multiply([local(parameter) for parameter in parameters], [local(mask) for mask in masks])
            return
        small, numbers, large, truths = [], [], [], []
        for parameter, mask in zip(parameters, masks, strict=True):
            if mask.numel() > _SMALL:
                large.append(parameter.data)
                truths.append(mask)
                continue
            known = self._numbers.get(mask)
            if known is None or known[0] != mask._version:
                known = self._numbers[mask] = mask._version, mask.to(parameter.dtype)
            small.append(parameter.data)
            numbers.append(known[1])
        if small:
            torch._foreach_mul_(small, numbers)
        if large:
            multiply(large, truths)
        self._seen = [parameter._version for parameter in parameters]
        self._seen_steps = _FUSED_STEPS[0]

    def _are_ones(self, is_recorded: bool) -> bool:
        """Whether all masks are known to be ones, as at rate 0.

        A graph must not depend on the rate, so it is not even asked for then, unless the graph is exported: that is the
        model as it is now, and torch cannot export a change of its weights.
        """
        return (not is_recorded or torch.compiler.is_exporting()) and not self.is_active

    def masks(self) -> list[Tensor]:
        """Returns one boolean mask per weight, true where this algorithm keeps the weight."""
        # Not with `get_buffer`, which looks for dots in names: that took longer than the multiplication itself.
        found = [weight.module._buffers[weight.parameter_name + self._suffix] for weight in self.weights]
        return [mask for mask in found if mask is not None]  # for mypy; none is None

    def unmasked(self) -> list[Tensor]:
        """Returns each weight as it would be without masks; empty where that is not known."""
        if not self.is_active:
            return [weight.parameter for weight in self.weights]
        return [
            torch.where(_joint_mask(weight), local(weight.parameter), local(shadow)) if shadow.numel() else shadow
            for weight, shadow in zip(self.weights, map(_shadow_of, self.weights), strict=True)
        ]

    def forget(self) -> None:
        """Lets weights begin at zero from now on when they are no longer masked; see `forgets`."""
        self.forgets = True
        for weight in self.weights:
            if _is_alone(weight):
                _set_shadow(weight, None)

    @torch.no_grad()
    def lift(self) -> None:
        """Gives all masked weights the value back that they would have without a mask; `put` must follow.

        That is the value before they were masked, or zero for those if it `forgets` them.
        """
        for weight in self.weights:
            mask, shadow = _joint_mask(weight), _shadow_of(weight)
            values = local(weight.parameter)
            if self.forgets or not shadow.numel():
                multiply([values.detach()], [mask])
            else:
                torch.where(mask, values, local(shadow).to(values.device), out=values)
        for weight, name in self.statistics:
            mask = whole(weight.module.get_buffer(weight.parameter_name + self._suffix))
            buffer, shadow = weight.module.get_buffer(name), weight.module.get_buffer(name + SHADOW)
            shadow.copy_(torch.where(mask, buffer, shadow))
            buffer.copy_(shadow)

    @torch.no_grad()
    def put(self, keep: Sequence[Tensor] | None) -> None:
        """Replaces the masks after `lift`.

        Args:
            keep: One tensor per weight, of its shape or one that can be expanded to it; true where the weight is kept.
                None if all of them are. For weights that are divided, it may be divided likewise.
        """
        self.is_active = keep is not None
        for number, (weight, mask) in enumerate(zip(self.weights, self.masks(), strict=True)):
            if keep is None:
                local(mask).fill_(True)
            elif is_sharded(mask) and not is_sharded(keep[number]):
                local(mask).copy_(local(part_of(keep[number].expand(mask.shape), mask)))
            else:
                local(mask).copy_(local(keep[number]))
            # Where several algorithms mask a weight, any of them may need the value.
            needs_shadow = (self.is_active and not self.forgets) if _is_alone(weight) else True
            _set_shadow(weight, weight.parameter if needs_shadow else None, on_host=self._shadow_on_host)
            multiply([local(weight.parameter).detach()], [_joint_mask(weight)])
        self._seen = None
        self._numbers = {}  # of masks that are no longer there, too

    def _before_load(self, module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """Lets a module load masks and shadows of any version and at any rate; in 0.1, masks were numbers."""
        for weight in self.weights:
            if weight.module is not module:
                continue
            name = prefix + weight.parameter_name
            if (mask := state.get(name + self._suffix)) is not None:
                state[name + self._suffix] = mask.bool()
            if (saved := state.get(name + SHADOW)) is not None:
                if self.forgets and _is_alone(weight):
                    saved = state[name + SHADOW] = saved.new_empty(0)
                is_known = saved.shape in (torch.Size([0]), weight.parameter.shape)  # torch says what is wrong
                if is_known and saved.shape != (shadow := _shadow_of(weight)).shape:
                    module._buffers[weight.parameter_name + SHADOW] = (
                        like(weight.parameter, shadow.new_empty(local(weight.parameter).shape))
                        if saved.numel()
                        else shadow.new_empty(0)
                    )


@functools.cache
def _count_fused_steps() -> None:
    """Counts the steps of fused optimizers from now on, of this model or any other."""

    def count(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        _FUSED_STEPS[0] += any(group.get("fused") for group in optimizer.param_groups)

    register_optimizer_step_post_hook(count)


def _masks_on(weight: PrunableWeight) -> list[Tensor]:
    names = [weight.parameter_name + suffix for suffix in MASKS]
    return [weight.module.get_buffer(name) for name in names if hasattr(weight.module, name)]


def _is_alone(weight: PrunableWeight) -> bool:
    """Whether only one algorithm masks a weight."""
    return len(_masks_on(weight)) == 1


def _joint_mask(weight: PrunableWeight) -> Tensor:
    """Returns true where every algorithm keeps the weight, of the rows that this rank holds."""
    return functools.reduce(torch.logical_and, map(local, _masks_on(weight)))


def _shadow_of(weight: PrunableWeight) -> Tensor:
    return weight.module.get_buffer(weight.parameter_name + SHADOW)


def _set_shadow(weight: PrunableWeight, values: Tensor | None, *, on_host: bool = False) -> None:
    """Keeps values beside a weight, or none."""
    shadow = _shadow_of(weight)
    device = torch.device("cpu") if on_host else weight.parameter.device
    shape = torch.Size([0]) if values is None else values.shape
    if shadow.shape != shape or shadow.device != device:
        shadow = torch.empty(0 if values is None else local(values).shape, dtype=weight.parameter.dtype, device=device)
        shadow = shadow if values is None else like(values, shadow)
        weight.module._buffers[weight.parameter_name + SHADOW] = shadow
    if values is not None:
        local(shadow).copy_(local(values).detach())
