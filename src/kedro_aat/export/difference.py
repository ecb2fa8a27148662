"""How far the outputs of a file are from those of its model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from kedro_aat.errors import ExportError


def largest_difference(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference among all outputs; NaN if one of them is not finite.

    Args:
        got: Name -> output of the file.
        expected: Name -> output of the model.

    Returns:
        For floating-point numbers, the largest absolute difference as a fraction of the model's largest absolute
        output; for whole numbers and truth values, the share of those that differ.

    Raises:
        ExportError: If names or shapes differ.
    """
    if list(got) != list(expected):
        raise ExportError(f"has the outputs {', '.join(got)}, but the model has {', '.join(expected)}.")
    for name, tensor in expected.items():
        if got[name].shape != tensor.shape:
            raise ExportError(
                f"gives {name} a shape of {tuple(got[name].shape)}, but the model gives {tuple(tensor.shape)}."
            )
    # Unlike np.max, max() can ignore a NaN.
    return float(np.max([difference(got[name], tensor) for name, tensor in expected.items()]))


def difference(got: Tensor, expected: Tensor) -> float:
    """As `largest_difference`, of two tensors of one shape; 0 if they are empty."""
    if expected.numel() == 0:
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return float((got != expected).double().mean())
    largest = float(expected.detach().abs().max())
    absolute = float((got - expected).detach().abs().max())
    return absolute / largest if largest > 0 else absolute
