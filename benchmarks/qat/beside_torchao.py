"""Our int8 training beside torchao's, on the same baselines: training step, accuracy, files, latency."""

from __future__ import annotations

import argparse
import collections
import copy
import functools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that the file runs as a script

from benchmarks.nets import RowAttention
from benchmarks.qat.engines import ENGINES, FLOAT, QAT_RATE, TRAINING_BATCH, Split, fit, training_step
from benchmarks.qat.files import BATCH_SIZES, Cells, compare_files, in_turns, judge
from benchmarks.qat.masks import compare_masks
from benchmarks.resnet import processor_flags
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.pipelines.digits.nodes import SplitSettings, split_digits

BASELINE_EPOCHS, BASELINE_RATE = 30, 0.02  # SGD at a constant rate; both networks have converged by then
QAT_EPOCHS = 10
STEPS_PER_TURN = 4

NETS: dict[str, Callable[[], nn.Module]] = {"cnn": ResidualCNN, "attention": RowAttention}


def compare_steps(model: nn.Module, data: Split, engines: Sequence[str], seconds: float) -> Cells:
    """An engine's step over the float32 step, both eager and both compiled: the medians of the turns' ratios."""
    inputs, targets = data["inputs"][:TRAINING_BATCH], data["targets"][:TRAINING_BATCH]
    steps: dict[str, Callable[[], object]] = {}
    cells: Cells = {"step, eager": {}, "step, compiled": {}}
    for row in cells:
        for name in engines:
            trained = ENGINES[name](copy.deepcopy(model), inputs).model
            call: Any = torch.compile(trained) if row == "step, compiled" else trained
            step = functools.partial(training_step(trained, call, QAT_RATE), inputs, targets)
            try:
                for _ in range(3):
                    step()
                steps[row + name] = step
            except Exception as error:  # the compiler's kinds of error are private
                cells[row][name] = type(error).__name__
    turns = in_turns(steps, seconds, STEPS_PER_TURN)
    for row, column in cells.items():
        for name in (name for name in engines if row + name in steps):
            ratio = statistics.median(turn[row + name] / turn[row + FLOAT] for turn in turns)
            column[name] = f"{ratio:.2f}x"
    return cells


def train(model: nn.Module, name: str, data: Split, num_epochs: int, seed: int) -> tuple[nn.Module, dict[str, str]]:
    """The finished model of an engine, and the CPU seconds that it took beside the training itself."""
    started = time.process_time()
    prepared = ENGINES[name](copy.deepcopy(model), data["inputs"][:TRAINING_BATCH])
    began = time.process_time()
    fit(prepared.model, data, num_epochs, QAT_RATE, seed)
    ended = time.process_time()
    finished = prepared.finish()
    seconds = {"CPU s to prepare": began - started, "CPU s to finish": time.process_time() - ended}
    return finished, {row: f"{value:.1f}" for row, value in seconds.items()}


def compare(net: str, engines: Sequence[str], seeds: Sequence[int], seconds: float, epochs: tuple[int, int]) -> Cells:
    """All rows of one network.

    Args:
        net: A name of `NETS`.
        engines: Names of `ENGINES`, the first of them `FLOAT`.
        seeds: Of initial weights and order of examples; files and times are those of the last.
        seconds: For the steps, and for each latency.
        epochs: Of the baseline, and of each engine after it.
    """
    table = pd.read_csv(Path(__file__).parents[2] / "data" / "01_raw" / "digits.csv")
    training, validation, _ = split_digits(table, SplitSettings())
    scores: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    cells: Cells = {}
    for seed in seeds:
        torch.manual_seed(seed)
        model = NETS[net]()
        fit(model.train(), training, epochs[0], BASELINE_RATE, seed)
        models: dict[str, nn.Module] = {}
        for name in engines:
            models[name], taken = train(model, name, training, epochs[1], seed)
            scores[name].append(judge(to_onnx(models[name], validation["inputs"]), validation))
            for row, text in taken.items():
                cells.setdefault(row, {})[name] = text
    for name, judged in scores.items():
        accuracies, losses = zip(*judged, strict=True)
        text = f"{statistics.mean(accuracies):.4f} ({' '.join(f'{value:.3f}' for value in accuracies)})"
        cells.setdefault("accuracy", {})[name] = text
        cells.setdefault("cross entropy", {})[name] = f"{statistics.mean(losses):.4f}"
    cells |= compare_files(models, validation["inputs"][: max(BATCH_SIZES)], seconds)
    cells |= compare_steps(model, training, engines, seconds)
    if "torchao PT2E" in engines:
        cells |= compare_masks(model, training)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES)[1:], default=list(ENGINES)[1:])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=10.0, help="for the steps, and for each latency")
    parser.add_argument("--epochs", type=int, nargs=2, default=[BASELINE_EPOCHS, QAT_EPOCHS], help="baseline, int8")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console = Console(width=180)
    console.print(f"The processor's flags: {processor_flags()}")
    for net in arguments.nets:
        names = [FLOAT, *arguments.engines]
        cells = compare(net, names, arguments.seeds, arguments.seconds, tuple(arguments.epochs))
        table = Table(net, *names, box=None)
        for row, column in cells.items():
            table.add_row(row, *(column.get(name, "") for name in names))
        console.print(table)


if __name__ == "__main__":
    main()
