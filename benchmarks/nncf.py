"""Costs of NNCF 2.19 and of kedro-aat: training steps, bookkeeping, exported files, and masks made by a search.

NNCF 2.19 was measured once, with its two training loops, on a network of the same kind, on one core; it cannot be
installed together with a current PyTorch. This script measures kedro-aat. Steps are compared by the median ratio of
alternating blocks, latencies by their fastest turns.

    python benchmarks/nncf.py [--seconds 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs as a script

from benchmarks.digits import project_parameters, run
from benchmarks.nets import make
from benchmarks.resnet import cut, in_8_bits
from benchmarks.step_overhead import ROWS, bookkeeping, compare_steps
from kedro_aat.compression.filters.costs import num_parameters
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.onnx_file import to_onnx

STEPS = {  # row of step_overhead.py -> label, and a step with NNCF 2.19 relative to a bare step
    "sparsity 0.9": ("sparsity", "1.48x"),
    "filters 0.5, l2": ("filter pruning", "1.60x"),
    "quantization": ("int8", "2.97x"),
}
BATCH_SIZE = 32
FILTERS = 0.7  # the highest fraction of filters that NNCF's search masked on the digits


def targets_and_masks(seed: int) -> tuple[int, int]:
    """Count the rates that a search with sparsity requested, and the different masks that they led to."""
    parameters = project_parameters()
    parameters["aat"] |= {"compression": {"algorithm": "magnitude_sparsity"}, "second_stage": None}
    with tempfile.TemporaryDirectory() as folder:
        (search,) = run(parameters, ["frontier"], seed, 60, Path(folder))
    trained = search.trajectory.query("epoch > 0")
    return trained["requested_rate"].nunique(), trained["achieved_rate"].nunique()


def exported(seconds: float) -> list[tuple[str, str, str]]:
    """Sizes and latencies of the files of a network without 70 % of its filters; training changes neither."""
    model, images = make("digits")
    small = cut(model, images, FILTERS)
    models = model, small, in_8_bits(small, images, overflow_fix=True)
    files = [to_onnx(each, images) for each in models]
    times = measure_latency(files, images, seconds=seconds)
    parameters = [num_parameters(each) for each in models]
    num_bytes = [file.ByteSize() for file in files]
    ratios = [" / ".join(f"{taken[size].fastest / times[0][size].fastest:.2f}x" for size in (1, 64)) for taken in times]
    return [
        (
            f"{FILTERS:.0%} of the filters pruned: parameters in the file",
            "1.00x",
            f"{parameters[1] / parameters[0]:.2f}x",
        ),
        ("  its bytes", "1.00x", f"{num_bytes[1] / num_bytes[0]:.2f}x"),
        ("  its latency, batch 1 / 64", "0.98-1.03x / batch is fixed at 1", ratios[1]),
        ("  int8: bytes", "does not load in onnxruntime", f"{num_bytes[2] / num_bytes[0]:.2f}x"),
        ("  int8: latency, batch 1 / 64", "does not load in onnxruntime", ratios[2]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0, help="per comparison")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.getLogger("kedro_aat").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    table = Table("measured", "NNCF 2.19", "kedro-aat", box=None)
    for name, (label, theirs) in STEPS.items():
        _, _, ratio = compare_steps("digits", ROWS[name], BATCH_SIZE, arguments.seconds)
        table.add_row(f"training step relative to the bare model, {label}", theirs, f"{ratio:.2f}x")
    same_rate, new_rate = bookkeeping(30)
    table.add_row("bookkeeping per epoch", "83 ms, 68 of them for a figure", f"{statistics.median(same_rate):.0f} ms")
    table.add_row("  if the rate changes", "", f"{statistics.median(new_rate):.0f} ms")
    for row in exported(arguments.seconds):
        table.add_row(*row)
    targets, masks = targets_and_masks(arguments.seed)
    table.add_row("requested rates, different masks", "62, 39", f"{targets}, {masks}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
