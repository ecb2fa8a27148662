"""The algorithms of NNCF 2.x files: defaults, translation to our settings, and warnings about differences."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from kedro_aat import NNCFConfig
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import FilterPruning, Quantization
from kedro_aat.nncf.quantization_section import QuantizationAlgorithm
from kedro_aat.nncf.sections import FilterPruningAlgorithm, MagnitudeSparsityAlgorithm
from tests.nncf.files import FILES, SEARCH, distillation, early_exit, pruning, quantization, sparsity

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


def test_magnitude_sparsity_is_translated() -> None:
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
        ({}, {"importance": "l2", "ranking": "local", "rate_of": "filters", "rate_meaning": "nncf", "round_to": 8}),
        ({"filter_importance": "L1"}, {"importance": "l1"}),
        ({"filter_importance": "geometric_median"}, {"importance": "geometric_median"}),
        ({"weight_importance": "L1"}, {"importance": "l1"}),
        ({"all_weights": True}, {"ranking": "global"}),
        ({"pruning_flops_target": 0.3}, {"rate_of": "macs"}),
        ({"interlayer_ranking_type": "learned_ranking"}, {"ranking": "global"}),  # whose default this is
        ({"interlayer_ranking_type": "learned_ranking", "all_weights": False}, {"ranking": "local"}),
    ],
)
def test_filter_pruning_is_translated(params: dict[str, Any], expected: dict[str, Any]) -> None:
    (algorithm,) = NNCFConfig.from_dict(pruning(**params)).parsed.compression
    settings = algorithm.to_settings(("stem",), ("body",))
    assert isinstance(settings, FilterPruning)
    assert {key: getattr(settings, key) for key in expected} == expected
    assert (settings.ignored_scopes, settings.target_scopes) == (("stem",), ("body",))


@pytest.mark.parametrize(
    ("params", "rates"),
    [
        ({"schedule": "baseline"}, [0.5, 0.5]),
        ({"schedule": "baseline", "num_init_steps": 2}, [0.0, 0.0, 0.5, 0.5]),
        ({"schedule": "exponential", "pruning_steps": 3}, [0.1, 1 - (0.9 * 0.5) ** 0.5, 0.5, 0.5]),
        ({"pruning_steps": 3, "num_init_steps": 1}, [0.0, 0.1, 1 - (0.9 * 0.5) ** 0.5, 0.5, 0.5]),
        ({"pruning_steps": 1}, [0.5, 0.5]),
        ({"pruning_steps": 3, "pruning_flops_target": 0.19}, [0.1, 1 - (0.9 * 0.81) ** 0.5, 0.19]),
        ({"schedule": "exponential_with_bias", "pruning_steps": 9}, [0.1, 0.375]),
    ],
)
def test_schedules_of_filter_pruning_are_translated(params: dict[str, Any], rates: list[float]) -> None:
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
def test_quantization_is_translated(keys: dict[str, Any], expected: Quantization, num_samples: int) -> None:
    (algorithm,) = NNCFConfig.from_dict(quantization(**keys)).parsed.compression
    assert isinstance(algorithm, QuantizationAlgorithm)
    assert algorithm.to_settings() == expected
    assert algorithm.num_init_samples == num_samples


DIFFERENCES = {
    **{key: early_exit(**{key: value}) for key, value in SEARCH.items() if key != "maximal_total_epochs"},
    "search": early_exit(search={"kind": "interpolate"}),
    "compression_lr_multiplier": sparsity(compression_lr_multiplier=10.0),
    "initializer.range": sparsity(initializer={"range": {"num_init_samples": 256}}),
    "initializer.precision": sparsity(initializer={"precision": {"type": "hawq"}}),
    "legr_params": pruning(legr_params={"generations": 200}),
    "interlayer_ranking_type": pruning(interlayer_ranking_type="learned_ranking"),
    "prune_batch_norms": pruning(prune_batch_norms=False),
    "preset": quantization(preset="performance"),
    "weights.bits: 4 bits are 8 here": quantization(weights={"bits": 4}),
    "weights.mode": quantization(weights={"mode": "asymmetric"}),
    "weights.per_channel": quantization(weights={"per_channel": False}),
    "weights.signed": quantization(weights={"signed": False}),
    "save_ranking_coeffs_path": pruning(save_ranking_coeffs_path="ranks.json"),
    "load_ranking_coeffs_path": pruning(load_ranking_coeffs_path="ranks.json"),
    "compression_lr_multiplier has no effect": {"compression_lr_multiplier": 2.0},
    "disable_shape_matching": {"disable_shape_matching": True},
    "target_device: layers are quantized for CPUs, also with NPU": quantization() | {"target_device": "NPU"},
    "bootstrapNAS": {"bootstrapNAS": {"training": {"algorithm": "progressive_shrinking"}}},
    "input_info.type: an input of type int32 is float32": {"input_info": {"sample_size": [1], "type": "int32"}},
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


@pytest.mark.parametrize("key", DIFFERENCES)
def test_a_key_that_differs_from_nncf_is_named_in_a_warning(key: str, caplog: pytest.LogCaptureFixture) -> None:
    NNCFConfig.from_dict(DIFFERENCES[key])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert key in record.getMessage()


def test_legr_is_reported_as_no_longer_supported(caplog: pytest.LogCaptureFixture) -> None:
    NNCFConfig.from_dict(DIFFERENCES["legr_params"])
    assert "no longer supported" in caplog.text
