"""BatchNorms whose statistics are those of the whole batch, on any device; `torch.nn.SyncBatchNorm` needs a GPU."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

_ARGUMENTS = inspect.signature(F.batch_norm)


def has_norms(model: nn.Module, *, in_evaluation: bool = False) -> bool:
    """Whether a model has BatchNorms that take the statistics of a batch.

    Args:
        model: The model.
        in_evaluation: Whether only those count that do so in evaluation mode, too.
    """
    return any(
        isinstance(each, _BatchNorm)
        and not isinstance(each, nn.SyncBatchNorm)  # it does the same by itself
        and not (in_evaluation and each.track_running_stats)
        for each in model.modules()
    )


class SynchronizedNorms(TorchFunctionMode):
    """Computes every `batch_norm` of a training step with the statistics of the batches of all ranks together.

    A function mode leaves the modules as they are, also those that call `batch_norm` in a `forward` of their own.

    Attributes:
        counts: Whether this rank's batch counts; otherwise it is only normalized.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        bound = _ARGUMENTS.bind(*args, **(kwargs or {}))
        bound.apply_defaults()
        given = bound.arguments
        if not given["training"]:
            return func(*args, **(kwargs or {}))
        return _Synchronized.apply(  # type: ignore[no-untyped-call]  # torch's
            given["input"],
            given["weight"],
            given["bias"],
            given["running_mean"],
            given["running_var"],
            given["momentum"],
            given["eps"],
            self.counts,
        )


class _Synchronized(torch.autograd.Function):
    """`F.batch_norm` in training mode, with one collective operation forward and one backward."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,  # (B, C, ...)
        weight: Tensor | None,  # (C,)
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        counts: bool,
    ) -> Tensor:
        dims = [dim for dim in range(inputs.dim()) if dim != 1]
        number = inputs.numel() // inputs.shape[1] if counts else 0
        local_var, local_mean = torch.var_mean(inputs.double(), dims, correction=0)
        own = torch.cat([local_mean, local_var, local_mean.new_tensor([number])])
        parts = own.new_empty(dist.get_world_size(), len(own))
        dist.all_gather(list(parts.unbind()), own)
        means, variances, numbers = (*parts[:, :-1].chunk(2, 1), parts[:, -1:])  # one row per rank
        total = numbers.sum()
        # Chan et al., Updating formulae and a pairwise algorithm for computing sample variances (1979), for many parts
        mean = (numbers * means).sum(0) / total
        variance = (numbers * (variances + (means - mean).square())).sum(0) / total
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = variance * total / (total - 1).clamp(min=1)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        dtype = torch.float32 if inputs.dtype in (torch.float16, torch.bfloat16) else inputs.dtype
        mean, variance = mean.to(dtype), variance.to(dtype)
        ctx.save_for_backward(inputs, weight, mean, (variance + eps).rsqrt(), total)
        ctx.dims, ctx.counts = dims, counts
        return F.batch_norm(inputs, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, scale, total = ctx.saved_tensors
        shape = [1, -1] + [1] * (inputs.dim() - 2)
        gradient = gradients[0].to(mean.dtype)
        normalized = (inputs - mean.view(shape)) * scale.view(shape)
        own = torch.stack([gradient.sum(ctx.dims), (gradient * normalized).sum(ctx.dims)])
        sums = own.double()
        dist.all_reduce(sums)
        means = (sums / total).to(mean.dtype)
        to_inputs = torch.zeros_like(inputs)
        if ctx.counts:
            centered = gradient - means[0].view(shape) - normalized * means[1].view(shape)
            factor = scale if weight is None else scale * weight
            to_inputs = (centered * factor.view(shape)).to(inputs.dtype)
        to_weight = own[1].to(weight.dtype) if ctx.needs_input_grad[1] else None
        to_bias = own[0].to(mean.dtype) if ctx.needs_input_grad[2] else None
        return to_inputs, to_weight, to_bias, None, None, None, None, None
