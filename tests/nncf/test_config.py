"""Configuration files of NNCF 2.x are accepted unchanged, and `accuracy_aware_training` is translated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kedro_aat import NNCFConfig
from kedro_aat.errors import ConfigurationError
from kedro_aat.nncf.config import AccuracyAwareSettings
from kedro_aat.nncf.sections import MagnitudeSparsityAlgorithm
from kedro_aat.search.stepping import Interpolate, UniformDecrease
from tests.nncf.files import DROP, FILES, SEARCH, adaptive, mistakes, sparsity


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


def test_a_plain_dict_is_copied_and_a_config_is_returned_as_is() -> None:
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


def test_an_update_is_checked_when_it_is_used() -> None:
    config = NNCFConfig.from_dict(sparsity())
    config.update(adaptive(**DROP, patience_epoch=3))
    with pytest.raises(ConfigurationError, match=r"accuracy_aware_training\.params\.patience_epoch"):
        AccuracyAwareSettings.from_config(config)


def test_one_scope_may_stand_without_a_list() -> None:
    (algorithm,) = NNCFConfig.from_dict(sparsity(ignored_scopes="head", target_scopes="body")).parsed.compression
    assert algorithm.ignored_scopes == ("head",)
    assert algorithm.target_scopes == ("body",)


def test_keys_at_the_root_are_the_users_own(caplog: pytest.LogCaptureFixture) -> None:
    NNCFConfig.from_dict({"patience_epoch": 3, "compresion": {"algorithm": "none"}})
    assert not caplog.records


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
def test_search_names_the_policy_and_the_other_keys_are_its_defaults(search: Any, expected: Any) -> None:
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
def test_exactly_one_drop_is_required(params: dict[str, Any], count: str) -> None:
    (mistake,) = mistakes(adaptive(**params))
    # The message uses the names of the file, not those of our settings.
    assert "maximal_relative_accuracy_degradation" in mistake
    assert "maximal_absolute_accuracy_degradation" in mistake
    assert mistake.endswith(f"but got {count}")


def test_a_loop_requires_its_section() -> None:
    config = NNCFConfig.from_dict(FILES["no compression"])
    with pytest.raises(ConfigurationError, match=r"accuracy_aware_training: .*\n.*this section is required"):
        AccuracyAwareSettings.from_config(config)
