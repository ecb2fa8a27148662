"""What the compressed model of a script costs beside the original one, and whether it keeps limits."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.controller import ModelController
from kedro_aat.delivery.files import files_of, measure
from kedro_aat.delivery.limits import excess_over
from kedro_aat.delivery.measurements import Measurements, Result
from kedro_aat.errors import ModelError
from kedro_aat.export.settings import ExportSettings, Limits
from kedro_aat.messages import doing
from kedro_aat.model_inputs import map_tensors, num_examples, take_examples


class FileCosts(Result):
    """The original and the compressed model with their ONNX files, measured in alternating turns.

    Attributes:
        original: The model at rate 0, as it is exported.
        compressed: The model that `run` returned, as `export_model` writes it.
    """

    original: Measurements
    compressed: Measurements

    def exceeded(self, limits: Limits) -> list[str]:
        """A sentence for each limit that the compressed model exceeds.

        Args:
            limits: The limits; the batch sizes of their latencies must have been measured.
        """
        return [words for words, _ in excess_over(limits, self.compressed)]

    def __str__(self) -> str:
        before, after = self.original, self.compressed
        counts = {"parameters": "parameters", "MACs": "macs", "ONNX file, bytes": "onnx_bytes"}
        rows = [(name, getattr(before, field), getattr(after, field), ",") for name, field in counts.items()]
        fastest = after.latency_fastest_ms or {}
        for size, slow in (before.latency_fastest_ms or {}).items():
            rows.append((f"latency, batch {size}, ms", slow, fastest[size], ".3f"))
        lines = [f"{'':24}{'original':>14}{'compressed':>14}"]
        for name, old, new, form in rows:
            share = f"{new / old:.2g}x" if old else ""
            lines.append(f"{name:24}{old:>14{form}}{new:>14{form}}{share:>9}")
        return "\n".join(lines)


def file_costs(controller: ModelController, settings: ExportSettings) -> FileCosts:
    """Measures the files of the original and the compressed model.

    Args:
        controller: Controller with the compressed model; it stays as it is.
        settings: Batch sizes, threads and seconds of the measurement.

    Raises:
        ModelError: If the controller has no example input.
        ExportError: If a model cannot be exported, or its file cannot be loaded.
    """
    if controller.example_input is None:
        raise ModelError(
            "The files cannot be measured without an example input: pass create_compressed_model an example_input, or "
            "a config with input_info.sample_size."
        )
    inputs = map_tensors(Tensor.cpu, controller.example_input)
    # The exporter takes an axis of length 1 for one that is always 1.
    inputs = take_examples(inputs, torch.arange(max(2, num_examples(inputs))) % num_examples(inputs))
    models = [original_of(controller).cpu().eval(), controller.strip().cpu().eval()]
    with doing("files of the original and the compressed model"):
        files = [files_of(model, inputs, settings) for model in models]
        original, compressed = measure(models, files, inputs, settings)
    return FileCosts(original=original, compressed=compressed)


def original_of(controller: ModelController) -> nn.Module:
    """The model at rate 0, as it would be exported: as large and as fast as the original.

    Args:
        controller: Controller with the compressed model; it stays as it is.
    """
    copied = copy.deepcopy(controller)
    copied.disable_scheduler()
    for part in reversed(copied.children if isinstance(copied, CompositeController) else [copied]):
        part.compression_rate = 0.0
    return copied.strip(do_copy=False)
