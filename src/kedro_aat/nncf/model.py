"""`create_compressed_model` and `register_default_init_args`, as scripts for NNCF 2.x call them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim.swa_utils import update_bn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.controller import ModelController, require_one_tensor
from kedro_aat.compression.quantization.calls import own_forward, record_calls
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.quantization.placement import CONVOLUTIONS
from kedro_aat.compression.settings import CompressionSettings, parse_compression
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.modes import evaluating
from kedro_aat.nncf.algorithms import Algorithm, FilterPruningAlgorithm, FilterPruningParams
from kedro_aat.nncf.config import NNCFConfig, NNCFFile
from kedro_aat.nncf.quantization import QuantizationAlgorithm
from kedro_aat.nncf.sections import BatchnormAdaptation


def register_default_init_args(
    nncf_config: NNCFConfig | dict[str, Any], train_loader: Iterable[Any], *args: Any, **kwargs: Any
) -> NNCFConfig:
    """Notes the data with which `create_compressed_model` initialises.

    Args:
        nncf_config: Changed in place if it is an `NNCFConfig`.
        train_loader: Batches: tensors, or tuples whose first element is the input.
        *args: NNCF's further arguments (criterion, validation loader ...); no algorithm here needs them.
        **kwargs: Likewise, but for `device`.

    Returns:
        The configuration.
    """
    config = NNCFConfig.from_dict(nncf_config)
    config.train_loader = train_loader
    config.device = kwargs.get("device")
    return config


def create_compressed_model(
    model: nn.Module,
    config: NNCFConfig | dict[str, Any],
    compression_state: dict[str, Any] | None = None,
    *,
    example_input: Tensor | None = None,
    dump_graphs: bool = False,
) -> tuple[ModelController, nn.Module]:
    """Puts a model under the compression that a configuration names.

    Args:
        model: The trained model; changed in place.
        config: Its `compression` section names one algorithm or several.
        compression_state: What `get_compression_state()` gave; the model's `state_dict` is loaded by you.
        example_input: A batch, for filter pruning and the export; by default one of `input_info.sample_size`.
        dump_graphs: Without effect; there for NNCF's sake.

    Returns:
        The controller, and the model.

    Raises:
        ConfigurationError: For a mistake in the configuration, or algorithms that do not work together.
        ModelError: For a model that the algorithms cannot compress.
    """
    config = NNCFConfig.from_dict(config)
    file = config.parsed
    if example_input is None and file.input_info:
        example_input = torch.zeros(file.input_info[0].sample_size)
    if compression_state is None:
        settings = _settings(file, model, example_input)
    else:
        settings = parse_compression(compression_state["settings"])
    loader = config.train_loader
    controller = build_controller(
        model,
        settings,
        steps_per_epoch=len(loader) if hasattr(loader, "__len__") else None,
        example_input=example_input,
    )
    controller.exporter = _write_onnx
    if compression_state is not None:
        controller.load_state(compression_state["state"])
    elif loader is not None:
        _initialise(controller, file.compression, loader, config.device or next(model.parameters()).device)
    return controller, model


def _write_onnx(model: nn.Module, example_input: Tensor, path: Path) -> None:
    path.write_bytes(to_onnx(model, example_input).SerializeToString())


def _settings(file: NNCFFile, model: nn.Module, example_input: Tensor | None) -> CompressionSettings:
    """The `compression` section in this project's own terms."""
    names = [algorithm.algorithm for algorithm in file.compression]
    if set(names) <= {"knowledge_distillation"}:
        raise ConfigurationError(
            "compression",
            [
                "must name an algorithm that compresses (magnitude_sparsity, filter_pruning, quantization), but names "
                f"{', '.join(names) or 'none'}"
            ],
        )
    parts = []
    for algorithm in file.compression:
        ignored = file.ignored_scopes
        if isinstance(algorithm, FilterPruningAlgorithm):
            ignored = (*ignored, *_kept_whole(model, algorithm.params, example_input))
        parts.append(algorithm.settings(ignored, file.target_scopes))
    return parse_compression([part.model_dump() for part in parts])


def _kept_whole(model: nn.Module, params: FilterPruningParams, example_input: Tensor | None) -> list[str]:
    """Names of the convolutions that filter pruning leaves alone unless it is told otherwise."""
    found = [] if params.prune_first_conv else _first_convolutions(model, example_input)
    if not params.prune_downsample_convs:
        convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, _ConvNd)]
        found += [name for name, module in convolutions if max(module.stride) > 1 and name not in found]
    return found


def _first_convolutions(model: nn.Module, example_input: Tensor | None) -> list[str]:
    """Names of the convolutions that no other one comes before."""
    if example_input is None:
        raise ModelError(
            "Filter pruning runs the model once to see which of its channels hang together: give "
            "create_compressed_model a config with input_info.sample_size, or an example_input."
        )
    owners = {id(module.weight): name for name, module in model.named_modules() if isinstance(module, _ConvNd)}
    require_one_tensor(example_input)
    batch = example_input.to(next(model.parameters()).device)
    with evaluating(model):
        recording = record_calls(partial(own_forward, model), owners, (batch,), {})
    behind: set[int | None] = set()  # values that came through a convolution
    first = []
    for operation in recording.operations:
        is_convolution = operation.name in CONVOLUTIONS and operation.owner is not None
        if is_convolution and behind.isdisjoint(operation.inputs):
            assert operation.owner is not None
            first.append(operation.owner)
        if is_convolution or not behind.isdisjoint(operation.inputs):
            behind.add(operation.output)
    return first


def _initialise(
    controller: ModelController, algorithms: Iterable[Algorithm], loader: Iterable[Any], device: Any
) -> None:
    """Ranges of activations, then the statistics of BatchNorms for what is compressed from the start."""
    for algorithm in algorithms:
        if isinstance(algorithm, QuantizationAlgorithm) and algorithm.num_init_samples:
            assert isinstance(controller, QuantizationController | CompositeController)
            controller.calibrate(_first_samples(loader, algorithm.num_init_samples))
    adaptations = [algorithm.initializer and algorithm.initializer.batchnorm_adaptation for algorithm in algorithms]
    num_samples = max((each or BatchnormAdaptation()).num_bn_adaptation_samples for each in adaptations)
    children = controller.children if isinstance(controller, CompositeController) else [controller]
    if num_samples and any(child.report().requested_rate > 0 for child in children):
        update_bn(_first_samples(loader, num_samples), controller.model, device=device)


def _first_samples(loader: Iterable[Any], num_samples: int) -> Iterator[Any]:
    """Batches with at least `num_samples` examples in all, or all there are."""
    seen = 0
    for batch in loader:
        if seen >= num_samples:
            return
        seen += len(batch[0] if isinstance(batch, list | tuple) else batch)
        yield batch
