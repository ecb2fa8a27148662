"""A recipe names a class method or a function, with nested arguments, and is remembered by what it built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kedro.io import DatasetError

from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.datasets.imported import ImportedModelDataset
from kedro_aat.datasets.model import ControllerDataset, ModelDataset
from kedro_aat.datasets.trust import share_trust
from tests.built_models import Config, Pretrained

ROWS = torch.randn(5, 4)
OWN = "tests.built_models"
CONFIG = {"class_path": f"{OWN}.Config", "init_args": {"width": 6, "activation": {"class_path": "torch.nn.Tanh"}}}
CALLS: dict[str, dict[str, Any]] = {
    "class method": {"class_path": f"{OWN}.AutoModel.from_config", "init_args": {"config": CONFIG}},
    "static method": {"class_path": f"{OWN}.AutoModel.from_pretrained", "init_args": {"name": "small", "width": 5}},
    "nested class": {"class_path": f"{OWN}.AutoModel.Nested.small", "init_args": {}},
    "class": {"class_path": f"{OWN}.Pretrained", "init_args": {"config": CONFIG}},
}


@pytest.mark.parametrize("kind", CALLS)
def test_what_it_built_is_saved_and_loaded_by_the_catalog_that_names_it(kind: str, tmp_path: Path) -> None:
    call = CALLS[kind]
    entries: dict[str, Any] = {
        "baseline": {"type": "kedro_aat.datasets.imported.ImportedModelDataset", **call},
        "model": {"type": "kedro_aat.datasets.model.ModelDataset", "filepath": str(tmp_path / "model")},
        "controller": {"type": "kedro_aat.datasets.model.ControllerDataset", "filepath": str(tmp_path / "controller")},
    }
    shared = share_trust(entries)
    model = ImportedModelDataset(**call).load()
    assert isinstance(model, Pretrained)
    if "config" in call["init_args"]:
        assert isinstance(model.net[1], torch.nn.Tanh)
        assert model.net[0].out_features == 6

    saved = ModelDataset(filepath=entries["model"]["filepath"], trusted=shared["model"]["trusted"])
    saved.save(model)
    assert torch.equal(saved.load()(ROWS), model(ROWS))
    controller = MagnitudeSparsityController(model)
    controller.compression_rate = 0.5
    both = ControllerDataset(filepath=entries["controller"]["filepath"], trusted=shared["controller"]["trusted"])
    both.save(controller)
    loaded = both.load()
    assert loaded.compression_rate == controller.compression_rate
    assert torch.equal(loaded.model.eval()(ROWS), model.eval()(ROWS))

    with pytest.raises(DatasetError, match=r"trusts only .*Nothing was imported"):
        ModelDataset(filepath=entries["model"]["filepath"]).load()
    with pytest.raises(DatasetError, match="allows only"):
        ModelDataset(filepath=entries["model"]["filepath"], class_path=f"{OWN}.in_parallel").load()


def test_recipe_of_an_entry_for_a_module_that_python_built(tmp_path: Path) -> None:
    model = Pretrained(Config(6, torch.nn.Tanh()))
    dataset = ModelDataset(filepath=str(tmp_path), recipe=CALLS["class method"])
    dataset.save(model)
    assert torch.equal(dataset.load()(ROWS), model(ROWS))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"class_path": f"{OWN}.AutoModel.from_json", "init_args": {"path": "x"}}, "returned a dict, not a torch.nn"),
        ({"class_path": f"{OWN}.Config", "init_args": {"width": 3}}, "does not return a torch.nn.Module"),
        ({"class_path": f"{OWN}.Pretrained.from_instance", "init_args": {"width": 3}}, "is a method of instances"),
        ({"class_path": f"{OWN}.AutoModel.from_confg"}, "Did you mean 'from_config'"),
        ({"class_path": f"{OWN}.AutoModel.from_pretrained", "init_args": {"nam": "x"}}, "Did you mean 'name'"),
        (
            {"class_path": f"{OWN}.AutoModel.from_config", "init_args": {"config": {"class_path": f"{OWN}.Configg"}}},
            "init_args.config.class_path: .*Did you mean 'Config'",
        ),
        (
            {"class_path": f"{OWN}.Pretrained", "init_args": {"config": {**CONFIG, "init_args": {"widt": 3}}}},
            r"init_args\.config\.init_args\.widt: .*Did you mean 'width'",
        ),
        (
            {"class_path": f"{OWN}.AutoModel.from_config", "init_args": {"config": 3}},
            r"refused its init_args \(config=3",
        ),
        ({"class_path": "os.system", "init_args": {"command": "true"}}, "does not return a torch.nn.Module"),
    ],
)
def test_mistakes_are_named(call: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        ImportedModelDataset(**call).load()


def test_frozen_parameters_stay_frozen(tmp_path: Path) -> None:
    """Those that the class freezes, those that the user freezes later, and those that the user makes train again."""
    model = ImportedModelDataset(class_path=f"{OWN}.with_frozen_backbone").load()
    assert isinstance(model, Pretrained)
    for frozen in (["net.0.weight", "net.0.bias"], ["net.2.weight"], []):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        saved = ModelDataset(filepath=str(tmp_path / "model"), class_path=f"{OWN}.with_frozen_backbone")
        saved.save(model)
        assert [name for name, each in saved.load().named_parameters() if not each.requires_grad] == frozen
        controller = MagnitudeSparsityController(ImportedModelDataset(class_path=f"{OWN}.with_frozen_backbone").load())
        both = ControllerDataset(filepath=str(tmp_path / "controller"), class_path=f"{OWN}.with_frozen_backbone")
        both.save(controller)
        assert both.load().weight_names == ["net.2.weight"]
