"""A training step under masks against a bare one, on the digits network and ResNet-18."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.scale.bars import Row
from benchmarks.step_overhead import ROWS, compare_steps

_SECONDS = 30.0


def rows(size: float) -> Iterator[Row]:
    """Measures batches of 32.

    Args:
        size: Factor on the time of each row.
    """
    for net in ("digits", "resnet18"):
        for name in ("sparsity 0.9", "filters 0.5, l2"):
            _, _, ratio = compare_steps(net, ROWS[name], 32, _SECONDS * size)
            yield Row(f"{net}, batch 32: {name} against bare", ratio, "x", 1.03)
