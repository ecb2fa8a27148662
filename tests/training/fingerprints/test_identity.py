"""What identifies a run: the source of functions without what does not matter, and settings that are not defaults."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedro_aat.config import AatSettings
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.fingerprints.identity import hash_sources
from kedro_aat.training.settings import TrainingSettings

FUNCTION = "def train(data, rate=0.5):\n    return data * rate\n"
SAME = {
    "docstring": 'def train(data, rate=0.5):\n    """Trains."""\n    return data * rate\n',
    "comment": "def train(data, rate=0.5):\n    # trains\n    return data * rate  # so\n",
    "layout": "def train(\n    data,\n    rate=0.5,\n):\n\n    return (data * rate)\n",
}
OTHER = {
    "body": "def train(data, rate=0.5):\n    return data / rate\n",
    "default": "def train(data, rate=0.25):\n    return data * rate\n",
    "text": "def train(data, rate=0.5):\n    return 'data', rate\n",
}


@pytest.fixture
def hash_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """The hash of the function `train` in a source."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def hash_of(source: str) -> str:
        names.append(f"functions_of_a_user_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(source)
        importlib.invalidate_caches()
        return hash_sources([importlib.import_module(names[-1]).train])

    yield hash_of
    for name in names:
        del sys.modules[name]


@pytest.mark.parametrize("source", SAME.values(), ids=SAME)
def test_what_changes_nothing_does_not_count(hash_of: Callable[[str], str], source: str) -> None:
    assert hash_of(source) == hash_of(FUNCTION)


@pytest.mark.parametrize("source", OTHER.values(), ids=OTHER)
def test_an_edited_function_is_another_one(hash_of: Callable[[str], str], source: str) -> None:
    assert hash_of(source) != hash_of(FUNCTION)


def test_own_functions_count_by_name() -> None:
    own = [DefaultTraining.train_epoch, DefaultTraining.validate]
    # A change of this number renames the runs of users.
    assert hash_sources(own) == "4f0fb362e3879eff"
    assert hash_sources(own[:1]) != hash_sources(own[1:])


BASE: dict[str, Any] = {
    "budget": {"max_drop": 0.01},
    "training": {"metric": "torchmetrics.classification.BinaryAccuracy"},
}


def identity_of(**changes: Any) -> dict[str, Any]:
    return AatSettings.model_validate(BASE | changes).identity(AatSettings.SEARCHED)


def test_settings_at_their_defaults_do_not_count() -> None:
    expected = {
        "budget": {"max_drop": 0.01},
        "training": {"metric": {"class_path": "torchmetrics.classification.BinaryAccuracy"}},
    }
    assert identity_of() == expected
    stated = {"seed": 0, "search": {"kind": "frontier"}, "compression": {"algorithm": "magnitude_sparsity"}}
    assert identity_of(**stated) == expected
    assert identity_of(training=BASE["training"] | {"batch_size": 32, "after_upgrade": "continue"}) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"search": {"kind": "interpolate"}},
        {"search": {"kind": "uniform_decrease"}},
        {"search": {"kind": "frontier", "maximal_total_epochs": 30}},
        {"compression": {"algorithm": "quantization"}},
        {"compression": [{"algorithm": "filter_pruning"}, {"algorithm": "quantization"}]},
        {"compression": [{"algorithm": "filter_pruning", "round_to": 8}, {"algorithm": "quantization"}]},
        {"training": BASE["training"] | {"distillation": None}},
    ],
)
def test_other_settings_count(change: dict[str, Any]) -> None:
    others = [identity_of(), identity_of(search={"kind": "early_exit"})]
    assert identity_of(**change) not in others


def test_all_settings_can_be_had() -> None:
    settings = AatSettings.model_validate(BASE)
    whole = settings.identity(defaults=True)
    dumped = settings.model_dump(mode="json")
    for name in TrainingSettings.WITHOUT_EFFECT:
        del dumped["training"][name]
    assert whole == dumped
