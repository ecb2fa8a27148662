"""Measures how the time of a convolution depends on its number of channels: python -m benchmarks.channels

Two convolutions with ReLU, from C to C channels of 16x16 pixels, in float32 and int8, run in ExecuTorch, LiteRT and
ONNX Runtime at batch 1 on one thread. All numbers of channels take turns. The table has the fastest turns.
`round_to` of filter pruning is worth it where a number of channels is as slow as a larger one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.target_runtimes import RUNTIMES, Bind, Exported, fastest
from benchmarks.targets import cpu
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.export.measure import arrays_of

SIDE = 16


def network(channels: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, channels, 1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 1)).eval()


def times(runtime: str, precision: str, counts: Sequence[int], seconds: float) -> dict[str, float]:
    """Milliseconds for each number of channels."""
    inputs = torch.rand(8, 1, SIDE, SIDE)
    binds: dict[str, Bind] = {}
    for count in counts:
        torch.manual_seed(0)
        model = network(count)
        if precision == "int8":
            controller = QuantizationController(model)
            controller.calibrate([inputs])
            model = controller.strip().eval()
        written = RUNTIMES[runtime](Exported(model, inputs))
        assert written.bind is not None
        binds[str(count)] = written.bind
    return fastest(binds, arrays_of(inputs, 1), seconds * len(counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[*range(13, 21), *range(29, 37)])
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=["onnx", "executorch", "litert"])
    parser.add_argument("--seconds", type=float, default=1.0, help="time to measure each number of channels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu()}; torch {torch.__version__}; microseconds\n")
    print(f"| runtime | precision | {' | '.join(map(str, arguments.counts))} |")
    print(f"| --- | --- |{' ---: |' * len(arguments.counts)}")
    for runtime in arguments.runtimes:
        for precision in ("float32", "int8"):
            found = times(runtime, precision, arguments.counts, arguments.seconds)
            cells = " | ".join(f"{1000 * found[str(count)]:.0f}" for count in arguments.counts)
            print(f"| {runtime} | {precision} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
