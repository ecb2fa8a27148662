"""Mistakes in configuration files of NNCF 2.x: one error lists all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kedro_aat import NNCFConfig
from kedro_aat.errors import ConfigurationError
from tests.mistakes import key_of
from tests.nncf.files import DROP, adaptive, mistakes, pruning, quantization, sparsity


@pytest.mark.parametrize(
    ("contents", "mistake"),
    [
        (
            {"compression": {"algorithm": "magnitude_sparsty"}},
            "compression.algorithm: must be one of magnitude_sparsity, filter_pruning, quantization, "
            "const_sparsity, knowledge_distillation, but got 'magnitude_sparsty'. Did you mean 'magnitude_sparsity'?",
        ),
        ({"compression": {"params": {}}}, "compression.algorithm: this key is required"),
        (
            {"compression": [{"algorithm": "filter_pruning"}, {"params": {}}]},
            "compression.1.algorithm: this key is required",
        ),
        (sparsity(sparsity_init=1.0), "compression.sparsity_init: should be less than 1, but got 1.0"),
        (
            sparsity(params={"sparsity_target": -0.1}),
            "compression.params.sparsity_target: should be greater than or equal to 0, but got -0.1",
        ),
        (
            sparsity(params={"weight_importance": "normed_ab"}),
            "compression.params.weight_importance: must be one of lamp, abs, squared_abs, normed_abs, "
            "but got 'normed_ab'. Did you mean 'normed_abs'?",
        ),
        ({"compression": {"algorithm": "knowledge_distillation"}}, "compression.type: this key is required"),
        (
            quantization(weights={"bits": 0}),
            "compression.weights.bits: should be greater than or equal to 1, but got 0",
        ),
        (
            pruning(pruning_target=0.3, pruning_flops_target=0.4),
            "compression.params: only one of pruning_target and pruning_flops_target is allowed, but got both",
        ),
        (
            {
                "compression": {"algorithm": "filter_pruning", "pruning_init": 0.4}
                | pruning()["compression"]
                | {"params": {"schedule": "exponential_with_bias"}}
            },
            "compression: the schedule exponential_with_bias must begin below three quarters of its target rate "
            "(0.5), but begins at 0.4",
        ),
        (
            {"accuracy_aware_training": {"mode": "adaptive", "params": DROP}},
            "accuracy_aware_training.mode: must be one of early_exit, adaptive_compression_level, "
            "but got 'adaptive'. Did you mean 'adaptive_compression_level'?",
        ),
        ({"accuracy_aware_training": {"mode": "early_exit"}}, "accuracy_aware_training.params: this key is required"),
        (
            {"accuracy_aware_training": {"params": DROP}},
            "accuracy_aware_training.mode: this key is required",
        ),
        (
            adaptive(maximal_relative_accuracy_degradation=101),
            "accuracy_aware_training.params.maximal_relative_accuracy_degradation: "
            "should be less than or equal to 100, but got 101",
        ),
        (
            adaptive(**DROP, initial_compression_rate_step=1.5),
            "accuracy_aware_training.params.initial_compression_rate_step: should be less than 1, but got 1.5",
        ),
        (
            {"input_info": {"sample_size": "1, 3, 32, 32"}},
            "input_info.sample_size: should be a list, but got '1, 3, 32, 32'",
        ),
        ({"input_info": [{}]}, "input_info.0.sample_size: this key is required"),
    ],
    ids=key_of,
)
def test_a_message_names_the_key_the_rule_and_the_value(contents: dict[str, Any], mistake: str) -> None:
    assert mistakes(contents) == [mistake]


@pytest.mark.parametrize(
    ("contents", "key", "likely"),
    [
        (adaptive(**DROP, patience_epoch=3), "accuracy_aware_training.params.patience_epoch", "patience_epochs"),
        (
            adaptive(**DROP, search={"kind": "interpolate", "lr_reduction_facto": 0.3}),
            "accuracy_aware_training.params.search.lr_reduction_facto",
            "lr_reduction_factor",
        ),
        (sparsity(sparsity_int=0.1), "compression.sparsity_int", "sparsity_init"),
        (sparsity(params={"sparsity_targt": 0.4}), "compression.params.sparsity_targt", "sparsity_target"),
        (
            {"compression": [{"algorithm": "quantization"}, {"algorithm": "filter_pruning", "pruning_int": 0.1}]},
            "compression.1.pruning_int",
            "pruning_init",
        ),
        (
            {"compression": [{"algorithm": "quantization", "weights": {"bit": 4}}]},
            "compression.0.weights.bit",
            "bits",
        ),
        (
            sparsity(initializer={"batchnorm_adaptation": {"num_bn_adaptation_sample": 10}}),
            "compression.initializer.batchnorm_adaptation.num_bn_adaptation_sample",
            "num_bn_adaptation_samples",
        ),
    ],
    ids=key_of,
)
def test_a_mistyped_key_gets_a_suggestion(contents: dict[str, Any], key: str, likely: str) -> None:
    (mistake,) = mistakes(contents)
    assert mistake.startswith(f"{key}: unknown key")
    assert mistake.endswith(f"Did you mean '{likely}'?")


def test_an_unknown_search_gets_the_known_ones_and_a_suggestion() -> None:
    (mistake,) = mistakes(adaptive(**DROP, search={"kind": "interpolat"}))
    assert mistake.startswith(
        "accuracy_aware_training.params.search.kind: must be one of uniform_decrease, interpolate"
    )
    assert mistake.endswith("but got 'interpolat'. Did you mean 'interpolate'?")


def test_five_mistakes_in_a_file_are_listed_in_one_error(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "accuracy_aware_training": {
                    "mode": "early_exi",
                    "params": {**DROP, "patience_epoch": 3},
                },
                "compression": [
                    {
                        "algorithm": "magnitude_sparsity",
                        "sparsity_init": 1.0,
                        "params": {"weight_importance": "normed_ab"},
                    },
                    {"algorithm": "quantisation"},
                ],
            }
        )
    )
    with pytest.raises(ConfigurationError) as caught:
        NNCFConfig.from_json(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: 5 mistakes"
    expected = {
        "accuracy_aware_training.mode:": ("'early_exi'", "'early_exit'"),
        "accuracy_aware_training.params.patience_epoch:": ("'patience_epochs'",),
        "compression.0.sparsity_init:": ("1.0",),
        "compression.0.params.weight_importance:": ("'normed_ab'", "'normed_abs'"),
        "compression.1.algorithm:": ("'quantisation'", "'quantization'"),
    }
    assert len(lines) == 5
    for key, names in expected.items():
        (line,) = (line for line in lines if line.startswith(f"  - {key}"))
        assert all(name in line for name in names), line


def test_rules_on_several_keys_are_listed_beside_other_mistakes() -> None:
    params = DROP | {"maximal_absolute_accuracy_degradation": 0.01, "patience_epoch": 3}
    contents = adaptive(**params) | sparsity(
        sparsity_int=0.0, params={"schedule": "multistep", "multistep_steps": [10], "sparsity_target": 2.0}
    )
    contents["compression"]["params"]["multistep_sparsity_levels"] = [0.1, 0.2, 0.3]
    found = mistakes(contents)
    assert len(found) == 5, found
    assert any(mistake.endswith("but got both") for mistake in found)
    assert any("multistep" in mistake for mistake in found)


@pytest.mark.parametrize(
    "params",
    [
        {"schedule": "multistep", "multistep_steps": [10, 10], "multistep_sparsity_levels": [0.1, 0.2, 0.3]},
        {"schedule": "multistep", "multistep_steps": [10], "multistep_sparsity_levels": [0.1, 0.2, 0.3]},
    ],
    ids=["steps that repeat", "too many levels"],
)
def test_an_invalid_multistep_schedule(params: dict[str, Any]) -> None:
    (mistake,) = mistakes(sparsity(params=params))
    assert "multistep" in mistake
    assert "but got" in mistake


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        NNCFConfig.from_json(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "contents", [b"{'a': 1}", b'{"a": 1', b"", b"[1, 2]", b'"text"', b"null", b'{"a": "\xff"}'], ids=repr
)
def test_a_file_that_is_not_a_json_object(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(contents)
    with pytest.raises(ConfigurationError) as caught:
        NNCFConfig.from_json(path)
    assert str(caught.value).startswith(f"{path}: 1 mistake")
    assert "JSON" in str(caught.value)
