"""What the file of a later stage would gain by the objective, estimated before anything is trained."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.filters.costs import num_macs, num_parameters
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.measurements import Result
from kedro_aat.errors import ExportError
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.settings import ExportSettings, Objective

# A file gains if it costs less than this share of the file before. Latency is measured, and its ratio repeats within a
# few percent; the rest is counted, but less than that is not worth the epochs.
CLEAR_GAIN_IN_LATENCY = 0.95
CLEAR_GAIN = 0.98

# How a sentence about the costs of two files goes on after "would", and how a cost is written.
_WORDS: dict[Objective, tuple[str, str]] = {
    "latency": ("take {ratio:.3g}x as long", "{:.3f} ms"),
    "bytes": ("make the file {ratio:.3g}x as large", "{:,.0f} bytes"),
    "gzip_bytes": ("make the gzipped file {ratio:.3g}x as large", "{:,.0f} bytes"),
    "parameters": ("leave {ratio:.3g}x as many parameters", "{:,.0f}"),
    "macs": ("leave {ratio:.3g}x as many MACs", "{:,.0f}"),
    "rate": ("leave {ratio:.3g}x as much uncompressed", "{:.4f}"),
}


class Gain(Result):
    """Costs by the objective, of which less is better.

    Attributes:
        objective: The objective.
        before: Cost of the file of the stage before.
        after: Cost of the later stage's file, at its highest rate.
    """

    objective: Objective
    before: float
    after: float

    @property
    def is_clear(self) -> bool:
        """Whether the later stage's file is better by more than could be chance or is worth the epochs."""
        share = CLEAR_GAIN_IN_LATENCY if self.objective == "latency" else CLEAR_GAIN
        return self.after < share * self.before

    def __str__(self) -> str:
        words, form = _WORDS[self.objective]
        ratio = self.after / self.before if self.before else 1.0
        return f"{words.format(ratio=ratio)} ({form.format(self.after)} instead of {form.format(self.before)})"


def loss_of(
    before: nn.Module,
    rate_before: float,
    controller: ModelController,
    maximal_rate: float,
    inputs: Tensor,
    settings: ExportSettings,
    folder: Path | None = None,
) -> str | None:
    """Says what a later stage would do to the file, if that is no clear gain; None if it is one.

    The file is made without training, at the highest rate.

    Args:
        before: The model of the stage before, as it is exported.
        rate_before: Its rate, in [0, 1].
        controller: The later stage's controller, calibrated where that is needed; it stays as it is.
        maximal_rate: Highest rate of the search, in [0, 1).
        inputs: Example inputs, (B, ...).
        settings: Settings of the export, with the objective.
        folder: Keeps what was measured, so that a resumed run decides the same; None keeps nothing.
    """
    compressed = copy.deepcopy(controller)
    compressed.compression_rate = maximal_rate
    rates = [rate_before, compressed.achieved_rate]
    models = [model.cpu().eval() for model in (before, compressed.strip(do_copy=False))]

    def compute() -> Gain:
        costs = _costs(models, rates, inputs, settings)
        return Gain(objective=settings.objective, before=costs[0], after=costs[1])

    known = settings.model_dump(mode="json", exclude={"limits", "openvino"})
    finished = FinishedSteps(folder, export=known, rates=rates, shape=list(inputs.shape))
    try:
        gain = finished.result("gain", Gain, compute, *models)
    except ExportError as error:
        return f"would make a file that cannot be used ({error})"
    return None if gain.is_clear else f"would {gain}"


def _costs(
    models: Sequence[nn.Module], rates: Sequence[float], inputs: Tensor, settings: ExportSettings
) -> Sequence[float]:
    """What the objective minimizes, for each model."""
    match settings.objective:
        case "rate":
            return [1 - rate for rate in rates]
        case "parameters":
            return [num_parameters(model) for model in models]
        case "macs":
            return [num_macs(model, inputs) for model in models]
    files = [to_onnx(model, inputs).SerializeToString() for model in models]
    match settings.objective:
        case "bytes":
            return [len(file) for file in files]
        case "gzip_bytes":
            return [len(gzip.compress(file, mtime=0)) for file in files]
        case "latency":
            size = settings.batch_sizes[0]
            latencies = measure_latency(
                files,
                inputs,
                batch_sizes=[size],
                num_threads=settings.num_threads,
                seconds=settings.latency_seconds,
            )
            return [latency[size].fastest for latency in latencies]
