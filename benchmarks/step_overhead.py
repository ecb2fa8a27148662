"""Overhead of compression per training step, and of the loop per epoch.

Steps: blocks of bare and compressed steps alternate, and the result is the median ratio of the pairs, so that a busy
machine slows both equally. Bookkeeping: time per epoch outside the user's train and validate functions, including the
checkpoint; on the digits network.

    python benchmarks/step_overhead.py [--net digits] [--batch-sizes 32 128] [--seconds 20] [--only taylor]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs as a script

from benchmarks.nets import NETS, make
from kedro_aat import AdaptiveCompressionTrainingLoop
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import CompressionSettings, FilterPruning, MagnitudeSparsity, Quantization
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.training.settings import Distillation
from kedro_aat.training.teacher import Teacher

Step = Callable[[], None]
# A network in training mode, a batch and its labels -> a training step. The function may change the network.
MakeStep = Callable[[nn.Module, Tensor, Tensor], Step]

_BLOCK_SECONDS = 0.05  # of bare steps; the shorter, the more alike the neighbors of both
_LEAST_PAIRS = 7


def bare(model: nn.Module, inputs: Tensor, targets: Tensor) -> Step:
    """A training step like that of the default training function."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_fn(model(inputs), targets).backward()
        optimizer.step()

    return step


def compressed(settings: CompressionSettings, rate: float, model: nn.Module, inputs: Tensor, targets: Tensor) -> Step:
    """The same step on a model under compression, as in a search: the scheduler of its controller steps first."""
    controller = build_controller(model, settings, example_input=inputs)
    controller.disable_scheduler()
    controller.compression_rate = rate
    plain = bare(model, inputs, targets)

    def step() -> None:
        controller.scheduler.step()
        plain()

    return step


def distilled(model: nn.Module, inputs: Tensor, targets: Tensor) -> Step:
    """The bare step with a teacher that runs at each step, as with augmented examples."""
    loss_fn = nn.CrossEntropyLoss()
    teacher = Teacher(copy.deepcopy(model), Distillation(), loss_fn, nullcontext)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        teacher.loss(model(inputs), targets, teacher.answer(inputs)).backward()
        optimizer.step()

    return step


# Add a row for a new way of training. Its function creates what it needs besides the network, such as a teacher.
ROWS: dict[str, MakeStep] = {
    "sparsity 0.9": partial(compressed, MagnitudeSparsity(), 0.9),
    "sparsity 2:4": partial(compressed, MagnitudeSparsity(pattern="2:4"), 0.499),
    "filters 0.5, l2": partial(compressed, FilterPruning(), 0.5),
    "filters 0.5, taylor": partial(compressed, FilterPruning(importance="taylor"), 0.5),
    "quantization": partial(compressed, Quantization(), 0.999),
    "distillation": distilled,
}


def seconds(step: Step, num_steps: int) -> float:
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    return (time.perf_counter() - started) / num_steps


def compare_steps(name: str, make_step: MakeStep, batch_size: int, duration: float) -> tuple[float, float, float]:
    """Compare the steps of a row with bare steps.

    Args:
        name: Name of a network in `NETS`.
        make_step: Function of the row in `ROWS`.
        batch_size: Number of examples per step.
        duration: Seconds to measure.

    Returns:
        Median seconds of a bare step and of the row's step, and the median ratio of the pairs.
    """
    model, inputs = make(name, batch_size)
    targets = torch.randint(10, (batch_size,))
    model.train()
    steps = bare(copy.deepcopy(model), inputs, targets), make_step(model, inputs, targets)
    for step in steps:
        seconds(step, 3)
    num_steps = max(1, round(_BLOCK_SECONDS / seconds(steps[0], 3)))
    times: list[tuple[float, float]] = []
    deadline = time.perf_counter() + duration
    while len(times) < _LEAST_PAIRS or time.perf_counter() < deadline:
        order = (0, 1) if len(times) % 2 == 0 else (1, 0)
        measured = {index: seconds(steps[index], num_steps) for index in order}
        times.append((measured[0], measured[1]))
    ratio = statistics.median(after / before for before, after in times)
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    return before, after, ratio


def bookkeeping(num_epochs: int, num_steps: int = 10) -> tuple[list[float], list[float]]:
    """Measure the milliseconds per epoch outside the train and validate functions.

    Returns:
        One number per epoch that kept the rate, and one per epoch that began with a new rate and new masks.
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
        # From one training to the next, minus the time in the two functions.
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
    is_new_rate = [record.requested_rate != before.requested_rate for before, record in itertools.pairwise(trained)]
    later = list(zip(is_new_rate, spent[1:], strict=True))[2:]  # the first epochs load libraries
    return [value for is_new, value in later if not is_new], [value for is_new, value in later if is_new]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--net", choices=NETS, default="digits")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--seconds", type=float, default=20.0, help="per row")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--epochs", type=int, default=30, help="epochs to measure bookkeeping; 0 skips it")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table("measured", "bare", "kedro-aat", "ratio", box=None)
    rows = {name: make_step for name, make_step in ROWS.items() if arguments.only in name}
    for (name, make_step), batch_size in itertools.product(rows.items(), arguments.batch_sizes):
        before, after, ratio = compare_steps(arguments.net, make_step, batch_size, arguments.seconds)
        times = f"{1e3 * before:.3f} ms", f"{1e3 * after:.3f} ms"
        table.add_row(f"{arguments.net}, step of batch {batch_size}, {name}", *times, f"{ratio:.3f}x")
    if arguments.epochs:
        same_rate, new_rate = bookkeeping(arguments.epochs)
        table.add_row("bookkeeping per epoch, median", "", f"{statistics.median(same_rate):.2f} ms", "")
        table.add_row("  if the rate changes", "", f"{statistics.median(new_rate):.2f} ms", "")
    Console().print(table)


if __name__ == "__main__":
    main()
