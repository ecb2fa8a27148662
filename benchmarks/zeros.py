"""What zeros gain: bytes of the ONNX file, plain and gzipped, and latency in onnxruntime, with and without a pattern.

Weights are random, which affects none of the three. The models take turns in onnxruntime, on one thread, so that a
busy machine slows all of them equally; only the ratios are meaningful.

    python benchmarks/zeros.py [--net resnet18] [--seconds 20]
"""

from __future__ import annotations

import argparse
import copy
import gzip
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs as a script

from benchmarks.nets import NETS, make
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.onnx_file import to_onnx

BATCH_SIZES = (1, 64)
CASES = {
    "dense": (MagnitudeSparsity(), 0.0),
    "dense, again": (MagnitudeSparsity(), 0.0),  # shows how far the ratio of equal files is from 1
    "50 % zeros": (MagnitudeSparsity(), 0.5),
    "90 % zeros": (MagnitudeSparsity(), 0.9),
    "2:4": (MagnitudeSparsity(pattern="2:4"), 0.998),
}


def with_zeros(model: nn.Module, images: Tensor, settings: MagnitudeSparsity, rate: float) -> tuple[bytes, float]:
    """Return the ONNX file, and the fraction of zeros in it."""
    controller = build_controller(copy.deepcopy(model), settings)
    controller.compression_rate = rate
    return to_onnx(controller.strip(), images).SerializeToString(), controller.compression_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--net", choices=NETS, default="resnet18")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    model, images = make(arguments.net)
    made = [with_zeros(model, images, settings, rate) for settings, rate in CASES.values()]
    files = [file for file, _ in made]
    times = measure_latency(files, images, batch_sizes=BATCH_SIZES, seconds=arguments.seconds)
    compressed = [len(gzip.compress(file, mtime=0)) for file in files]
    batches = [f"batch {size}" for size in BATCH_SIZES]
    table = Table(arguments.net, "zeros", "ONNX bytes", "gzipped", "of dense", *batches, box=None)
    for name, (file, rate), small, taken in zip(CASES, made, compressed, times, strict=True):
        table.add_row(
            name,
            f"{rate:.3f}",
            f"{len(file):,}",
            f"{small:,}",
            f"{small / compressed[0]:.2f}x",
            *(f"{taken[size].fastest / times[0][size].fastest:.3f}x" for size in BATCH_SIZES),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
