"""A recipe builds modules and nothing else, and stays with the module that it built."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kedro.io import DataCatalog, DatasetError

from kedro_aat.datasets.recipe import Recipe, build_module, recipe_of
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.imports import Imported
from tests import nets
from tests.datasets.saved import built, filter_pruning_controller, outputs
from tests.nets import NeedsArguments, SmallNet


@pytest.fixture(autouse=True)
def called() -> Iterator[list[str]]:
    """Names of the functions in `tests.nets` that were called; they record it."""
    nets.CALLED.clear()
    yield nets.CALLED
    nets.CALLED.clear()


def test_recipe_in_the_catalog_entry(catalog: DataCatalog) -> None:
    model = NeedsArguments(3, 2, bias=False)
    catalog.save("with_recipe", model)
    loaded = catalog.load("with_recipe")
    assert isinstance(loaded, NeedsArguments)
    assert torch.equal(loaded.linear.weight, model.linear.weight)
    assert loaded.linear.bias is None


def test_function_annotated_to_return_a_module_is_a_recipe(catalog: DataCatalog) -> None:
    model = built("tests.nets.make_small_net", num_classes=3)
    catalog.save("model", model)
    assert torch.equal(outputs(catalog.load("model")), outputs(model))


@pytest.mark.parametrize(
    ("class_path", "init_args"),
    [
        ("os.system", {"command": "touch {trap}"}),
        ("os.mkdir", {"path": "{trap}"}),
        ("builtins.exec", {}),
        ("subprocess.check_call", {"args": ["touch", "{trap}"]}),
        ("subprocess.Popen", {"args": ["touch", "{trap}"]}),
        ("pathlib.Path", {}),
        ("tests.nets.make_something", {"path": "{trap}"}),
        ("tests.nets.make_list", {"path": "{trap}"}),
        ("tests.nets.make_what_cannot_be_resolved", {"path": "{trap}"}),
        ("torch.load", {"f": "{trap}"}),
        ("torch.relu", {}),
        ("math.pi", {}),
        ("tests.nets", {}),
    ],
)
def test_recipe_that_returns_no_module_is_refused_and_not_called(
    catalog: DataCatalog, tmp_path: Path, called: list[str], class_path: str, init_args: dict[str, Any]
) -> None:
    trap = tmp_path / "trap"
    text = json.dumps({"class_path": class_path, "init_args": init_args}).replace("{trap}", str(trap))
    refusal = r"does not return a torch\.nn\.Module|must name a class or a function"
    with pytest.raises((ModelError, ConfigurationError), match=refusal):
        build_module(Imported.model_validate_json(text))

    catalog.save("model", built())
    (tmp_path / "models" / "model" / "recipe.json").write_text(text)
    with pytest.raises(DatasetError, match=r"does not return a torch\.nn\.Module|The recipe names"):
        catalog.load("model")
    assert not trap.exists()
    assert called == []


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"class_path": "tests.nets.SmalNet"}, "Did you mean 'SmallNet'"),
        ({"class_path": "no_such_module.Net"}, "cannot be imported"),
        ({"class_path": "tests.nets.SmallNet", "init_args": {"num_clases": 3}}, "Did you mean 'num_classes'"),
    ],
)
def test_recipe_with_a_mistake_is_an_error(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_module(Imported.model_validate(recipe))


def test_arguments_that_the_class_refuses_are_an_error_with_its_own() -> None:
    linear = {"class_path": "torch.nn.Linear", "init_args": {"in_features": -1, "out_features": 2}}
    catalog = DataCatalog.from_config({"model": {"type": "kedro_aat.datasets.imported.ImportedModelDataset", **linear}})
    with pytest.raises(DatasetError) as caught:
        catalog.load("model")
    message = str(caught.value)
    assert "torch.nn.Linear refused its init_args (in_features=-1, out_features=2): RuntimeError: Trying to" in message
    assert "backup" not in message


def test_module_keeps_its_recipe() -> None:
    recipe = Imported(class_path="tests.nets.SmallNet", init_args={"num_classes": 3})
    assert recipe_of(copy.deepcopy(build_module(recipe))) == recipe


def test_cut_plan_is_added_to_a_recipe_from_the_catalog(catalog: DataCatalog) -> None:
    recipe = Imported(class_path="tests.nets.SmallNet", init_args={})
    assert isinstance(known := recipe_of(filter_pruning_controller(0.6).strip(), recipe), Recipe)
    assert known.plan
    assert recipe_of(SmallNet(), recipe) == recipe


def test_cut_plan_of_another_module_is_refused(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog.save("model", filter_pruning_controller(0.6).strip())
    path = tmp_path / "models" / "model" / "recipe.json"
    recipe = json.loads(path.read_text())
    path.write_text(json.dumps(recipe | {"init_args": {"width": 5}}))
    with pytest.raises(DatasetError, match="Build the model with the arguments"):
        catalog.load("model")
