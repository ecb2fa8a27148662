"""Our int8 training beside torchao's, on the same baselines: training step, accuracy, files, latency.

Two networks learn the digits: the residual CNN of this repository, and a small attention network of linear layers.
From each baseline every engine trains 10 epochs with the same optimizer and the same order of examples. Steps are
compared in alternating turns, by the median ratio to the float32 step: eager to eager, compiled to compiled. All files
come from the same exporter; latencies are the fastest of alternating turns, on one thread. The last rows show
whether a mask over half of the weights holds while the model trains in int8.

torchao is not a dependency. To compare with it:

    pip install torchao==0.18.0
    python benchmarks/qat/beside_torchao.py [--nets cnn attention] [--seeds 0 1 2] [--seconds 10]

Without it: --engines kedro-aat. Measured with torch 2.13.0, torchao 0.18.0, onnxruntime 1.32.0, on an AMD EPYC with
AVX-512 VNNI (family 25, model 17), 3 seeds, 4 seconds for each comparison. Ratios are to float32; a `.pt2` file carries
stack traces of its export, here about 75 KB:

    cnn                        float32        kedro-aat       torchao PT2E    torchao quantize_
    step, eager                1.00x          1.48x           1.54x           1.10x
    step, compiled             1.00x          1.89x           fails           1.07x
    CPU s to prepare, finish   0.0, 0.0       0.0, 0.0        2.0, 15.0       0.0, 0.0
    accuracy                   0.9954         0.9954          0.9954          0.9954
    ONNX, bytes                695,750        185,151         181,675         696,632
    ONNX, int8 weights         0              172,824         172,824         0
    onnxruntime, integer       -              9 conv, 1 fc,   6 conv          -
                                              2 add
    onnxruntime, float         9 conv, 1 fc   1 add           3 conv+add,     9 conv, 1 fc
                                                              1 fc
    ONNX, batch 1              0.049 ms       0.64x           2.11x           1.21x
    ONNX, batch 64             2.481 ms       0.42x           1.74x           1.02x
    .pt2, bytes                898,971        636,507         1,142,547       907,099
    .pt2 eager, batch 1, 64    0.75, 4.46 ms  2.01x, 1.32x    2.25x, 1.49x    1.41x, 1.11x
    .pt2 compiled, batch 1, 64 0.57, 2.81 ms  1.04x, 1.05x    1.16x, 0.55x    1.00x, 1.00x
    zeros, mask by hooks                      50%             0%
    zeros, mask in the graph                  (the same)      convert_pt2e fails

    attention                  float32        kedro-aat       torchao PT2E    torchao quantize_
    step, eager                1.00x          1.67x           1.46x           2.98x
    step, compiled             1.00x          1.76x           fails           1.35x
    CPU s to prepare, finish   0.0, 0.0       0.0, 0.0        0.6, 0.5        0.0, 0.0
    accuracy                   0.9712         0.9712          0.9703          0.9712
    ONNX, bytes                279,359        91,252          86,709          288,093
    ONNX, int8 weights         0              66,688          66,688          0
    onnxruntime, integer       -              14 fc           13 fc           -
    ONNX, batch 1              0.058 ms       1.17x           1.07x           2.55x
    ONNX, batch 64             1.466 ms       0.80x           0.76x           1.52x
    .pt2, bytes                469,943        592,967         696,751         448,951
    .pt2 eager, batch 1, 64    2.46, 11.9 ms  3.49x, 1.85x    3.87x, 2.22x    11.0x, 3.91x
    .pt2 compiled, batch 1, 64 0.30, 4.00 ms  1.33x, 0.96x    4.37x, 0.89x    1.52x, 1.13x
    zeros, mask by hooks                      50%             0%
    zeros, mask in the graph                  (the same)      no int8 weights

Every file above takes any batch size. Why ours stays, although torchao's PT2E is as accurate and its ONNX files hold
the same int8 weights: on the CNN its file takes 1.7 to 2.1 times as long in onnxruntime as float32, ours 0.4 to 0.6
times. Its quantizer rounds where inductor fuses, not onnxruntime: a convolution before a residual addition stays
float. It trains a captured graph, on which our masks do not hold and from which no filter can be cut; conversion takes
15 s for each candidate, and another share of int8 layers needs another capture. What torchao does better: inductor
computes its CNN's `.pt2` in integers (0.55x at batch 64, where ours gains nothing), and on linear layers its ONNX
file is the faster one by 5 to 9%. `quantize_` is for `nn.Linear` alone, and its weights are float32 in an ONNX file.
The compiled step of PT2E fails in torch: the fake kernel of `_fused_moving_avg_obs_fq_helper` has a wrong shape.
See docs/decisions/quantization-engine.md.
"""

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
    preparation = time.process_time() - started
    fit(prepared.model, data, num_epochs, QAT_RATE, seed)
    started = time.process_time()
    finished = prepared.finish()
    costs = {"CPU s to prepare": preparation, "CPU s to finish": time.process_time() - started}
    return finished, {row: f"{value:.1f}" for row, value in costs.items()}


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
            models[name], costs = train(model, name, training, epochs[1], seed)
            scores[name].append(judge(to_onnx(models[name], validation["inputs"]), validation))
            for row, text in costs.items():
                cells.setdefault(row, {})[name] = text
    for name, results in scores.items():
        accuracies, losses = zip(*results, strict=True)
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
