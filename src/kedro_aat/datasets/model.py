"""Datasets that save and load a module or a controller, as safetensors and a JSON recipe, without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import DatasetError
from torch import nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import CompressionSettings
from kedro_aat.datasets.local import LocalDataset, remove, replacing
from kedro_aat.datasets.previews import read_tensor_info, state_dict_table
from kedro_aat.datasets.recipe import Recipe, build_module, recipe_of
from kedro_aat.errors import AatError
from kedro_aat.export import NotExported
from kedro_aat.imports import Imported
from kedro_aat.tensors import load_tensors, save_tensors
from kedro_aat.validated import Settings

if TYPE_CHECKING:
    from kedro_datasets._typing import JSONPreview, TablePreview

_RECIPE = "recipe.json"
_TENSORS = "model.safetensors"
_COMPRESSION = "compression.json"
_EXAMPLE = "example_input.safetensors"


class _SavedCompression(Settings):
    """The result of `get_compression_state`."""

    settings: CompressionSettings
    state: dict[str, Any]


class ModelDataset(LocalDataset[nn.Module | NotExported, nn.Module]):
    """A module as a folder with `recipe.json` and `model.safetensors`.

    The recipe of a cut module contains its cut plan. The recipe of a quantized module lists the layers that hold int8,
    and the tensors are those integers.

    Args:
        filepath: The folder.
        recipe: `class_path` and `init_args` of the module, if it was not built by `build_module`.
        metadata: For Kedro-Viz and other plugins.
    """

    def __init__(
        self, *, filepath: str, recipe: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self._recipe = None if recipe is None else Imported.model_validate(recipe)

    def load(self) -> nn.Module:
        """Builds the module on the CPU in evaluation mode, and loads its tensors."""
        module = build_module(Recipe.model_validate(_read_json(self._path / _RECIPE)))
        module.load_state_dict(load_tensors(self._path / _TENSORS))
        return module.eval()

    def save(self, data: nn.Module | NotExported) -> None:
        """Writes the module; `NotExported` removes the folder."""
        if isinstance(data, NotExported):
            remove(self._path)
            return
        recipe = recipe_of(data, self._recipe)
        with replacing(self._path) as folder:
            _write_module(folder, recipe, data)

    def preview(self, nrows: int = 100) -> TablePreview:
        """The layers as they are after the cut; for Kedro-Viz."""
        return state_dict_table(read_tensor_info(self._path / _TENSORS), nrows) if self._exists() else None

    def _exists(self) -> bool:
        return (self._path / _RECIPE).exists()


class ControllerDataset(LocalDataset[ModelController, ModelController]):
    """A compression controller and its model, saved as one object so that they stay together.

    Args:
        filepath: The folder. It contains `recipe.json`, `compression.json`, `model.safetensors` (with the masks), and
            `example_input.safetensors` if the controller has an example input.
        metadata: For Kedro-Viz and other plugins.
    """

    def load(self) -> ModelController:
        """Builds the model and the controller, and loads the state of both."""
        compression = _SavedCompression.model_validate(_read_json(self._path / _COMPRESSION))
        example = self._path / _EXAMPLE
        controller = build_controller(
            build_module(Recipe.model_validate(_read_json(self._path / _RECIPE))),
            compression.settings,
            example_input=load_tensors(example)["input"] if example.exists() else None,
        )
        controller.model.load_state_dict(load_tensors(self._path / _TENSORS))
        controller.load_state(compression.state)
        return controller

    def save(self, data: ModelController) -> None:
        """Writes the controller and its model."""
        try:
            recipe = recipe_of(data.model)
        except AatError as error:
            raise DatasetError(str(error)) from error
        with replacing(self._path) as folder:
            _write_module(folder, recipe, data.model)
            (folder / _COMPRESSION).write_text(json.dumps(data.get_compression_state(), indent=2))
            if data.example_input is not None:
                save_tensors({"input": data.example_input}, folder / _EXAMPLE)

    def preview(self) -> JSONPreview:
        """How the model is built and compressed; for Kedro-Viz."""
        if not self._exists():
            return None
        names = {"recipe": _RECIPE, "compression": _COMPRESSION}
        return json.dumps({key: _read_json(self._path / name) for key, name in names.items()})

    def _exists(self) -> bool:
        return (self._path / _COMPRESSION).exists()


def _write_module(folder: Path, recipe: Imported, module: nn.Module) -> None:
    (folder / _RECIPE).write_text(recipe.model_dump_json(indent=2), encoding="utf-8")
    save_tensors(module.state_dict(), folder / _TENSORS)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())
