"""A saved file builds what its catalog entry trusts; nothing else is imported or called."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kedro.framework.project
import pytest
import torch
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog, DatasetError
from safetensors.torch import save_file
from yaml.parser import ParserError

from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.datasets.model import ControllerDataset, ModelDataset
from kedro_aat.datasets.recipe import build_module
from kedro_aat.datasets.trust import Trust, share_trust
from kedro_aat.errors import AatError, ConfigurationError
from kedro_aat.imports import Imported
from kedro_aat.plugin import hooks

# The project's own package, and one of strangers; their traps create the file MARKER when they are imported or called.
PACKAGES = {
    "own/__init__.py": "",
    "own/__main__.py": "from own.nets import Own; open('MARKER', 'w')",
    "own/nets.py": """
import os
from collections.abc import Callable
from typing import Any, Self
from torch import nn
from stranger.nets import Base, Net as Stranger

class Own(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(2, width)

    @classmethod
    def wide(cls, width: int) -> Self:
        return cls(width)

    def method(self) -> nn.Module:
        open('MARKER', 'w')

class Child(Base):
    pass

class Wanting(nn.Module):
    def __init__(self, part: Callable[[], Any] | dict[str, Any]) -> None:
        super().__init__()
        self.part = part

def make(width: int) -> Own:
    return Own(width)
""",
    "stranger/__init__.py": "",
    "stranger/nets.py": """
from typing import Self
from torch import nn

class Net(nn.Linear):
    def __init__(self, width: int = 2) -> None:
        super().__init__(2, width)

class Base(nn.Module):
    @classmethod
    def restore(cls, path: str = "") -> Self:
        open('MARKER', 'w')
        return cls()

def make(width: int) -> Net:
    return Net(width)
""",
    "stranger/trap.py": "from torch import nn\nopen('MARKER', 'w')\nclass Net(nn.Module): pass",
}


@pytest.fixture(autouse=True)
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that must not exist after a test."""
    path = tmp_path / "marker"
    for name, text in PACKAGES.items():
        file = tmp_path / "packages" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("MARKER", str(path)))
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(kedro.framework.project, "PACKAGE_NAME", "own")
    yield path
    for name in [name for name in sys.modules if name.split(".")[0] in ("own", "stranger")]:
        del sys.modules[name]
    assert not path.exists()


def recipe(class_path: str, **init_args: Any) -> Imported:
    return Imported(class_path=class_path, init_args=init_args)


@pytest.mark.parametrize(
    "class_path", ["torch.nn.Identity", "kedro_aat.testing.training.SmallNet", "own.nets.Own", "own.nets.Child"]
)
def test_classes_of_torch_and_of_the_project_are_trusted(class_path: str) -> None:
    Trust().require(recipe(class_path))


@pytest.mark.parametrize("key", ["class_path", "_target_"])
def test_arguments_that_name_code_need_the_class_to_be_named(key: str) -> None:
    saved = recipe("own.nets.Own", width=[1, {"part": {key: "os.system"}}])
    with pytest.raises(AatError, match=f"under '{key}'"):
        Trust().require(saved)
    assert Trust("own.nets.Own").require(saved) == "name"  # the class gets the mapping as it is


@pytest.mark.parametrize("argument", [{"class_path": "stranger.trap.Net"}, "stranger.trap.Net"])
def test_arguments_are_built_only_if_the_catalog_states_the_call(argument: Any) -> None:
    """A mapping with `class_path`, or a path where a function is wanted: a file must not choose what is imported."""
    saved = recipe("own.nets.Wanting", part=argument)
    call = saved.model_dump()
    for trust in (Trust("own.nets.Wanting"), Trust(trusted=["own.nets.Wanting"])):
        assert build_module(saved, stated=trust.require(saved)).part == argument
    for trust in (Trust("own.nets.Wanting", [call]), Trust(trusted=[call]), Trust(recipe=saved)):
        assert trust.require(saved) == "call"
    with pytest.raises(AatError, match=r"allows only own\.nets\.Own"):
        Trust("own.nets.Own", [call]).require(saved)


def test_class_method_builds_a_module() -> None:
    Trust().require(wide := recipe("own.nets.Own.wide", width=3))
    assert build_module(wide).linear.out_features == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "class_path",
    [
        "stranger.trap.Net",
        "os.system",
        "torch.fx.graph_module.reduce_graph_module",
        "torch.nn.functional.relu",
        "torch.nnet.Linear",
        "own.__main__.Own",
        "own.nets",
        "own.nets.make",  # a function
        "own.nets.Stranger",  # only imported there
        "own.nets.nn.Linear",
        "own.nets.os.system",
        "own.nets.Own.method",
        "own.nets.Own.__init__",
        "own.nets.Own.__init__.__globals__",
        "own.nets.Child.restore",  # inherited from a stranger
        "own.nets.Own\n  trusted: [os]",
        "own..nets.Own",
        "",
    ],
)
def test_anything_else_is_refused_and_not_called(class_path: str, tmp_path: Path) -> None:
    saved = recipe(class_path)
    with pytest.raises(AatError) as error:
        Trust().require(saved)
    assert "\n  trusted: [os]" not in str(error.value)  # the file does not write the advice
    (tmp_path / "recipe.json").write_text(saved.model_dump_json())
    save_file({}, tmp_path / "model.safetensors")
    for dataset in (ModelDataset, ControllerDataset):
        with pytest.raises(DatasetError) as wrapped:
            dataset(filepath=str(tmp_path)).load()
        assert isinstance(wrapped.value.__cause__, AatError)


def test_message_has_the_line_that_the_entry_needs() -> None:
    with pytest.raises(AatError, match=r"Nothing was imported(.|\n)*\n  class_path: stranger\.nets\.make$"):
        Trust().require(saved := recipe("stranger.nets.make", width=2))
    Trust("stranger.nets.make").require(saved)


@pytest.mark.parametrize(
    ("trusted", "class_path", "allowed"),
    [
        (["stranger"], "stranger.nets.Net", True),
        (["stranger"], "stranger.nets.make", True),
        (["stranger"], "own.nets.Stranger", True),
        (["stranger"], "own.nets.Child.restore", True),
        (["stranger.nets"], "stranger.nets.make", True),
        (["stranger.nets.Net"], "stranger.nets.Net", True),
        (["stranger.nets.Net"], "stranger.nets.make", False),
        (["stranger.nets.Net"], "stranger.trap.Net", False),
        (["own"], "own.nets.make", True),
        (["own"], "own.nets.Stranger", False),
        (["strang"], "stranger.trap.Net", False),
    ],
)
def test_list_of_trusted_names(trusted: list[str], class_path: str, allowed: bool) -> None:
    if allowed:
        Trust(trusted=trusted).require(recipe(class_path))
    else:
        with pytest.raises(AatError):
            Trust(trusted=trusted).require(recipe(class_path))


def test_class_path_allows_nothing_else() -> None:
    with pytest.raises(AatError, match=r"allows only own\.nets\.Own\."):
        Trust("own.nets.Own", ["stranger"]).require(recipe("stranger.trap.Net"))


@pytest.mark.parametrize("trusted", ["stranger", 5])
def test_trusted_must_be_a_list(trusted: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be a list"):
        ModelDataset(filepath="model", trusted=trusted)


def test_function_of_another_entry_is_called_with_its_arguments_only() -> None:
    trust = Trust(trusted=[recipe(f"stranger.nets.{name}", width=3).model_dump() for name in ("make", "Net")])
    trust.require(recipe("stranger.nets.make", width=3))
    trust.require(recipe("stranger.nets.Net", width=4))
    with pytest.raises(AatError):
        trust.require(recipe("stranger.nets.make", width=4))


IMPORTED = {
    "type": "kedro_aat.datasets.imported.ImportedModelDataset",
    "class_path": "stranger.nets.make",
    "init_args": {"width": 3},
}
CONTROLLER = {"type": "kedro_aat.datasets.model.ControllerDataset", "filepath": "controller"}
MODEL = {"type": "kedro_aat.datasets.model.ModelDataset", "filepath": "model"}
CALL = {"class_path": "stranger.nets.make", "init_args": {"width": 3}}


@pytest.mark.parametrize(
    ("catalog", "name", "expected"),
    [
        ({"baseline": IMPORTED, "saved": CONTROLLER}, "saved", [CALL]),
        ({"saved": CONTROLLER, "baseline": {**MODEL, "recipe": CALL}}, "saved", [CALL]),
        ({"saved": CONTROLLER, "baseline": {**MODEL, "class_path": "a.B"}}, "saved", ["a.B"]),
        ({"saved": {**MODEL, "trusted": ["x"]}, "baseline": IMPORTED}, "saved", ["x", CALL]),
        ({"saved": {**MODEL, "class_path": "a.B"}, "baseline": IMPORTED}, "saved", None),
        ({"saved": CONTROLLER, "other": {**MODEL, "trusted": ["x"]}}, "saved", []),
        (
            {"{name}.saved": CONTROLLER, "{name}.base": {**IMPORTED, "class_path": "a.{name}"}},
            "{name}.saved",
            "a.{name}",
        ),
        ({"saved": CONTROLLER, "{name}.base": {**IMPORTED, "class_path": "a.{name}"}}, "saved", []),
        ({"{name}.saved": CONTROLLER, "base": IMPORTED}, "{name}.saved", [CALL]),
    ],
)
def test_what_entries_share(catalog: dict[str, Any], name: str, expected: Any) -> None:
    if isinstance(expected, str):
        expected = [CALL | {"class_path": expected}]
    assert share_trust(catalog)[name].get("trusted") == expected


def test_only_entries_of_saved_models_change() -> None:
    others = {"data": {"type": "pandas.CSVDataset", "filepath": "x"}, "wrong": "text", "baseline": IMPORTED}
    assert share_trust(others) == others
    inside = share_trust({**others, "cached": {"type": "CachedDataset", "dataset": CONTROLLER}})["cached"]["dataset"]
    assert inside["trusted"] == [CALL]


def test_model_of_another_library_is_named_once_in_a_catalog(tmp_path: Path) -> None:
    """Through the hook, with Kedro's own configuration; a catalog without a project shares nothing."""
    entries = {"baseline_model": IMPORTED, "{name}_controller": {**CONTROLLER, "filepath": f"{tmp_path}/{{name}}"}}
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/catalog.yml").write_text(json.dumps(entries))

    def config() -> OmegaConfigLoader:
        return OmegaConfigLoader(conf_source=str(tmp_path), base_env="conf", default_run_env="conf")

    context = SimpleNamespace(config_loader=config())
    hooks.after_context_created(context)  # type: ignore[arg-type]
    catalog = DataCatalog.from_config(context.config_loader["catalog"])
    controller = MagnitudeSparsityController(catalog.load("baseline_model"), MagnitudeSparsity())
    catalog.save("tuned_controller", controller)
    assert type(catalog.load("tuned_controller").model).__module__ == "stranger.nets"
    with pytest.raises(DatasetError, match=r"\n  class_path: stranger\.nets\.make"):
        DataCatalog.from_config(config()["catalog"]).load("tuned_controller")


def test_catalog_that_cannot_be_read_is_left_to_kedro(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/catalog.yml").write_text("{")
    loader = OmegaConfigLoader(conf_source=str(tmp_path), base_env="conf", default_run_env="conf")
    hooks.after_context_created(SimpleNamespace(config_loader=loader))  # type: ignore[arg-type]
    with pytest.raises(ParserError):
        loader["catalog"]


@pytest.mark.parametrize("file", ["model.safetensors", "compression.json", "example_input.safetensors"])
def test_flipped_bit_is_one_error(tmp_path: Path, file: str) -> None:
    dataset = ControllerDataset(filepath=str(tmp_path / "saved"))
    model = build_module(recipe("torch.nn.Linear", in_features=2, out_features=2))
    dataset.save(MagnitudeSparsityController(model, MagnitudeSparsity(), example_input=torch.zeros(1, 2)))
    path = tmp_path / "saved" / file
    contents = bytearray(path.read_bytes())
    contents[-2] ^= 1
    path.write_bytes(contents)
    with pytest.raises(DatasetError, match=rf"{file} is damaged: its SHA-256") as wrapped:
        dataset.load()
    assert isinstance(wrapped.value.__cause__, AatError)
