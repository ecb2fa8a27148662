"""What the `aat` pipeline's settings accept, and messages about mistakes."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch

from kedro_aat.budget import BudgetSettings
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.config import AatSettings
from kedro_aat.errors import ConfigurationError
from kedro_aat.imports import Imported
from kedro_aat.pipelines.aat.nodes import evaluate_baseline
from kedro_aat.search.stepping import Interpolate
from tests.mistakes import key_of


def parameters(**changes: Any) -> dict[str, Any]:
    """The required parameters, with changes at the root."""
    return {"budget": {"max_drop": 0.01}, "training": {"metric": "torchmetrics.Accuracy"}} | changes


def mistakes(**changes: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        AatSettings.model_validate(parameters(**changes))
    return caught.value.mistakes


def test_little_is_required() -> None:
    settings = AatSettings.model_validate(parameters())
    assert settings.budget == BudgetSettings(max_drop=0.01)
    assert settings.training.metric == Imported(class_path="torchmetrics.Accuracy")
    assert (settings.minimal_rate, settings.maximal_rate) == (0.0, 0.998)
    assert settings.compression == MagnitudeSparsity(importance="lamp")


def test_all_parts_are_read() -> None:
    settings = AatSettings.model_validate(
        parameters(
            seed=3,
            minimal_rate=0.5,
            maximal_rate=0.9,
            compression={"algorithm": "magnitude_sparsity", "importance": "abs", "ignored_scopes": ["head"]},
            search={"kind": "interpolate", "patience_epochs": 2},
            training={
                "metric": {"class_path": "torchmetrics.Accuracy", "init_args": {"task": "multiclass"}},
                "validate": "package.module.validate",
                "precision": "bf16",
            },
            export={"batch_sizes": [1, 8]},
        )
    )
    assert settings.seed == 3
    assert settings.search == Interpolate(patience_epochs=2)
    assert settings.training.metric == Imported(class_path="torchmetrics.Accuracy", init_args={"task": "multiclass"})
    assert settings.training.validate_ == "package.module.validate"
    assert settings.export.batch_sizes == (1, 8)


def test_all_missing_keys_are_listed() -> None:
    with pytest.raises(ConfigurationError) as caught:
        AatSettings.model_validate({})
    assert sorted(caught.value.mistakes) == [
        "budget: this key is required",
        "training: this key is required",
    ]


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"maximal_rate": 1.0}, "maximal_rate: should be less than 1, but got 1.0"),
        ({"minimal_rate": -0.1}, "minimal_rate: should be greater than or equal to 0, but got -0.1"),
        ({"seed": "ten"}, "seed: should be a valid integer, unable to parse string as an integer, but got 'ten'"),
        (
            {"budget": {"max_drop": 0.01, "max_relative_drop": 0.01}},
            "budget: exactly one of max_drop and max_relative_drop is required, but got both",
        ),
        ({"budget": {}}, "budget: exactly one of max_drop and max_relative_drop is required, but got neither"),
        ({"search": {"patience_epochs": 3}}, "search.kind: this key is required"),
        (
            {"compression": {"schedule": {"kind": "polynomal"}}},
            "compression.schedule.kind: must be one of constant, polynomial, exponential, exponential_with_bias, "
            "multistep, adaptive, but got 'polynomal'. Did you mean 'polynomial'?",
        ),
        (
            {"training": {"metric": "torchmetrics.Accuracy", "device": "gpu"}},
            "training.device: must be auto, cpu, cuda, cuda:1 ..., but got 'gpu'",
        ),
        ({"export": {"batch_sizes": [1, 0]}}, "export.batch_sizes.1: should be greater than or equal to 1, but got 0"),
    ],
    ids=key_of,
)
def test_a_message_names_the_key_the_rule_and_the_value(changes: dict[str, Any], mistake: str) -> None:
    assert mistakes(**changes) == [mistake]


@pytest.mark.parametrize(
    ("changes", "key", "likely"),
    [
        ({"search": {"kind": "interpolat"}}, "search.kind", "interpolate"),
        ({"search": {"kind": "uniform_decreas"}}, "search.kind", "uniform_decrease"),
        ({"compression": {"algorithm": "magnitude_sparsty"}}, "compression.algorithm", "magnitude_sparsity"),
    ],
    ids=key_of,
)
def test_an_unknown_kind_gets_the_known_ones_and_a_suggestion(changes: dict[str, Any], key: str, likely: str) -> None:
    (mistake,) = mistakes(**changes)
    rule, _, got = mistake.partition(", but got ")
    assert rule.startswith(f"{key}: must be one of ")
    assert likely in rule
    assert got.endswith(f". Did you mean '{likely}'?")


@pytest.mark.parametrize(
    ("changes", "key", "likely"),
    [
        ({"maximal_rte": 0.9}, "maximal_rte", "maximal_rate"),
        ({"search": {"kind": "uniform_decrease", "patience_epoch": 3}}, "search.patience_epoch", "patience_epochs"),
        ({"compression": {"importanc": "abs"}}, "compression.importanc", "importance"),
        ({"compression": {"schedule": {"powr": 2}}}, "compression.schedule.powr", "power"),
        (
            {"training": {"metric": "torchmetrics.Accuracy", "validat": "package.validate"}},
            "training.validat",
            "validate",
        ),
        (
            {"training": {"metric": "torchmetrics.Accuracy", "optimizer": {"class_path": "x.y", "init_arg": {}}}},
            "training.optimizer.init_arg",
            "init_args",
        ),
    ],
    ids=key_of,
)
def test_a_mistyped_key_gets_a_suggestion(changes: dict[str, Any], key: str, likely: str) -> None:
    (mistake,) = mistakes(**changes)
    assert mistake.startswith(f"{key}: unknown key")
    assert mistake.endswith(f"Did you mean '{likely}'?")


def test_minimal_above_maximal_rate() -> None:
    (mistake,) = mistakes(minimal_rate=0.9, maximal_rate=0.5)
    assert names_rates_in_the_wrong_order(mistake)


def names_rates_in_the_wrong_order(mistake: str) -> bool:
    words = mistake.replace("_", " ")
    return all(part in words for part in ("minimal rate", "0.9", "maximal rate", "0.5", "but got"))


def test_five_mistakes_are_listed_in_one_error() -> None:
    found = mistakes(
        maximal_rte=0.9,
        seed="ten",
        minimal_rate=1.2,
        budget={"max_drop": 0.01, "max_relative_drop": 0.01},
        search={"kind": "uniform_decrease", "patience_epoch": 3},
    )
    assert len(found) == 5, found
    expected = {
        "maximal_rte:": "'maximal_rate'",
        "seed:": "'ten'",
        "minimal_rate:": "1.2",
        "budget:": "both",
        "search.patience_epoch:": "'patience_epochs'",
    }
    for key, names in expected.items():
        (line,) = (mistake for mistake in found if mistake.startswith(key))
        assert names in line


def test_five_other_mistakes_are_listed_in_one_error() -> None:
    found = mistakes(
        budget={"max_dro": 0.01},
        compression={"algorithm": "magnitude_sparsty"},
        search={"kind": "interpolat"},
        training={"metric": "torchmetrics.Accuracy", "precision": "fp8"},
        export={"tolerance": 0},
    )
    assert len(found) == 5, found
    keys = ["budget.max_dro:", "compression.algorithm:", "search.kind:", "training.precision:", "export.tolerance:"]
    for key in keys:
        assert any(mistake.startswith(key) for mistake in found), key


def test_rules_on_several_keys_are_listed_beside_other_mistakes() -> None:
    found = mistakes(
        sed=0,
        minimal_rate=0.9,
        maximal_rate=0.5,
        budget={"max_drop": 0.01, "max_relative_drop": 0.01, "max_dropp": 0.01},
        search={"kind": "interpolat"},
    )
    assert len(found) == 5, found
    assert any(names_rates_in_the_wrong_order(mistake) for mistake in found)
    assert any("but got both" in mistake for mistake in found)


def test_a_latency_limit_at_a_batch_size_that_is_not_measured_is_a_mistake() -> None:
    (found,) = mistakes(export={"batch_sizes": [1, 64], "limits": {"latency_ms": {1: 0.5, 8: 0.5}}})
    assert "latency_ms limits batch sizes that are not measured: [8]; add them to batch_sizes" in found


def test_openvino_is_checked_before_training_only_if_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # simulates that it is not installed
    settings = AatSettings.model_validate(parameters(training={"metric": "torchmetrics.MeanSquaredError"}))
    settings.check()
    changed = settings.model_copy(update={"export": settings.export.model_copy(update={"openvino": True})})
    unused: Any = None  # neither the model nor the data are used
    with pytest.raises(
        ConfigurationError, match=r"aat.export.openvino: OpenVINO .* install .*pip install .kedro-aat\[openvino\]"
    ):
        evaluate_baseline(unused, unused, unused, changed)


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"seed": 2**64}, "seed: should be less than 9223372036854775808"),
        ({"time_limit_minutes": 1e308}, "time_limit_minutes: should be less than or equal to 1000000"),
        ({"search": {"kind": "frontier", "num_path_steps": 10**8}}, "search.num_path_steps: should be less than"),
        ({"search": {"kind": "frontier", "epochs_per_rate": 10**9}}, "search.epochs_per_rate: should be less than"),
        ({"search": {"kind": "interpolate", "patience_epochs": 10**9}}, "search.patience_epochs: should be less than"),
        ({"training": {"metric": "torchmetrics.Accuracy", "num_threads": 100_000}}, "training.num_threads: should be"),
        ({"training": {"metric": "torchmetrics.Accuracy", "num_workers": 10**6}}, "training.num_workers: should be"),
        ({"training": {"metric": "torchmetrics.Accuracy", "batch_size": 2**63}}, "training.batch_size: should be"),
        ({"training": {"metric": "torchmetrics.Accuracy", "device": "meta"}}, "training.device: must be auto or cpu"),
        ({"training": {"metric": "torchmetrics.Accuracy", "device": "cpu:7"}}, "training.device: must be below cpu:1"),
        (
            {"training": {"metric": "torchmetrics.Accuracy", "train_epoch": "a.b", "on_out_of_memory": "halve_batch"}},
            "training.train_epoch: must be left out with on_out_of_memory: halve_batch",
        ),
        ({"export": {"batch_sizes": [1, 10**9]}}, "export.batch_sizes.1: should be less than"),
        ({"export": {"num_threads": 100_000}}, "export.num_threads: should be less than"),
        ({"export": {"num_threads": 1024}}, "export.num_threads: must be at most"),  # on machines with fewer processors
        ({"training": {"metric": "torchmetrics.Accuracy", "num_threads": 1024}}, "training.num_threads: must be at"),
        ({"export": {"latency_seconds": 1e9}}, "export.latency_seconds: should be less than"),
        ({"certificate": {"test_examples": 10**15}}, "certificate.test_examples: should be less than"),
    ],
    ids=key_of,
)
def test_values_that_would_bring_the_process_down_are_refused(changes: dict[str, Any], mistake: str) -> None:
    (found,) = mistakes(**changes)
    assert found.startswith(mistake)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an MPS device")
def test_device_that_the_machine_lacks_is_refused() -> None:
    (found,) = mistakes(training={"metric": "torchmetrics.Accuracy", "device": "mps"})
    assert re.match(r"training\.device: must be auto or cpu.* on this machine, but got 'mps'", found)


def test_a_target_that_does_not_decide_says_what_does() -> None:
    written: dict[str, Any] = {"compression": {"algorithm": "filter_pruning", "round_to": 8}}
    written["export"] = {"objective": "latency"}
    tree = parameters(target="arm")
    words = AatSettings.model_validate(tree | written).overruled_target()
    assert words is not None
    assert words.startswith("target: arm would set compression.rate_of: macs and export.objective: bytes, but ")
    assert "compression.rate_of: parameters and export.objective: latency is written" in words
    written["export"] = {"objective": {"target": "openvino", "latency_ms": 1}}
    assert "export.objective: latency for OpenVINO is" in (
        AatSettings.model_validate(tree | written).overruled_target() or ""
    )
    same = {"export": {"objective": {"target": "openvino"}}}  # by bytes, as the target would have it
    assert AatSettings.model_validate(tree | same).overruled_target() is None
    assert AatSettings.model_validate(tree).overruled_target() is None
    assert AatSettings.model_validate({**tree, "target": None} | written).overruled_target() is None
