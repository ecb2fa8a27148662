"""`create_compressed_model` and `register_default_init_args`, with the arguments that scripts for NNCF 2.x pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.compressible import compressible
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.exporting import ExportWishes
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.settings import (
    CompressionSettings,
    MagnitudeSparsity,
    parse_compression,
)
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import ConfigurationError, ExportError
from kedro_aat.export.settings import FileSettings
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.nncf.config import NNCFConfig, NNCFFile
from kedro_aat.nncf.inputs import described_inputs, inputs_of_call
from kedro_aat.nncf.layers import find_sparse_layers, find_unpruned_layers
from kedro_aat.nncf.quantization_section import QuantizationAlgorithm
from kedro_aat.nncf.registered import inputs_of, take_batches
from kedro_aat.nncf.scopes import keeping_present_zeros, with_checked_scopes
from kedro_aat.nncf.sections import (
    ConstSparsityAlgorithm,
    FilterPruningAlgorithm,
    KnowledgeDistillationAlgorithm,
    MagnitudeSparsityAlgorithm,
)
from kedro_aat.nncf.without_rate import RatelessController, WithoutRate
from kedro_aat.training.batch_norms import adapt_batch_norms

logger = logging.getLogger(__name__)


def register_default_init_args(
    nncf_config: NNCFConfig | dict[str, Any],
    train_loader: Iterable[Any],
    criterion: Any = None,
    criterion_fn: Any = None,
    *args: Any,
    **kwargs: Any,
) -> NNCFConfig:
    """Registers the data with which `create_compressed_model` initializes the compression.

    With them, the search `frontier` also adapts BatchNorms to each new rate, and with a criterion it can rank filters
    by the importance `taylor`.

    Args:
        nncf_config: A configuration; modified in place if it is an `NNCFConfig`.
        train_loader: Batches: inputs of the model in any structure, tuples that begin with them, or mappings, whose
            `targets` or `labels` are not inputs.
        criterion: Loss, `(outputs, targets)`; the batches then are (inputs, targets).
        criterion_fn: Computes the loss as `(outputs, targets, criterion)`; by default `criterion` itself does.
        *args: NNCF's further arguments (validation loader ...); no algorithm here needs them.
        **kwargs: NNCF's further keyword arguments, of which only `device` is used.

    Returns:
        The configuration with the data.

    Raises:
        ConfigurationError: Lists every mistake in the configuration.
    """
    config = NNCFConfig.from_dict(nncf_config)
    config.train_loader = train_loader
    config.criterion, config.criterion_fn = criterion, criterion_fn
    config.device = kwargs.get("device")
    return config


def create_compressed_model(
    model: nn.Module,
    config: NNCFConfig | dict[str, Any],
    compression_state: dict[str, Any] | None = None,
    dummy_forward_fn: Callable[[nn.Module], object] | None = None,
    wrap_inputs_fn: Callable[..., object] | None = None,
    wrap_outputs_fn: Callable[..., object] | None = None,
    dump_graphs: bool = False,
    *,
    example_input: ModelInputs | None = None,
) -> tuple[ModelController, nn.Module]:
    """Applies the compression that a configuration names to a model.

    Args:
        model: The trained model; modified in place. What is only put around it (`DataParallel`, `torch.compile`) is
            removed: put it around the result again to train in several processes.
        config: A configuration. If its `compression` section names no algorithm with a rate, the model stays as it is,
            and distillation alone adds its loss.
        compression_state: Result of `get_compression_state()`, to restore a compression. Load the model's `state_dict`
            yourself afterwards.
        dummy_forward_fn: Calls the model that it gets; the arguments of the first call are the example input.
        wrap_inputs_fn: No effect: inputs are found without marks.
        wrap_outputs_fn: No effect, as `wrap_inputs_fn`.
        dump_graphs: No effect.
        example_input: What the model is called with, in any structure, for filter pruning and the export; by default
            what `input_info` describes, one tensor for each of its entries, or else the first registered batch.

    Returns:
        The controller and the model.

    Raises:
        ConfigurationError: For mistakes in the configuration, or algorithms that cannot be combined.
        ModelError: If the algorithms cannot compress the model.
    """
    config = NNCFConfig.from_dict(config)
    file = config.parsed
    model = compressible(model)
    if example_input is None and dummy_forward_fn is not None:
        example_input = inputs_of_call(model, dummy_forward_fn)
    if example_input is None and file.input_info:
        example_input = described_inputs(file.input_info, model)
    loader = config.train_loader
    if example_input is None and loader is not None and not isinstance(loader, Iterator):  # it would lose a batch
        example_input = next(inputs_of(take_batches(loader, 1), model, "cpu"), None)
    if compression_state is not None and "settings" not in compression_state:
        keys = ", ".join(map(str, compression_state)) or "none"
        raise ConfigurationError(
            "compression_state",
            [
                f"is not what get_compression_state() of kedro-aat returned: its keys are {keys}. A checkpoint of NNCF "
                "keeps its weights: load these with load_state, without is_resume, and compress the model again"
            ],
        )
    stored = None if compression_state is None else compression_state["settings"]
    if (file.adaptive is None and not file.keeps_zeros) if stored is None else stored["algorithm"] == "none":
        teaching = [part.to_settings() for part in file.compression if isinstance(part, KnowledgeDistillationAlgorithm)]
        without = WithoutRate(distillation=teaching[0] if teaching else None)
        controller: ModelController = RatelessController(
            model, without if stored is None else WithoutRate.model_validate(stored), example_input
        )
        controller.exporter = _write_onnx
        return controller, model
    settings = _translate(file, model, example_input) if stored is None else parse_compression(stored)
    controller = build_controller(
        model,
        settings,
        steps_per_epoch=len(loader) if hasattr(loader, "__len__") else None,
        example_input=example_input,
    )
    controller.exporter = _write_onnx
    for child in _children(controller):
        if isinstance(child, MagnitudeSparsityController):
            child.keeps_zeros_only = file.keeps_zeros
    if compression_state is not None:
        controller.load_state(compression_state["state"])
    else:
        _initialize(controller, file, loader, config.device or next(model.parameters()).device)
    return controller, model


def _children(controller: ModelController) -> Sequence[ModelController]:
    return controller.children if isinstance(controller, CompositeController) else [controller]


def _write_onnx(model: nn.Module, example_input: ModelInputs, path: Path, wishes: ExportWishes) -> None:
    from kedro_aat.export.onnx_file import to_onnx

    settings = FileSettings(
        input_names=None if wishes.input_names is None else tuple(wishes.input_names),
        output_names=None if wishes.output_names is None else tuple(wishes.output_names),
    )
    if wishes.opset is not None:
        try:
            asked = FileSettings.model_validate({**settings.model_dump(), "opset": wishes.opset})
            path.write_bytes(to_onnx(model, example_input, asked).SerializeToString())
            return
        except (ConfigurationError, ExportError) as error:
            logger.warning("save_format onnx_%d has no effect: %s", wishes.opset, error)
    path.write_bytes(to_onnx(model, example_input, settings).SerializeToString())


def _translate(file: NNCFFile, model: nn.Module, example_input: ModelInputs | None) -> CompressionSettings:
    """Translates the `compression` section to our settings."""
    parts = []
    for algorithm in file.compression:
        section, ignored, targets = with_checked_scopes(algorithm, file, model)
        is_searched = file.uses_frontier and algorithm is file.adaptive
        if isinstance(algorithm, FilterPruningAlgorithm):
            left_alone = find_unpruned_layers(model, algorithm.params, example_input, as_in_nncf=not is_searched)
            ignored = (*ignored, *left_alone)
        has_targets = targets is not None or algorithm.target_scopes is not None
        if isinstance(algorithm, MagnitudeSparsityAlgorithm) and not is_searched and not has_targets:
            targets = find_sparse_layers(model)
        part = section.to_settings(ignored, targets)
        if isinstance(section, ConstSparsityAlgorithm):
            if file.quantizes:  # which keeps zeros by itself
                continue
            assert isinstance(part, MagnitudeSparsity)
            part = keeping_present_zeros(part, model)
        parts.append(file.adapted(part, algorithm))
    return parse_compression([part.model_dump() for part in parts])


def _initialize(controller: ModelController, file: NNCFFile, loader: Iterable[Any] | None, device: Any) -> None:
    """Sets the ranges of activations, then adapts BatchNorms if the model is compressed from the start."""
    for algorithm in file.compression:
        if not isinstance(algorithm, QuantizationAlgorithm):
            continue
        if loader is None or not algorithm.num_init_samples:
            logger.warning(
                "The ranges of activations will be those of the first batch that the model sees, whatever split that "
                "is of, because %s.",
                "num_init_samples is 0"
                if loader is not None
                else "no data are registered: call register_default_init_args(nncf_config, train_loader) first",
            )
            continue
        assert isinstance(controller, QuantizationController | CompositeController)
        inputs = inputs_of(take_batches(loader, algorithm.num_init_samples), controller.model, device)
        controller.calibrate((each, None) for each in inputs)  # of a tuple, it would take the first input alone
    num_samples = file.num_bn_adaptation_samples
    is_compressed = any(child.report().requested_rate > 0 for child in _children(controller))
    if loader is not None and num_samples and is_compressed:
        adapt_batch_norms(controller.model, inputs_of(take_batches(loader, num_samples), controller.model, device))
