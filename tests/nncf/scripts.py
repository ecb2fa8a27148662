"""NNCF 2.x configurations for `user_script.py` and for single calls of `create_compressed_model`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.testing.training import BATCH

SPARSITY: dict[str, Any] = {
    "algorithm": "magnitude_sparsity",
    "sparsity_init": 0.1,
    "params": {
        "schedule": "polynomial",
        "weight_importance": "normed_abs",
        "sparsity_target": 0.3,
        "sparsity_target_epoch": 2,
        "sparsity_freeze_epoch": 3,
    },
    "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 64}},
    "ignored_scopes": ["{re}NNCFLinear"],
}
ADAPTIVE: dict[str, Any] = {
    "mode": "adaptive_compression_level",
    "params": {
        "maximal_relative_accuracy_degradation": 5.0,
        "initial_training_phase_epochs": 3,
        "patience_epochs": 2,
        "initial_compression_rate_step": 0.2,
        "minimal_compression_rate_step": 0.05,
        "maximal_total_epochs": 12,
    },
}
EARLY_EXIT: dict[str, Any] = {
    "mode": "early_exit",
    "params": {"maximal_relative_accuracy_degradation": 5.0, "maximal_total_epochs": 8},
}

PRUNING: dict[str, Any] = {
    "algorithm": "filter_pruning",
    "pruning_init": 0.3,
    "params": {"schedule": "baseline", "pruning_target": 0.3, "prune_first_conv": True},
}
QUANTIZATION: dict[str, Any] = {
    "algorithm": "quantization",
    "preset": "mixed",
    "initializer": {"range": {"num_init_samples": 32}, "batchnorm_adaptation": {"num_bn_adaptation_samples": 64}},
}
DISTILLATION: dict[str, Any] = {"algorithm": "knowledge_distillation", "type": "softmax", "temperature": 4.0}


def contents(folder: Path, training: dict[str, Any] = ADAPTIVE, compression: Any = None) -> dict[str, Any]:
    """A whole file, with keys of the user's own at its root."""
    return {
        "model": "SmallNet",
        "model_params": {"width": 8},
        "num_examples": 160,
        "batch_size": 32,
        "base_lr": 0.02,
        "seed": 0,
        "log_dir": str(folder / "logs"),
        "target_device": "CPU",
        "input_info": {"sample_size": [1, 1, 8, 8]},
        "accuracy_aware_training": training,
        "compression": compression or SPARSITY,
    }


def write(folder: Path, **more: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(contents(folder, **more)))
    return str(path)


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(BATCH["inputs"])
    return logits
