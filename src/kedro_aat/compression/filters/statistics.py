"""What filter pruning makes of each layer, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from kedro_aat.compression.filters.costs import CutCosts, LayerCost
from kedro_aat.compression.filters.cutting import Cut, axes

if TYPE_CHECKING:
    import pandas as pd

Shape = tuple[int, ...]


@dataclass(frozen=True)
class CutLayer:
    """One layer before and after the cut; the shape is that of its first parameter, or () without one."""

    name: str
    shape_before: Shape
    shape_after: Shape
    before: LayerCost
    after: LayerCost

    @property
    def rate(self) -> float:
        """The share of its own parameters that is removed, in [0, 1)."""
        return 1 - self.after.parameters / self.before.parameters if self.before.parameters else 0.0


@dataclass(frozen=True)
class FilterStatistics:
    """What became of every layer, and of the whole model.

    Attributes:
        algorithm: Its name.
        rate_of: What `rate` is the removed share of.
        rate: In [0, 1).
        before: The whole model: filters, parameters and MACs.
        after: Likewise, once it is cut.
        layers: All with parameters or operations of their own.
        not_cut: Layer -> why none or not all of its outputs can be cut.
    """

    algorithm: str
    rate_of: str
    rate: float
    before: Mapping[str, int]
    after: Mapping[str, int]
    layers: Sequence[CutLayer]
    not_cut: Mapping[str, str]

    def as_frame(self) -> pd.DataFrame:
        """One row a layer: name, shape of its first parameter, parameters and MACs, each also before the cut."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": [layer.name for layer in self.layers],
                "shape_before": ["x".join(map(str, layer.shape_before)) for layer in self.layers],
                "shape": ["x".join(map(str, layer.shape_after)) for layer in self.layers],
                "rate": [layer.rate for layer in self.layers],
                "parameters_before": [layer.before.parameters for layer in self.layers],
                "parameters": [layer.after.parameters for layer in self.layers],
                "macs_before": [layer.before.macs for layer in self.layers],
                "macs": [layer.after.macs for layer in self.layers],
            }
        )

    def to_str(self) -> str:
        """A table for a terminal, the totals above it and what is not cut below."""
        totals = ", ".join(f"{kind} {self.before[kind]} -> {self.after[kind]}" for kind in self.before)
        table = self.as_frame().to_string(index=False, float_format=lambda rate: f"{rate:.4f}")
        reasons = "".join(f"\nnot cut: {layer}: {reason}" for layer, reason in self.not_cut.items())
        return f"{self.algorithm}: {self.rate:.4f} of the {self.rate_of} are removed ({totals})\n{table}{reasons}"


def statistics_of(
    algorithm: str,
    model: nn.Module,
    costs: CutCosts,
    rate_of: str,
    removed: NDArray[np.int64],
    plan: Sequence[Cut],
    not_cut: Mapping[str, str],
) -> FilterStatistics:
    """Puts the table together.

    Args:
        algorithm: Its name.
        model: Not cut.
        costs: Of that model.
        rate_of: `filters`, `parameters` or `macs`.
        removed: (groups,), units removed of each.
        plan: That removes them.
        not_cut: Layer -> why its outputs are not cut.
    """
    nothing = np.zeros_like(removed)
    steps: dict[str, list[Cut]] = {}
    for step in plan:
        steps.setdefault(step.layer, []).append(step)
    layers = []
    for name, before, after in zip(costs.layers, costs.of_layers(nothing), costs.of_layers(removed), strict=True):
        module = model.get_submodule(name)
        parameter, shape = next(((key, list(p.shape)) for key, p in module.named_parameters(recurse=False)), ("", []))
        cut = list(shape)
        for step in steps.get(name, []):
            for key, dim in axes(module)[step.kind]:
                if key == parameter:
                    cut[dim] = len(step.kept)
        layers.append(CutLayer(name, tuple(shape), tuple(cut), before, after))
    kinds = ("filters", "parameters", "macs")
    return FilterStatistics(
        algorithm=algorithm,
        rate_of=rate_of,
        rate=costs.rate(rate_of, removed),
        before={kind: costs.total(kind) for kind in kinds},
        after={kind: costs.left(kind, removed) for kind in kinds},
        layers=layers,
        not_cut=not_cut,
    )
