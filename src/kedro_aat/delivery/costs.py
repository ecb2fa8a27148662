"""What models and their files cost, as far as an objective or a limit needs it; before training as well as after."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

from torch import nn

from kedro_aat.compression.filters.costs import num_macs, num_parameters
from kedro_aat.delivery.files import in_milliseconds
from kedro_aat.delivery.measurements import CandidateResult, Latencies
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.settings import ExportSettings
from kedro_aat.model_inputs import ModelInputs


class Costs(Latencies):
    """What a model and its file cost; None for what was not measured.

    Attributes:
        rate: Rate of the model, in [0, 1].
        parameters: Numbers in its parameters.
        macs: Multiply-accumulate operations per example.
        onnx_bytes: Size of its ONNX file.
        onnx_gzip_bytes: Size of the gzipped ONNX file.
    """

    rate: float
    parameters: int
    macs: int
    onnx_bytes: int | None = None
    onnx_gzip_bytes: int | None = None

    def __str__(self) -> str:
        parts = [f"{self.parameters:,} parameters", f"{self.macs:,} MACs"]
        parts += [f"{self.onnx_bytes:,} bytes"] if self.onnx_bytes is not None else []
        parts += [f"{time:.3g} ms at batch {size}" for size, time in (self.latency_ms or {}).items()]
        return ", ".join(parts)


Measured = Costs | CandidateResult


def costs_of(
    models: Sequence[nn.Module],
    rates: Sequence[float],
    inputs: ModelInputs,
    settings: ExportSettings,
    *,
    with_files: bool,
    batch_sizes: Sequence[int],
) -> list[Costs]:
    """What models cost; the times of all are measured in alternating turns.

    Args:
        models: Models as they would be exported.
        rates: Rate of each.
        inputs: Example inputs on the CPU, in any structure.
        settings: Says how latency is measured.
        with_files: Whether sizes of files are needed.
        batch_sizes: Batch sizes at which latency is needed; none if it is not.
    """
    with_files = with_files or bool(batch_sizes)
    files = [to_onnx(model, inputs, settings).SerializeToString() if with_files else b"" for model in models]
    latencies = measure_latency(
        files, inputs, batch_sizes=batch_sizes, num_threads=settings.num_threads, seconds=settings.latency_seconds
    )
    return [
        Costs(
            rate=rate,
            parameters=num_parameters(model),
            macs=num_macs(model, inputs),
            onnx_bytes=len(file) if file else None,
            onnx_gzip_bytes=len(gzip.compress(file, mtime=0)) if file else None,
            **in_milliseconds(latency),
        )
        for model, rate, file, latency in zip(models, rates, files, latencies, strict=True)
    ]


def cost_by(settings: ExportSettings, measured: Measured) -> float:
    """The number that the objective minimizes; what it needs must have been measured."""
    match settings.objective:
        case "rate":
            cost: float | None = 1 - measured.rate
        case "latency":
            cost = (measured.latency_fastest_ms or {})[settings.batch_sizes[0]]
        case "bytes":
            cost = measured.onnx_bytes
        case "gzip_bytes":
            cost = measured.onnx_gzip_bytes
        case "parameters":
            cost = measured.parameters
        case "macs":
            cost = measured.macs
    assert cost is not None
    return cost
