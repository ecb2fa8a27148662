"""A controller and its model are saved and loaded together."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kedro.io import DataCatalog, DatasetError
from torch import Tensor, nn

from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import (
    KnowledgeDistillation,
    MagnitudeSparsity,
)
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.tensors import load_tensors, mark_made_up
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


def test_example_input_of_the_users_is_not_saved(catalog: DataCatalog, tmp_path: Path) -> None:
    saved = filter_pruning_controller(0.5)
    assert saved.example_input is not None
    catalog.save("controller", saved)
    stored = load_tensors(tmp_path / "models/controller/example_input.safetensors")["input"]
    assert stored.shape == saved.example_input.shape
    assert not torch.isin(stored, saved.example_input).any()
    loaded = catalog.load("controller")
    for _ in range(2):  # made-up values are saved as they are
        catalog.save("controller", copy.deepcopy(loaded))
        loaded = catalog.load("controller")
    assert torch.equal(loaded.example_input, stored)


class Embedded(nn.Module):
    """Takes a row of a small table, chosen by the first column, and numbers far beyond the table's size."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.body = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.body(torch.cat([self.table(x[:, 0].long()), x[:, 1:]], dim=1))
        return outputs


@pytest.mark.parametrize("num_examples", [4, 64])
def test_example_input_with_columns_of_different_ranges(num_examples: int, catalog: DataCatalog) -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(0, 3, (num_examples, 1), generator=generator), torch.rand(num_examples, 1) * 1000
    example = torch.cat(columns, dim=1)
    controller = MagnitudeSparsityController(built(f"{__name__}.Embedded"), example_input=example)
    if num_examples >= 32:
        catalog.save("controller", controller)
    else:
        with pytest.raises(DatasetError, match=r"example_input is not saved.*IndexError.*at least 32 examples"):
            catalog.save("controller", controller)
        controller.example_input = mark_made_up(torch.zeros(1, 2))
        catalog.save("controller", controller)
    assert catalog.load("controller").example_input.shape[1] == 2


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
