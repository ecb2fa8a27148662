"""The derivative of a metric by the sums that it is computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Largest change of a metric along its own sums, relative to it or to the changes that cancel: twice as many examples of
# the same kind leave a metric as it is. Some metrics compute in single precision.
TOLERANCE = 1e-5


def value_and_gradients(
    metric: Any, sums: Mapping[str, Tensor], states_of: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> tuple[float, dict[str, Tensor], bool] | None:
    """Computes a metric from sums over examples, and its derivatives.

    Args:
        metric: A metric without further use; its states are overwritten.
        sums: The sums over all examples, in double precision.
        states_of: Function from the sums to the metric's states, differentiable.

    Returns:
        The metric; its derivative by each sum, NaN where there is none; and whether `compute` returned a constant, so
        that nothing is known of other sums. None if the metric is no finite number, or if twice the sums give another
        metric in the first order, as with a metric that is a sum itself.
    """
    leaves = {name: each.double().clone().requires_grad_() for name, each in sums.items()}
    metric.compute_with_cache = False
    metric.sync_on_compute = metric._to_sync = False
    metric._update_count = 1  # else it warns that it was never updated
    with torch.enable_grad():
        for name, state in states_of(leaves).items():
            setattr(metric, name, state)
        try:
            value = metric.compute()
        except Exception:  # of a single example, or of states that the metric's class did not expect
            return None
        if not isinstance(value, Tensor) or value.numel() != 1 or not bool(value.isfinite().all()):
            return None
        is_constant = not value.requires_grad
        gradients: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if not is_constant:
            gradients = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
    found = {
        name: torch.zeros_like(leaf) if gradient is None else gradient.detach()
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }
    # A sum of 0 has no influence, whatever the derivative is.
    changes = torch.cat([torch.where(sums[name] == 0, 0.0, found[name] * sums[name]).flatten() for name in found])
    # Where each change is 0 but for rounding, as in a perfect F1, it is small beside the metric.
    size = max(float(changes.abs().sum()), abs(float(value.detach())), 1e-30)
    if not abs(float(changes.sum())) <= TOLERANCE * size:
        return None
    return float(value.detach()), found, is_constant
