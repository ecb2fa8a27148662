"""Contents of NNCF 2.x files, and helpers that build one section."""

from __future__ import annotations

from typing import Any

import pytest

from kedro_aat import NNCFConfig
from kedro_aat.errors import ConfigurationError

SEARCH: dict[str, Any] = {
    "initial_training_phase_epochs": 4,
    "patience_epochs": 2,
    "initial_compression_rate_step": 0.2,
    "compression_rate_step_reduction_factor": 0.6,
    "minimal_compression_rate_step": 0.01,
    "lr_reduction_factor": 0.3,
    "maximal_total_epochs": 50,
}
DROP = {"maximal_relative_accuracy_degradation": 1.0}

# Together, these files have every key that is supported without a warning at least once.
FILES: dict[str, dict[str, Any]] = {
    "sparsity, adaptive": {
        "model": "resnet20",
        "log_dir": "runs/resnet20",
        "target_device": "CPU",
        "batch_size": 256,
        "input_info": {"sample_size": [1, 3, 32, 32], "type": "float", "filler": "random", "keyword": "x"},
        "accuracy_aware_training": {
            "mode": "adaptive_compression_level",
            "params": {"maximal_relative_accuracy_degradation": 1.0, **SEARCH},
        },
        "compression": {
            "algorithm": "magnitude_sparsity",
            "sparsity_init": 0.1,
            "ignored_scopes": ["ResNet/Linear[fc]", "{re}.*downsample.*"],
            "target_scopes": ["{re}.*conv.*"],
            "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 512}},
            "params": {
                "weight_importance": "abs",
                "sparsity_level_setting_mode": "local",
                "schedule": "polynomial",
                "sparsity_target": 0.7,
                "sparsity_target_epoch": 20,
                "sparsity_freeze_epoch": 30,
                "update_per_optimizer_step": True,
                "steps_per_epoch": 196,
                "patience": 3,
                "power": 2.0,
                "concave": False,
            },
        },
    },
    "sparsity, multistep, early exit": {
        "input_info": [{"sample_size": [1, 3, 224, 224]}, {"sample_size": [1, 10]}],
        "accuracy_aware_training": {
            "mode": "early_exit",
            "params": {"maximal_absolute_accuracy_degradation": 0.5, "maximal_total_epochs": 30},
        },
        "compression": {
            "algorithm": "magnitude_sparsity",
            "ignored_scopes": "ResNet/Linear[fc]",
            "target_scopes": "{re}.*conv.*",
            "params": {
                "schedule": "multistep",
                "multistep_steps": [5, 10, 20],
                "multistep_sparsity_levels": [0.1, 0.3, 0.5, 0.6],
            },
        },
    },
    "pruning": {
        "input_info": {"sample_size": [1, 3, 32, 32]},
        "compression": {
            "algorithm": "filter_pruning",
            "pruning_init": 0.1,
            "ignored_scopes": ["{re}.*head.*"],
            "target_scopes": None,
            "params": {
                "filter_importance": "geometric_median",
                "pruning_target": 0.4,
                "pruning_steps": 15,
                "num_init_steps": 1,
                "schedule": "exponential_with_bias",
                "interlayer_ranking_type": "unweighted_ranking",
                "all_weights": True,
                "prune_first_conv": True,
                "prune_downsample_convs": True,
                "prune_batch_norms": True,
            },
        },
    },
    "pruning, as in older files": {
        "compression": {
            "algorithm": "filter_pruning",
            "params": {"weight_importance": "L1", "pruning_flops_target": 0.3, "schedule": "baseline"},
        },
    },
    "several algorithms": {
        "input_info": {"sample_size": [1, 3, 32, 32]},
        "accuracy_aware_training": {
            "mode": "adaptive_compression_level",
            "params": {"maximal_absolute_accuracy_degradation": 0.01},
        },
        "compression": [
            {"algorithm": "filter_pruning", "params": {"filter_importance": "L2", "schedule": "exponential"}},
            {
                "algorithm": "quantization",
                "preset": "mixed",
                "quantize_inputs": False,
                "quantize_outputs": False,
                "overflow_fix": "disable",
                "ignored_scopes": ["{re}.*softmax.*"],
                "initializer": {
                    "range": {"num_init_samples": 256, "type": "mean_min_max"},
                    "batchnorm_adaptation": {"num_bn_adaptation_samples": 256},
                },
                "weights": {"mode": "symmetric", "bits": 8, "per_channel": True, "signed": True},
                "activations": {"mode": "asymmetric", "bits": 8, "per_channel": False, "signed": False},
                "params": {"activations_quant_start_epoch": 2, "weights_quant_start_epoch": 2},
            },
            {"algorithm": "knowledge_distillation", "type": "softmax", "scale": 0.5, "temperature": 4.0},
        ],
    },
    "distillation": {"compression": [{"algorithm": "knowledge_distillation", "type": "mse"}]},
    "no compression": {"model": "resnet20", "input_info": {"sample_size": [1, 3, 32, 32]}},
}


def adaptive(**params: Any) -> dict[str, Any]:
    return {"accuracy_aware_training": {"mode": "adaptive_compression_level", "params": params}}


def early_exit(**params: Any) -> dict[str, Any]:
    return {"accuracy_aware_training": {"mode": "early_exit", "params": DROP | params}}


def sparsity(**keys: Any) -> dict[str, Any]:
    return {"compression": {"algorithm": "magnitude_sparsity", **keys}}


def pruning(**params: Any) -> dict[str, Any]:
    return {"compression": {"algorithm": "filter_pruning", "params": params}}


def quantization(**keys: Any) -> dict[str, Any]:
    return {"compression": {"algorithm": "quantization", **keys}}


def distillation(**keys: Any) -> dict[str, Any]:
    return {"compression": {"algorithm": "knowledge_distillation", "type": "mse", **keys}}


def mistakes(contents: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        NNCFConfig.from_dict(contents)
    return caught.value.mistakes
