"""A module is saved and a module is loaded: complete, cut or quantized."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kedro.io import DataCatalog, DatasetError
from torch import nn

from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.export import NotExported
from kedro_aat.testing.training import assert_same_bits
from tests.datasets.saved import (
    INPUTS,
    built,
    composite_controller,
    filter_pruning_controller,
    listed,
    outputs,
    quantization_controller,
)
from tests.export.nets import TiedLanguageModel
from tests.nets import NeedsArguments, SmallNet


def test_module_is_saved_and_a_module_is_loaded(catalog: DataCatalog) -> None:
    model = built(num_classes=7, width=5)
    model.train()(INPUTS)  # BatchNorm has statistics now
    catalog.save("model", model)
    loaded = catalog.load("model")
    assert isinstance(loaded, SmallNet)
    assert loaded is not model
    assert not loaded.training
    assert torch.equal(outputs(loaded), outputs(model))
    assert_same_bits(loaded.state_dict(), model.state_dict())


def test_loaded_module_can_be_saved_again(catalog: DataCatalog) -> None:
    catalog.save("model", built(num_classes=7))
    catalog.save("model", catalog.load("model"))
    assert outputs(catalog.load("model")).shape == (16, 7)


def test_folder_contains_a_readable_recipe_and_no_pickle(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog.save("model", built(num_classes=7))
    folder = tmp_path / "models" / "model"
    assert listed(folder) == ["model.safetensors", "recipe.json"]
    assert json.loads((folder / "recipe.json").read_text()) == {
        "class_path": "tests.nets.SmallNet",
        "init_args": {"num_classes": 7},
        "frozen": [],
        "sha256": {"model.safetensors": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()},
    }
    assert not any(path.read_bytes().startswith((b"\x80", b"PK")) for path in folder.iterdir())


@pytest.mark.parametrize(
    "make", [copy.deepcopy, lambda model: model.half(), lambda model: model.to(memory_format=torch.channels_last)]
)
def test_copied_or_converted_module_can_be_saved(catalog: DataCatalog, make: Callable[[nn.Module], nn.Module]) -> None:
    model = make(built())
    catalog.save("model", model)
    torch.testing.assert_close(
        catalog.load("model").state_dict(), model.state_dict(), rtol=0, atol=0, check_dtype=False
    )


def test_tied_weights_stay_tied(catalog: DataCatalog) -> None:
    model = built("tests.export.nets.TiedLanguageModel")
    catalog.save("model", model)
    loaded = catalog.load("model")
    assert isinstance(loaded, TiedLanguageModel)
    assert loaded.embedding.weight is loaded.output.weight
    assert_same_bits(loaded.state_dict(), model.state_dict())


def test_module_with_unknown_arguments_cannot_be_saved(catalog: DataCatalog, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        catalog.save("model", NeedsArguments(3, 2))
    message = str(caught.value)
    for part in ("NeedsArguments", "'num_inputs': ...", "'num_outputs': ...", "build_module", "`recipe`", "catalog"):
        assert part in message
    assert "bias" not in message  # it has a default
    assert not catalog.exists("model")
    assert not (tmp_path / "models" / "model").exists()


def test_failed_save_keeps_the_previous_model(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog.save("model", built(num_classes=3))
    before = listed(tmp_path / "models")
    with pytest.raises(DatasetError):
        catalog.save("model", built("tests.nets.HoldsMoreThanTensors"))
    assert outputs(catalog.load("model")).shape == (16, 3)
    assert listed(tmp_path / "models") == before


def test_not_exported_removes_the_model(catalog: DataCatalog) -> None:
    catalog.save("model", built())
    assert catalog.exists("model")
    for _ in range(2):
        catalog.save("model", NotExported("no rate was within budget"))
        assert not catalog.exists("model")


def test_cut_module_is_loaded_as_saved(catalog: DataCatalog, tmp_path: Path) -> None:
    cut = filter_pruning_controller(0.6).strip()
    catalog.save("model", cut)
    loaded = catalog.load("model")
    assert isinstance(loaded, SmallNet)
    assert loaded.conv.out_channels < SmallNet().conv.out_channels
    assert torch.equal(outputs(loaded), outputs(cut))
    assert_same_bits(loaded.state_dict(), cut.state_dict())
    assert listed(tmp_path / "models" / "model") == ["model.safetensors", "recipe.json"]
    recipe = json.loads((tmp_path / "models" / "model" / "recipe.json").read_text())
    assert recipe["class_path"] == "tests.nets.SmallNet"
    assert recipe["plan"][0].keys() == {"layer", "kind", "size", "kept"}
    catalog.save("model", loaded)  # and again
    assert torch.equal(outputs(catalog.load("model")), outputs(cut))


def test_cut_attention_is_loaded_without_the_controller(catalog: DataCatalog) -> None:
    batch = torch.randint(30, (4, 9))
    cut = filter_pruning_controller(0.5, "tests.compression.architectures.TextTransformer", batch).strip().eval()
    catalog.save("model", cut)
    with torch.no_grad():
        assert torch.equal(catalog.load("model")(batch), cut(batch))


def test_quantized_model_is_saved_as_integers(catalog: DataCatalog, tmp_path: Path) -> None:
    saved = quantization_controller().strip()
    catalog.save("model", saved)
    loaded = catalog.load("model")
    assert torch.equal(outputs(loaded), outputs(saved))
    assert_same_bits(loaded.state_dict(), saved.state_dict())
    recipe = json.loads((tmp_path / "models" / "model" / "recipe.json").read_text())
    assert [layer["layer"] for layer in recipe["quantized"]["layers"]] == ["stem.0", "conv", "classifier"]
    catalog.save("model", loaded)
    assert torch.equal(outputs(catalog.load("model")), outputs(saved))


def test_quantized_model_takes_a_quarter_of_the_disk_space(catalog: DataCatalog, tmp_path: Path) -> None:
    sizes = []
    for rate in (0.0, 0.999):
        controller = QuantizationController(built(width=64))
        controller.compression_rate = rate
        outputs(controller.model)
        catalog.save("model", controller.strip())
        sizes.append((tmp_path / "models" / "model" / "model.safetensors").stat().st_size)
    assert sizes[0] / sizes[1] > 3.5


def test_cut_and_quantized_model_is_saved_without_its_controller(catalog: DataCatalog, tmp_path: Path) -> None:
    saved = composite_controller().strip()
    catalog.save("model", saved)
    loaded = catalog.load("model")
    assert isinstance(loaded, SmallNet)
    held = loaded.state_dict()["conv.weight"]
    assert held.dtype == torch.int8
    assert held.numel() < 576
    assert loaded.get_parameter("conv.weight").dtype == torch.float32  # for whoever reads it
    assert torch.equal(outputs(loaded), outputs(saved))
    assert_same_bits(loaded.state_dict(), saved.state_dict())
    folder = tmp_path / "models" / "model"
    assert listed(folder) == ["model.safetensors", "recipe.json"]
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["plan"]
    assert recipe["quantized"]
    assert "composite" not in (folder / "recipe.json").read_text()
    catalog.save("model", loaded)
    assert torch.equal(outputs(catalog.load("model")), outputs(saved))
