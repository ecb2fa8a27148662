"""Configuration files of NNCF 2.x: accepted unchanged, or refused with one error that lists every mistake."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from kedro_aat import NNCFConfig
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import FilterPruning, Quantization
from kedro_aat.errors import ConfigurationError
from kedro_aat.nncf.config import AccuracyAwareSettings
from kedro_aat.nncf.sections import FilterPruningAlgorithm, MagnitudeSparsityAlgorithm, QuantizationAlgorithm
from kedro_aat.search.stepping import Interpolate, UniformDecrease
from tests.mistakes import key_of

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

# Between them these files say everything that is known about such a file, each key at least once.
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


# --- what is accepted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_files_are_accepted_unchanged_and_without_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(FILES[name]))
    configs = [NNCFConfig.from_json(path), NNCFConfig.from_json(str(path)), NNCFConfig.from_dict(FILES[name])]
    algorithms = FILES[name].get("compression", [])
    named = [one["algorithm"] for one in (algorithms if isinstance(algorithms, list) else [algorithms])]
    for config in configs:
        assert config == FILES[name]
        assert [algorithm.algorithm for algorithm in config.parsed.compression] == named
    assert not caplog.records


def test_a_plain_dict_is_copied_and_a_config_handed_back() -> None:
    contents = dict(FILES["pruning"])
    config = NNCFConfig.from_dict(contents)
    config["log_dir"] = "elsewhere"
    assert "log_dir" not in contents
    assert NNCFConfig.from_dict(config) is config


def test_a_config_is_used_as_a_dict() -> None:
    config = NNCFConfig.from_dict(sparsity(params={"sparsity_target": 0.6}))
    config.update(adaptive(**DROP) | {"log_dir": "runs"})
    assert config["log_dir"] == "runs"
    assert config["compression"]["params"]["sparsity_target"] == 0.6
    assert config.get("device") is None
    config["compression"]["params"]["sparsity_target"] = 0.7
    (algorithm,) = config.parsed.compression
    assert isinstance(algorithm, MagnitudeSparsityAlgorithm)
    assert algorithm.params.sparsity_target == 0.7
    assert AccuracyAwareSettings.from_config(config).budget.max_relative_drop == 0.01


def test_what_an_update_brings_is_checked_when_it_is_used() -> None:
    config = NNCFConfig.from_dict(sparsity())
    config.update(adaptive(**DROP, patience_epoch=3))
    with pytest.raises(ConfigurationError, match=r"accuracy_aware_training\.params\.patience_epoch"):
        AccuracyAwareSettings.from_config(config)


def test_one_scope_may_stand_without_a_list() -> None:
    (algorithm,) = NNCFConfig.from_dict(sparsity(ignored_scopes="head", target_scopes="body")).parsed.compression
    assert algorithm.ignored_scopes == ("head",)
    assert algorithm.target_scopes == ("body",)


# --- defaults ----------------------------------------------------------------------------------------------


def test_defaults_of_accuracy_aware_training() -> None:
    settings = AccuracyAwareSettings.from_config(NNCFConfig.from_dict(adaptive(**DROP)))
    assert settings.search == UniformDecrease(
        initial_training_phase_epochs=5,
        patience_epochs=3,
        initial_compression_rate_step=0.1,
        compression_rate_step_reduction_factor=0.5,
        minimal_compression_rate_step=0.025,
        lr_reduction_factor=0.5,
        maximal_total_epochs=10000,
    )
    assert settings.early_exit.maximal_total_epochs == 10000
    assert settings.higher_is_better


DEFAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "magnitude_sparsity": (
        {"sparsity_init": 0.0},
        {
            "weight_importance": "normed_abs",
            "sparsity_level_setting_mode": "global",
            "schedule": "polynomial",
            "sparsity_target": 0.5,
            "sparsity_target_epoch": 90,
            "sparsity_freeze_epoch": 100,
            "update_per_optimizer_step": False,
            "steps_per_epoch": None,
            "multistep_steps": (90,),
            "multistep_sparsity_levels": (0.1, 0.5),
            "patience": 1,
            "power": 0.9,
            "concave": True,
        },
    ),
    "filter_pruning": (
        {"pruning_init": 0.0},
        {
            "filter_importance": "L2",
            "pruning_target": 0.5,
            "pruning_steps": 100,
            "num_init_steps": 0,
            "schedule": "exponential",
            "interlayer_ranking_type": "unweighted_ranking",
            "all_weights": False,
            "prune_first_conv": False,
            "prune_downsample_convs": False,
            "prune_batch_norms": True,
        },
    ),
    "quantization": ({"quantize_inputs": True, "quantize_outputs": False}, {}),
    "knowledge_distillation": ({"scale": 1.0, "temperature": 1.0}, {}),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_of_the_algorithms(name: str) -> None:
    required = {"type": "mse"} if name == "knowledge_distillation" else {}
    contents = {"compression": {"algorithm": name, **required}}
    (algorithm,) = NNCFConfig.from_dict(contents).parsed.compression
    own, params = DEFAULTS[name]
    dumped = algorithm.model_dump()
    assert {key: dumped[key] for key in own} == own
    assert {key: dumped["params"][key] for key in params} == params
    assert (dumped["ignored_scopes"], dumped["target_scopes"]) == ((), None)


def test_magnitude_sparsity_in_our_own_terms() -> None:
    (algorithm,) = NNCFConfig.from_dict(FILES["sparsity, adaptive"]).parsed.compression
    assert isinstance(algorithm, MagnitudeSparsityAlgorithm)
    settings = algorithm.to_settings()
    assert (settings.importance, settings.ranking) == ("abs", "local")
    assert settings.ignored_scopes == ("ResNet/Linear[fc]", "{re}.*downsample.*")
    assert settings.target_scopes == ("{re}.*conv.*",)
    schedule = settings.schedule
    assert (schedule.kind, schedule.initial_rate, schedule.target_rate) == ("polynomial", 0.1, 0.7)
    assert (schedule.target_epoch, schedule.freeze_epoch, schedule.patience) == (20, 30, 3)
    assert (schedule.power, schedule.concave) == (2.0, False)
    assert (schedule.update_per_optimizer_step, schedule.steps_per_epoch) == (True, 196)
    (multistep,) = NNCFConfig.from_dict(FILES["sparsity, multistep, early exit"]).parsed.compression
    assert isinstance(multistep, MagnitudeSparsityAlgorithm)
    schedule = multistep.to_settings().schedule
    assert (schedule.multistep_epochs, schedule.multistep_rates) == ((5, 10, 20), (0.1, 0.3, 0.5, 0.6))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, {"importance": "l2", "ranking": "local", "rate_of": "filters"}),
        ({"filter_importance": "L1"}, {"importance": "l1"}),
        ({"filter_importance": "geometric_median"}, {"importance": "geometric_median"}),
        ({"weight_importance": "L1"}, {"importance": "l1"}),
        ({"all_weights": True}, {"ranking": "global"}),
        ({"pruning_flops_target": 0.3}, {"rate_of": "macs"}),
    ],
)
def test_filter_pruning_in_our_own_terms(params: dict[str, Any], expected: dict[str, Any]) -> None:
    (algorithm,) = NNCFConfig.from_dict(pruning(**params)).parsed.compression
    settings = algorithm.to_settings(("stem",), ("body",))
    assert isinstance(settings, FilterPruning)
    assert {key: getattr(settings, key) for key in expected} == expected
    assert (settings.ignored_scopes, settings.target_scopes) == (("stem",), ("body",))


@pytest.mark.parametrize(
    ("params", "rates"),
    [
        ({"schedule": "baseline"}, [0.5, 0.5]),
        ({"schedule": "baseline", "num_init_steps": 2}, [0.1, 0.1, 0.5, 0.5]),
        ({"schedule": "exponential", "pruning_steps": 2}, [0.1, 1 - (0.9 * 0.5) ** 0.5, 0.5, 0.5]),
        ({"pruning_steps": 2, "num_init_steps": 1}, [0.1, 0.1, 1 - (0.9 * 0.5) ** 0.5, 0.5, 0.5]),
        ({"pruning_steps": 2, "pruning_flops_target": 0.19}, [0.1, 1 - (0.9 * 0.81) ** 0.5, 0.19]),
        ({"schedule": "exponential_with_bias", "pruning_steps": 8}, [0.1, 0.375]),
    ],
)
def test_schedules_of_filter_pruning(params: dict[str, Any], rates: list[float]) -> None:
    contents = {"compression": {"algorithm": "filter_pruning", "pruning_init": 0.1, "params": params}}
    (algorithm,) = NNCFConfig.from_dict(contents).parsed.compression
    assert isinstance(algorithm, FilterPruningAlgorithm)
    schedule = algorithm.to_settings().schedule
    assert [schedule.rate(epoch) for epoch in range(len(rates))] == pytest.approx(rates)
    assert schedule.final_rate == algorithm.params.target


@pytest.mark.parametrize(
    ("keys", "expected", "num_samples"),
    [
        ({}, Quantization(), 256),
        ({"preset": "mixed", "overflow_fix": "enable"}, Quantization(), 256),
        (
            {"quantize_inputs": False, "overflow_fix": "disable"},
            Quantization(quantize_inputs=False, overflow_fix=False),
            256,
        ),
        ({"ignored_scopes": "head"}, Quantization(ignored_scopes=("head",)), 256),
        ({"initializer": {"range": {"num_init_samples": 10}}}, Quantization(), 10),
        ({"initializer": {"range": [{"num_init_samples": 10}, {"num_init_samples": 30}]}}, Quantization(), 30),
        (
            {"params": {"weights_quant_start_epoch": 3}},
            Quantization(
                schedule=ScheduleSettings(kind="multistep", multistep_epochs=(3,), multistep_rates=(0.0, 0.998))
            ),
            256,
        ),
    ],
)
def test_quantization_in_our_own_terms(keys: dict[str, Any], expected: Quantization, num_samples: int) -> None:
    (algorithm,) = NNCFConfig.from_dict(quantization(**keys)).parsed.compression
    assert isinstance(algorithm, QuantizationAlgorithm)
    assert algorithm.to_settings() == expected
    assert algorithm.num_init_samples == num_samples


# --- the search and the budget -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (None, UniformDecrease(**SEARCH)),
        ({"kind": "uniform_decrease"}, UniformDecrease(**SEARCH)),
        ({"kind": "interpolate"}, Interpolate(**SEARCH)),
        ({"kind": "interpolate", "patience_epochs": 9}, Interpolate(**SEARCH | {"patience_epochs": 9})),
    ],
    ids=str,
)
def test_search_names_the_policy_and_the_other_keys_hold_for_it(search: Any, expected: Any) -> None:
    params = DROP | SEARCH | ({} if search is None else {"search": search})
    settings = AccuracyAwareSettings.from_config(NNCFConfig.from_dict(adaptive(**params)))
    assert settings.search == expected
    assert settings.early_exit.maximal_total_epochs == 50


def test_relative_degradation_is_in_percent_and_absolute_in_metric_units() -> None:
    relative = NNCFConfig.from_dict(adaptive(maximal_relative_accuracy_degradation=2.0))
    assert AccuracyAwareSettings.from_config(relative).budget.max_relative_drop == pytest.approx(0.02)
    absolute = NNCFConfig.from_dict(adaptive(maximal_absolute_accuracy_degradation=2.0))
    assert AccuracyAwareSettings.from_config(absolute).budget.max_drop == 2.0


def test_lower_may_be_better() -> None:
    config = NNCFConfig.from_dict(adaptive(**DROP, higher_is_better=False))
    assert not AccuracyAwareSettings.from_config(config).higher_is_better


@pytest.mark.parametrize(
    ("params", "count"),
    [({}, "neither"), (DROP | {"maximal_absolute_accuracy_degradation": 0.01}, "both")],
    ids=["neither", "both"],
)
def test_exactly_one_drop_is_needed(params: dict[str, Any], count: str) -> None:
    (mistake,) = mistakes(adaptive(**params))
    # Under the names that the file has for them.
    assert "maximal_relative_accuracy_degradation" in mistake
    assert "maximal_absolute_accuracy_degradation" in mistake
    assert mistake.endswith(f"but got {count}")


def test_a_loop_needs_its_section() -> None:
    config = NNCFConfig.from_dict(FILES["no compression"])
    with pytest.raises(ConfigurationError, match=r"accuracy_aware_training: .*\n.*this section is required"):
        AccuracyAwareSettings.from_config(config)


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contents", "mistake"),
    [
        (
            {"compression": {"algorithm": "magnitude_sparsty"}},
            "compression.algorithm: must be one of magnitude_sparsity, filter_pruning, quantization, "
            "knowledge_distillation, but got 'magnitude_sparsty'. Did you mean 'magnitude_sparsity'?",
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
            "compression.params.weight_importance: must be one of abs, normed_abs, squared_abs, "
            "but got 'normed_ab'. Did you mean 'normed_abs'?",
        ),
        ({"compression": {"algorithm": "knowledge_distillation"}}, "compression.type: this key is required"),
        (
            quantization(weights={"bits": 4}),
            "compression.weights.bits: must be 8, the only width that every runtime computes in, but got 4",
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
            "input_info.sample_size: should be a valid tuple, but got '1, 3, 32, 32'",
        ),
        ({"input_info": [{}]}, "input_info.0.sample_size: this key is required"),
    ],
    ids=key_of,
)
def test_a_mistake_is_named_with_its_key_the_rule_and_the_value(contents: dict[str, Any], mistake: str) -> None:
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
def test_a_mistyped_key_gets_the_likely_one(contents: dict[str, Any], key: str, likely: str) -> None:
    (mistake,) = mistakes(contents)
    assert mistake.startswith(f"{key}: unknown key")
    assert mistake.endswith(f"Did you mean '{likely}'?")


def test_an_unknown_search_gets_the_known_ones_and_the_likely_one() -> None:
    (mistake,) = mistakes(adaptive(**DROP, search={"kind": "interpolat"}))
    assert mistake.startswith(
        "accuracy_aware_training.params.search.kind: must be one of uniform_decrease, interpolate"
    )
    assert mistake.endswith("but got 'interpolat'. Did you mean 'interpolate'?")


def test_a_file_with_five_mistakes_gets_one_error_that_names_five(tmp_path: Path) -> None:
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


def test_rules_on_several_keys_are_named_beside_other_mistakes() -> None:
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
def test_a_multistep_schedule_has_to_make_sense(params: dict[str, Any]) -> None:
    (mistake,) = mistakes(sparsity(params=params))
    assert "multistep" in mistake
    assert "but got" in mistake


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        NNCFConfig.from_json(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "contents", [b"{'a': 1}", b'{"a": 1', b"", b"[1, 2]", b'"text"', b"null", b'{"a": "\xff"}'], ids=repr
)
def test_a_file_that_is_no_json_object(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(contents)
    with pytest.raises(ConfigurationError) as caught:
        NNCFConfig.from_json(path)
    assert str(caught.value).startswith(f"{path}: 1 mistake")
    assert "JSON" in str(caught.value)


# --- warnings ----------------------------------------------------------------------------------------------


def early_exit(**params: Any) -> dict[str, Any]:
    return {"accuracy_aware_training": {"mode": "early_exit", "params": DROP | params}}


WITHOUT_MEANING = {
    **{key: early_exit(**{key: value}) for key, value in SEARCH.items() if key != "maximal_total_epochs"},
    "search": early_exit(search={"kind": "interpolate"}),
    "compression_lr_multiplier": sparsity(compression_lr_multiplier=10.0),
    "initializer.range": sparsity(initializer={"range": {"num_init_samples": 256}}),
    "initializer.precision": sparsity(initializer={"precision": {"type": "hawq"}}),
    "legr_params": pruning(legr_params={"generations": 200}),
    "interlayer_ranking_type": pruning(interlayer_ranking_type="learned_ranking"),
    "prune_batch_norms": pruning(prune_batch_norms=False),
    "preset": quantization(preset="performance"),
    "weights.mode": quantization(weights={"mode": "asymmetric"}),
    "weights.per_channel": quantization(weights={"per_channel": False}),
    "weights.signed": quantization(weights={"signed": False}),
    "weights.ignored_scopes": quantization(weights={"ignored_scopes": ["head"]}),
    "weights.target_scopes": quantization(weights={"target_scopes": ["head"]}),
    "activations.mode": quantization(activations={"mode": "symmetric"}),
    "activations.per_channel": quantization(activations={"per_channel": True}),
    "activations.signed": quantization(activations={"signed": True}),
    "activations.logarithm_scale": quantization(activations={"logarithm_scale": True}),
    "activations.unified_scale_ops": quantization(activations={"unified_scale_ops": [["a", "b"]]}),
    "quantize_outputs": quantization(quantize_outputs=True),
    "overflow_fix": quantization(overflow_fix="first_layer_only"),
    "scope_overrides": quantization(scope_overrides={"weights": {}}),
    "export_to_onnx_standard_ops": quantization(export_to_onnx_standard_ops=True),
    "quantization.initializer.precision": quantization(initializer={"precision": {"type": "hawq"}}),
    "quantization.initializer.range": quantization(initializer={"range": {"type": "threesigma"}}),
    "the same samples": quantization(initializer={"range": [{"target_scopes": ["head"]}]}),
    "from epoch 2 on": quantization(params={"activations_quant_start_epoch": 1, "weights_quant_start_epoch": 2}),
    "params.base_lr": quantization(params={"base_lr": 0.1}),
    "knowledge_distillation.ignored_scopes": distillation(ignored_scopes=["head"]),
    "knowledge_distillation.temperature": distillation(temperature=2.0),
}


@pytest.mark.parametrize("key", WITHOUT_MEANING)
def test_a_key_without_meaning_is_named_in_a_warning(key: str, caplog: pytest.LogCaptureFixture) -> None:
    NNCFConfig.from_dict(WITHOUT_MEANING[key])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert key in record.getMessage()


def test_legr_is_said_to_be_no_longer_supported(caplog: pytest.LogCaptureFixture) -> None:
    NNCFConfig.from_dict(WITHOUT_MEANING["legr_params"])
    assert "no longer supported" in caplog.text


def test_keys_at_the_root_are_the_users_own(caplog: pytest.LogCaptureFixture) -> None:
    NNCFConfig.from_dict({"patience_epoch": 3, "compresion": {"algorithm": "none"}})
    assert not caplog.records
