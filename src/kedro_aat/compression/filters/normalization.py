"""Normalization over the channels that are kept, while the others are masked.

LayerNorm, RMSNorm and GroupNorm take means over channels, so a channel of zeros is not the same as no channel. Here a
masked model computes these means without the masked channels, and so exactly what the cut model does, whose layers stay
those that they were. The module's own code still runs, between two hooks: the first one gives masked channels the mean
of the others and scales all of them, so that the module finds the right mean and variance, and the second one undoes
the scale.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kedro_aat.compression.filters.axes import own_tensors
from kedro_aat.compression.quantization.calls import replaced_input, replaced_result

KEPT = "_kept_channels"  # buffer of a normalization, (C,) float: 1 for a channel that is kept, else 0

_NORMALIZATION = "_kept_normalization"  # attributes of a normalization
_ALL_KEPT = "_keeps_all_channels"
_TOLERANCE = 1e-9  # in double precision; the largest difference relative to the largest output
_EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)  # usual ones, for modules that hold none
_POSITIONS = 3  # of each dimension without channels, in the input with which a module is recognized


@dataclass(frozen=True)
class Normalization:
    """How a module normalizes: over all channels, or over groups of them.

    Attributes:
        channels: Number of channels.
        dim: Dimension of the channels, -1 or 1.
        groups: Number of groups of channels that have means of their own; 1 for LayerNorm and RMSNorm.
        over_positions: Whether means are also taken over all dimensions after the channels, as in GroupNorm.
        centered: Whether the mean is subtracted; not in RMSNorm.
        correction: 1 if the variance is a sum divided by one less than the number of channels, else 0.
        bias: Name of the parameter that is added to the normalized channels; None without one.
    """

    channels: int
    dim: int
    groups: int
    over_positions: bool
    centered: bool
    correction: int
    bias: str | None


# --- recognition -------------------------------------------------------------------------------------------------


@torch.no_grad()
def recognize(module: nn.Module, sample_input: Tensor) -> Normalization | None:
    """Finds out by running a module whether it is a LayerNorm, RMSNorm or GroupNorm, whatever its name.

    Args:
        module: Not changed.
        sample_input: An input; only its shape and device matter.

    Returns:
        None if the module computes anything else, or normalizes each channel alone.
    """
    sizes = {tensor.numel() for _, tensor in own_tensors(module)}
    is_small = len(sizes) <= 1 and len(dict(own_tensors(module))) <= 2 and not any(True for _ in module.children())
    if not is_small or not sample_input.is_floating_point() or sample_input.dim() < 2:
        return None
    dims = [-1, 1] if sample_input.dim() > 2 else [-1]
    dims = [dim for dim in dims if not sizes or sample_input.shape[dim] in sizes]
    if not dims or not any(isinstance(value, float) or name == "eps" for name, value in vars(module).items()):
        return None
    generator = torch.Generator().manual_seed(0)

    def random(shape: list[int] | torch.Size) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).add(0.5).to(sample_input.device)

    is_channels = [dim in dims or dim - sample_input.dim() in dims for dim in range(sample_input.dim())]
    shape = [
        size if keep else min(size, _POSITIONS) for size, keep in zip(sample_input.shape, is_channels, strict=True)
    ]
    batch = 0.1 * random(shape)  # small, so that an epsilon counts, around a mean that is not zero
    try:
        twin = copy.deepcopy(module).double()
        for _, tensor in own_tensors(twin):
            tensor.copy_(random(tensor.shape))
        with _InDoublePrecision():
            outputs = [twin.train(mode)(batch.clone()) for mode in (True, False)]
            larger, largest = twin(1e4 * batch), twin(1e5 * batch)
    except Exception:  # a module that is no normalization may raise anything
        return None
    if not all(isinstance(out, Tensor) and out.shape == batch.shape for out in outputs):
        return None
    if (larger - largest).abs().max() > 1e-4 * larger.abs().max():
        return None  # no normalization depends on the scale of large inputs, and this spares comparisons
    for normalization, scaled in _candidates(twin, batch, dims):
        if all((out - scaled).abs().max() <= _TOLERANCE * out.abs().max() for out in outputs):
            return normalization
    return None


class _InDoublePrecision(TorchFunctionMode):
    """Lets modules that compute in single precision, whatever their input has, compute in double precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def double(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(double, args), **{name: double(value) for name, value in (kwargs or {}).items()})


def _candidates(module: nn.Module, batch: Tensor, dims: list[int]) -> Iterator[tuple[Normalization, Tensor]]:
    """Yields all normalizations that a module may be, and what each makes of a batch."""
    own = dict(own_tensors(module))
    names = [*own, None]
    affine = [(scale, bias) for scale, bias in itertools.product(names, names) if {scale, bias} >= {*own}]
    numbers = [value for value in vars(module).values() if isinstance(value, int) and value > 1]
    epsilons = [value for value in vars(module).values() if isinstance(value, float)]
    if getattr(module, "eps", 0.0) is None:  # nn.RMSNorm takes the smallest difference of the input's type
        epsilons.append(torch.finfo(batch.dtype).eps)
    epsilons = list(dict.fromkeys([*epsilons, *_EPSILONS]))
    for dim, groups in itertools.product(dims, dict.fromkeys([1, *numbers])):
        channels = batch.shape[dim]
        if channels % groups or channels == groups:
            continue
        for over_positions, centered, correction in itertools.product((False, True), (True, False), (0, 1)):
            if over_positions and (dim == -1 or correction):
                continue
            shape = Normalization(channels, dim, groups, over_positions, centered, correction, None)
            grouped, over = _grouped(batch, shape)
            mean = grouped.mean(over, keepdim=True) if centered else torch.zeros(())
            deviation = grouped - mean.to(grouped)
            width = channels // groups
            variance = deviation.square().mean(over, keepdim=True) * width / (width - correction)
            for eps in epsilons:
                for deviations in ((variance + eps).sqrt(), variance.sqrt() + eps):
                    normalized = (deviation / deviations).reshape(batch.shape)
                    for (scale, bias), offset in itertools.product(affine, (0, 1)):
                        factor = _along(own[scale], shape, batch) + offset if scale else 1.0
                        term = _along(own[bias], shape, batch) if bias else 0.0
                        found = Normalization(channels, dim, groups, over_positions, centered, correction, bias)
                        yield found, normalized * factor + term


def _grouped(x: Tensor, normalization: Normalization) -> tuple[Tensor, list[int]]:
    """Splits the channels of an input into groups; returns it, and the dimensions over which means are taken."""
    dim = normalization.dim % x.dim()
    grouped = x.unflatten(dim, (normalization.groups, normalization.channels // normalization.groups))
    return grouped, [dim + 1, *(range(dim + 2, grouped.dim()) if normalization.over_positions else ())]


def _along(values: Tensor, normalization: Normalization, x: Tensor) -> Tensor:
    """Shapes one value per channel so that it broadcasts to an input."""
    return values.reshape([-1] + [1] * (x.dim() - 1 - normalization.dim % x.dim()))


# --- masking -----------------------------------------------------------------------------------------------------


def normalize_over_kept(module: nn.Module, normalization: Normalization) -> None:
    """Makes a module normalize over the channels that `set_kept` chooses, at first all of them, in place.

    The choice is part of the module's state. At the other channels the output is the module's bias, whatever the input.

    Args:
        module: One that `recognize` knows.
        normalization: The result of `recognize`.
    """
    device = next((tensor.device for _, tensor in own_tensors(module)), None)
    module.register_buffer(KEPT, torch.ones(normalization.channels, device=device))
    setattr(module, _NORMALIZATION, normalization)
    setattr(module, _ALL_KEPT, True)
    module.register_forward_pre_hook(_before_forward, with_kwargs=True)
    module.register_forward_hook(_after_forward)
    module.register_load_state_dict_post_hook(_after_loading)


def set_kept(module: nn.Module, kept: Tensor) -> None:
    """Chooses the channels over which a module normalizes.

    Args:
        module: After `normalize_over_kept`.
        kept: (C,) - 1 or True for a channel that is kept, else 0. Each group of channels that keeps any keeps as many.
    """
    module.get_buffer(KEPT).copy_(kept)
    setattr(module, _ALL_KEPT, bool(kept.all()))


def restore(module: nn.Module) -> None:
    """Takes away what `normalize_over_kept` added to a module; does nothing to any other module."""
    if KEPT not in module._buffers:
        return
    for name in (KEPT, _NORMALIZATION, _ALL_KEPT):
        delattr(module, name)
    ours = (_before_forward, _after_forward, _after_loading)
    for hooks in (module._forward_pre_hooks, module._forward_hooks, module._load_state_dict_post_hooks):
        for number in [number for number, hook in hooks.items() if hook in ours]:
            del hooks[number]
            module._forward_pre_hooks_with_kwargs.pop(number, None)


def _after_loading(module: nn.Module, incompatible_keys: Any) -> None:
    setattr(module, _ALL_KEPT, bool(module.get_buffer(KEPT).all()))


def _before_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Gives masked channels the mean of the others, and scales all of them to the right variance."""
    if getattr(module, _ALL_KEPT):
        return None
    scaled_up = functools.partial(_scaled_up, module)
    if not args:  # called with the name of the input
        name, x = next(iter(kwargs.items()))
        return args, {**kwargs, name: replaced_input(scaled_up, x)}
    return (replaced_input(scaled_up, args[0]), *args[1:]), kwargs


def _scaled_up(module: nn.Module, x: Tensor) -> Tensor:
    normalization: Normalization = getattr(module, _NORMALIZATION)
    kept = module._buffers[KEPT]
    assert kept is not None
    if kept.device != x.device:  # a module without parameters is nowhere before it is called
        kept = module._buffers[KEPT] = kept.to(x.device)
    kept, number, scale = _numbers(normalization, kept, x)
    zeroed = x * _along((kept * scale).to(x.dtype), normalization, x)
    if not normalization.centered:
        return zeroed
    grouped, over = _grouped(zeroed, normalization)
    share = (kept.numel() / normalization.groups / number).to(x.dtype)  # of the mean that the zeros leave
    share = share.reshape([-1] + [1] * (x.dim() - normalization.dim % x.dim()))
    hidden, _ = _grouped(_along((1 - kept).to(x.dtype), normalization, x).expand_as(x[:1]), normalization)
    return torch.addcmul(grouped, hidden, grouped.mean(over, keepdim=True) * share).reshape(x.shape)


def _numbers(normalization: Normalization, kept: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers in the precision of an input, at least single precision.

    Returns:
        (C,) - 1 for a channel that is kept; (groups,) - how many these are; and (C,) - the factor that gives all
        channels the variance that the kept ones have.
    """
    kept = kept.to(torch.promote_types(x.dtype, torch.float32))
    width, correction = normalization.channels // normalization.groups, normalization.correction
    number = kept.view(-1, width).sum(1)
    scale = ((width - correction) / (number - correction).clamp_min(1)).sqrt()
    return kept, number.clamp_min(1), scale.repeat_interleave(width)


def _after_forward(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
    """Undoes the scale."""
    if getattr(module, _ALL_KEPT):
        return None
    return replaced_result(functools.partial(_scaled_down, module), out)


def _scaled_down(module: nn.Module, out: Tensor) -> Tensor:
    normalization: Normalization = getattr(module, _NORMALIZATION)
    kept = module._buffers[KEPT]
    assert kept is not None
    factor = 1 / _numbers(normalization, kept, out)[2]
    if normalization.bias is None:
        return out * _along(factor.to(out.dtype), normalization, out)
    bias = getattr(module, normalization.bias).flatten()
    bias, factor = (_along(part.to(out.dtype), normalization, out) for part in (bias * (1 - factor), factor))
    return torch.addcmul(bias, out, factor)
