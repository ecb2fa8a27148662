"""What the file of a later stage would gain by the objective, estimated before anything is trained."""

from __future__ import annotations

import copy

from torch import nn

from kedro_aat.compression.controller import ModelController
from kedro_aat.delivery.costs import cost_by, kept_costs
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.limits import highest_rate
from kedro_aat.delivery.on_device import fall_back
from kedro_aat.errors import DeviceError, ExportError
from kedro_aat.export.settings import ExportSettings, Objective
from kedro_aat.export.targets.registry import TARGETS
from kedro_aat.model_inputs import ModelInputs, named_tensors

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
    "device_latency": ("take {ratio:.3g}x as long on the device", "{:.3f} ms"),
    "device_memory": ("take {ratio:.3g}x as much memory on the device", "{:,.0f} bytes"),
}


def loss_of(
    before: nn.Module,
    rate_before: float,
    controller: ModelController,
    maximal_rate: float,
    inputs: ModelInputs,
    settings: ExportSettings,
    finished: FinishedSteps,
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
        finished: Keeps what was measured, so that a run that goes on decides the same.
    """
    compressed = copy.deepcopy(controller)
    compressed.compression_rate = highest_rate(compressed, maximal_rate)
    rates = [rate_before, compressed.achieved_rate]
    models = [model.cpu().eval() for model in (before, compressed.strip(do_copy=False))]

    shapes = {name: list(tensor.shape) for name, tensor in named_tensors(inputs)}
    shape = shapes.get("", shapes)
    try:
        try:
            costs = kept_costs("gain", models, rates, inputs, settings, finished, shape=shape)
        except DeviceError as error:
            settings = fall_back(settings, str(error))
            costs = kept_costs("gain", models, rates, inputs, settings, finished, shape=shape)
    except ExportError as error:
        return f"would make a file that cannot be used ({error})"
    old, new = (cost_by(settings, each) for each in costs)
    objective = settings.objective_kind
    is_noisy = objective in ("latency", "device_latency", "device_memory")
    if new < (CLEAR_GAIN_IN_LATENCY if is_noisy else CLEAR_GAIN) * old:
        return None
    words, form = _WORDS[objective]
    ratio = new / old if old else 1.0
    where = "" if settings.shipped == "onnx" else f" for {TARGETS[settings.shipped].title}"
    return f"would {words.format(ratio=ratio)}{where} ({form.format(new)} instead of {form.format(old)})"
