"""`create_compressed_model` and `register_default_init_args`, as scripts for NNCF 2.x call them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from kedro_aat.compression.base import ModelController
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.errors import ConfigurationError
from kedro_aat.training.nncf_config import BatchnormAdaptation, MagnitudeSparsityAlgorithm, NNCFConfig

logger = logging.getLogger(__name__)


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
        config: Its `compression` section names one algorithm.
        compression_state: What `get_compression_state()` gave; the model's `state_dict` is loaded by you.
        example_input: A batch for the export; by default one of `input_info.sample_size`.
        dump_graphs: Without effect; there for NNCF's sake.

    Returns:
        The controller, and the model.

    Raises:
        ConfigurationError: For a mistake in the configuration, or an algorithm that is not available.
    """
    config = NNCFConfig.from_dict(config)
    file = config.parsed
    if len(file.compression) != 1:
        raise ConfigurationError("compression", [f"must name exactly one algorithm, but names {len(file.compression)}"])
    algorithm = file.compression[0]
    if not isinstance(algorithm, MagnitudeSparsityAlgorithm):
        raise ConfigurationError(
            "compression",
            [f"algorithm: '{algorithm.algorithm}' is not available yet; magnitude_sparsity is"],
        )
    if example_input is None and file.input_info:
        example_input = torch.zeros(file.input_info[0].sample_size)
    settings = algorithm.settings(file)
    if compression_state is not None:
        settings = MagnitudeSparsity.model_validate(compression_state["settings"])
    loader = config.train_loader
    controller = build_controller(
        model,
        settings,
        steps_per_epoch=len(loader) if hasattr(loader, "__len__") else None,
        example_input=example_input,
    )
    if compression_state is not None:
        controller.load_state(compression_state["state"])
    elif settings.schedule.initial_rate > 0 and loader is not None:
        adaptation = algorithm.initializer and algorithm.initializer.batchnorm_adaptation
        num_samples = (adaptation or BatchnormAdaptation()).num_bn_adaptation_samples
        if num_samples:
            device = config.device or next(model.parameters()).device
            update_bn(_first_samples(loader, num_samples), model, device=device)
    return controller, model


def _first_samples(loader: Iterable[Any], num_samples: int) -> Iterator[Any]:
    """Batches with at least `num_samples` examples in all, or all there are."""
    seen = 0
    for batch in loader:
        if seen >= num_samples:
            return
        seen += len(batch[0] if isinstance(batch, list | tuple) else batch)
        yield batch
