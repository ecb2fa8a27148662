"""What compression costs per training step, and the loop per epoch, on the digits network.

Steps: blocks of bare steps and of steps with masks alternate, and the medians of the blocks' times are compared, so
that a busy machine slows both alike. Bookkeeping: the time that the loop spends in an epoch outside of the user's
train and validate functions, checkpoint included.

    python benchmarks/step_overhead.py [--pairs 60] [--steps 20] [--epochs 30] [--rate 0.9]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from kedro_aat import AdaptiveCompressionTrainingLoop
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.pipelines.digits.model import ResidualCNN


def step_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """A training step as the default training function makes it."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_fn(model(inputs), targets).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], num_steps: int) -> float:
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    return (time.perf_counter() - started) / num_steps


def compare_steps(num_pairs: int, num_steps: int, rate: float, batch_size: int) -> tuple[float, float, float]:
    """Median milliseconds of a bare and of a masked step, and the median ratio of the pairs."""
    torch.manual_seed(0)
    inputs, targets = torch.rand(batch_size, 1, 8, 8), torch.randint(10, (batch_size,))
    bare = ResidualCNN()
    masked = copy.deepcopy(bare)
    build_controller(masked, MagnitudeSparsity()).compression_rate = rate
    steps = step_of(bare, inputs, targets), step_of(masked, inputs, targets)
    for step in steps:
        seconds(step, num_steps)
    times: list[tuple[float, float]] = []
    for pair in range(num_pairs):
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        measured = {index: seconds(steps[index], num_steps) for index in order}
        times.append((measured[0], measured[1]))
    ratio = statistics.median(after / before for before, after in times)
    before, after = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    return before, after, ratio


def bookkeeping(num_epochs: int, num_steps: int = 10) -> tuple[list[float], list[float]]:
    """Milliseconds an epoch that were spent outside of the train and validate functions.

    Returns:
        Of the epochs that went on at their rate, and of those that began with another rate, in which the masks are
        made anew.
    """
    model = ResidualCNN()
    controller = build_controller(model, MagnitudeSparsity())
    inputs, targets = torch.rand(32, 1, 8, 8), torch.randint(10, (32,))
    inside, began = 0.0, 0.0
    spent: list[float] = []

    def configure() -> tuple[torch.optim.Optimizer, None]:
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), None

    def train(*_: object, optimizer: torch.optim.Optimizer, **__: object) -> float:
        nonlocal inside, began
        started = time.perf_counter()
        # From one training to the next, less what was spent in the two functions.
        spent.append(1e3 * (started - began - inside))
        for _step in range(num_steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        began, inside = started, time.perf_counter() - started
        return 0.0

    def validate(model: nn.Module, epoch: int) -> float:
        nonlocal inside
        started = time.perf_counter()
        model(inputs)
        inside += time.perf_counter() - started
        return 0.9 if epoch % 3 == 0 else 0.5  # within budget at every third epoch, so that the rate changes then

    config = {
        "accuracy_aware_training": {
            "mode": "adaptive_compression_level",
            "params": {
                "maximal_absolute_accuracy_degradation": 0.1,
                "maximal_total_epochs": num_epochs,
                "initial_compression_rate_step": 0.8 / num_epochs,
                "minimal_compression_rate_step": 0.1 / num_epochs,
            },
        }
    }
    loop = AdaptiveCompressionTrainingLoop(config, controller, 0.9, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        loop.run(model, train, validate, configure, log_dir=folder)
    trained = [record for record in loop.history if record.trained]
    is_new = [now.requested_rate != before.requested_rate for before, now in itertools.pairwise(trained)]
    later = list(zip(is_new, spent[1:], strict=True))[2:]  # the first epochs load libraries
    return [value for new, value in later if not new], [value for new, value in later if new]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table("measured", "bare", "kedro-aat", "ratio", box=None)
    for batch_size in (32, 128):
        before, after, ratio = compare_steps(arguments.pairs, arguments.steps, arguments.rate, batch_size)
        table.add_row(
            f"training step, batch {batch_size}, rate {arguments.rate}",
            f"{before:.3f} ms",
            f"{after:.3f} ms",
            f"{ratio:.3f}x",
        )
    same_rate, new_rate = bookkeeping(arguments.epochs)
    table.add_row("bookkeeping per epoch, median", "", f"{statistics.median(same_rate):.2f} ms", "")
    table.add_row("  with a change of rate", "", f"{statistics.median(new_rate):.2f} ms", "")
    Console().print(table)


if __name__ == "__main__":
    main()
