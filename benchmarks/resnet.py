"""Size and latency of a network that is cut, quantized, or both: half of the filters, int8, onnxruntime, one thread.

A network of ResNet-18's size at 64x64 pixels, with random weights: sizes and times do not depend on training. The
baseline is the lean ONNX file of the dense model in full precision. The models take turns, so that a busy machine
slows all of them equally; only the ratios are meaningful.

The ratios of int8 depend on the CPU's instructions, so the script prints those that matter.

    python benchmarks/resnet.py [--net resnet18] [--rate 0.5] [--round-to 1] [--seconds 20]
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import onnx
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs as a script

from benchmarks.nets import NETS, make
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import FilterPruning, Quantization
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.onnx_file import to_onnx

BATCH_SIZES = (1, 64)
# CPU flags. Without any of them, 8-bit products are added up in 16 bits, at little more than the speed of float32.
INTEGER_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")


def cut(model: nn.Module, images: Tensor, rate: float, round_to: int = 1) -> nn.Module:
    """Cut a fraction of the filters."""
    settings = FilterPruning(rate_of="filters", round_to=round_to)
    controller = build_controller(copy.deepcopy(model), settings, example_input=images)
    controller.compression_rate = rate
    return controller.strip()


def in_8_bits(model: nn.Module, images: Tensor, *, overflow_fix: bool) -> nn.Module:
    """Quantize a model to int8, with ranges calibrated on the images."""
    settings = Quantization(overflow_fix=overflow_fix)
    return build_controller(copy.deepcopy(model), settings, example_input=images).strip()


def variants(model: nn.Module, images: Tensor, rate: float, round_to: int) -> dict[str, onnx.ModelProto]:
    """Export the ONNX files to compare; the first is the baseline."""
    small = cut(model, images, rate, round_to)
    models = {
        "dense, float32": model,
        f"cut {rate:g}, float32": small,
        "dense, int8": in_8_bits(model, images, overflow_fix=True),
        f"cut {rate:g}, int8": in_8_bits(small, images, overflow_fix=True),
        f"cut {rate:g}, int8, no overflow fix": in_8_bits(small, images, overflow_fix=False),
    }
    return {name: to_onnx(each, images) for name, each in models.items()}


def processor_flags() -> str:
    """The instructions of this CPU that matter for int8."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return "unknown"
    return " ".join(flag for flag in INTEGER_FLAGS if flag in words) or "none of " + " ".join(INTEGER_FLAGS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--net", choices=NETS, default="resnet18")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    model, images = make(arguments.net)
    files = variants(model, images, arguments.rate, arguments.round_to)
    times = measure_latency(list(files.values()), images, batch_sizes=BATCH_SIZES, seconds=arguments.seconds)
    sizes = [file.ByteSize() for file in files.values()]
    table = Table("model", "bytes", "ratio", *(f"batch {size}, ms" for size in BATCH_SIZES), "ratios", box=None)
    for name, num_bytes, taken in zip(files, sizes, times, strict=True):
        table.add_row(
            name,
            f"{num_bytes:,}",
            f"1/{sizes[0] / num_bytes:.1f}",
            *(f"{taken[size].fastest:.2f}" for size in BATCH_SIZES),
            "  ".join(f"{taken[size].fastest / times[0][size].fastest:.3f}x" for size in BATCH_SIZES),
        )
    console = Console()
    console.print(f"CPU flags: {processor_flags()}")
    console.print(table)


if __name__ == "__main__":
    main()
