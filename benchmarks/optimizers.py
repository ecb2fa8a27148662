"""Time of an optimizer's step, fused and not, on one thread of the CPU: the ratio of alternating steps.

python -m benchmarks.optimizers
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.nets import NETS, make
from benchmarks.scale.meter import ratios_to_first

_ROUNDS = 51
_OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {}),
    "SGD, momentum": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 5e-4}),
    "Adam": (torch.optim.Adam, {}),
    "AdamW": (torch.optim.AdamW, {}),
}


def _step(net: str, name: str, more: dict[str, Any]) -> Callable[[], object]:
    model, inputs = make(net, 4)
    model(inputs).square().mean().backward()
    optimizer, arguments = _OPTIMIZERS[name]
    step: Callable[[], object] = optimizer(model.parameters(), lr=1e-5, **arguments, **more).step
    return step


def main() -> None:
    torch.set_num_threads(1)
    table = Table("network", "optimizer", "fused", "foreach", box=None, title="time against torch's default on the CPU")
    for net in NETS:
        for name in _OPTIMIZERS:
            steps = [_step(net, name, more) for more in ({}, {"fused": True}, {"foreach": True})]
            _, fused, foreach = ratios_to_first(steps, _ROUNDS)
            table.add_row(net, name, f"{fused:.2f}x", f"{foreach:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
