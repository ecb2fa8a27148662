"""A controller and its model are saved and loaded together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kedro.io import DataCatalog, DatasetError

from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import (
    KnowledgeDistillation,
    MagnitudeSparsity,
)
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.testing.training import BATCH, assert_same_bits, sgd, train
from tests.datasets.saved import (
    built,
    composite_controller,
    filter_pruning_controller,
    listed,
    outputs,
    quantization_controller,
    sparsity_controller,
)
from tests.nets import NeedsArguments


def test_controller_is_loaded_with_its_model(catalog: DataCatalog) -> None:
    saved = sparsity_controller(0.7, importance="normed_abs", ranking="local", ignored_scopes=("stem",))
    train(saved.model, sgd(saved.model), batch={**BATCH, "targets": BATCH["targets"].clamp_max(2)})
    catalog.save("controller", saved)
    loaded = catalog.load("controller")
    assert isinstance(loaded, MagnitudeSparsityController)
    assert loaded.report() == saved.report()
    assert loaded.report().requested_rate == 0.7
    assert loaded.settings == saved.settings
    assert loaded.compression_stage() == saved.compression_stage()
    assert torch.equal(outputs(loaded.model), outputs(saved.model))
    assert_same_bits(loaded.model.state_dict(), saved.model.state_dict())


def test_filter_pruning_controller_is_loaded_with_its_example_input(catalog: DataCatalog, tmp_path: Path) -> None:
    saved = filter_pruning_controller(0.5)
    train(saved.model, sgd(saved.model))
    catalog.save("controller", saved)
    loaded = catalog.load("controller")
    assert isinstance(loaded, FilterPruningController)
    assert loaded.report() == saved.report()
    assert loaded.cut_plan() == saved.cut_plan()
    assert torch.equal(outputs(loaded.strip()), outputs(saved.strip()))
    for controller in (saved, loaded):
        controller.compression_rate = 0.0
    assert_same_bits(loaded.strip().state_dict(), saved.strip().state_dict())


def test_loaded_quantization_controller_can_strip(catalog: DataCatalog) -> None:
    saved = quantization_controller()
    catalog.save("controller", saved)
    loaded = catalog.load("controller")
    assert isinstance(loaded, QuantizationController)
    assert loaded.report() == saved.report()
    assert_same_bits(loaded.model.state_dict(), saved.model.state_dict())
    assert torch.equal(outputs(loaded.strip()), outputs(saved.strip()))


@pytest.mark.parametrize("others", [(), (KnowledgeDistillation(type="mse"),), (MagnitudeSparsity(),)], ids=str)
def test_composite_controller_is_loaded_with_all_its_algorithms(catalog: DataCatalog, others: Any) -> None:
    saved = composite_controller(*others)
    catalog.save("controller", saved)
    loaded = catalog.load("controller")
    assert isinstance(loaded, CompositeController)
    assert loaded.settings == saved.settings
    assert loaded.get_state() == saved.get_state()
    assert_same_bits(loaded.model.state_dict(), saved.model.state_dict())
    assert torch.equal(outputs(loaded.model), outputs(saved.model))
    assert torch.equal(outputs(loaded.strip()), outputs(saved.strip()))
    for each in (saved, loaded):
        train(each.model, torch.optim.SGD(each.model.parameters(), lr=0.05))
        each.compression_rate = 0.2
    assert_same_bits(loaded.model.state_dict(), saved.model.state_dict())


def test_rate_of_a_loaded_controller_can_fall_to_0(catalog: DataCatalog) -> None:
    catalog.save("controller", sparsity_controller(0.9))
    loaded = catalog.load("controller")
    loaded.compression_rate = 0.0
    assert_same_bits(loaded.strip().state_dict(), built(num_classes=3).state_dict())


def test_masks_of_a_loaded_controller_survive_training(catalog: DataCatalog) -> None:
    catalog.save("controller", sparsity_controller(0.5))
    loaded = catalog.load("controller")
    before = loaded.report()
    train(loaded.model, sgd(loaded.model), batch={**BATCH, "targets": BATCH["targets"].clamp_max(2)})
    assert loaded.report() == before


def test_schedule_of_a_loaded_controller_continues(catalog: DataCatalog) -> None:
    schedule = ScheduleSettings(kind="polynomial", target_rate=0.4, target_epoch=4, power=1.0)
    saved = MagnitudeSparsityController(built(), MagnitudeSparsity(schedule=schedule))
    for _ in range(2):
        saved.scheduler.epoch_step()
    catalog.save("controller", saved)
    loaded = catalog.load("controller")
    loaded.scheduler.epoch_step()
    assert loaded.report().requested_rate == pytest.approx(0.2)


def test_stripped_model_of_a_loaded_controller_can_be_saved(catalog: DataCatalog) -> None:
    catalog.save("controller", sparsity_controller(0.5))
    stripped = catalog.load("controller").strip()
    catalog.save("model", stripped)
    assert torch.equal(outputs(catalog.load("model")), outputs(stripped))


def test_folder_of_a_controller_contains_no_pickle(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog.save("controller", sparsity_controller(0.5))
    folder = tmp_path / "models" / "controller"
    assert listed(folder) == ["compression.json", "model.safetensors", "recipe.json"]
    compression = json.loads((folder / "compression.json").read_text())
    assert compression["settings"]["algorithm"] == "magnitude_sparsity"
    assert compression["state"]["requested_rate"] == 0.5


def test_controller_of_a_module_with_unknown_arguments_cannot_be_saved(catalog: DataCatalog) -> None:
    with pytest.raises(DatasetError, match=r"'num_inputs': .*'num_outputs': "):
        catalog.save("controller", MagnitudeSparsityController(NeedsArguments(3, 2)))
    assert not catalog.exists("controller")


def test_failed_save_keeps_the_previous_controller(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog.save("controller", sparsity_controller(0.5))
    before = listed(tmp_path / "models")
    with pytest.raises(DatasetError):
        catalog.save("controller", MagnitudeSparsityController(built("tests.nets.HoldsMoreThanTensors")))
    assert catalog.load("controller").report().requested_rate == 0.5
    assert listed(tmp_path / "models") == before
