"""Datasets that save and load a module or a controller, as safetensors and a JSON recipe, without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from kedro.io import DatasetError
from torch import nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import CompressionSettings
from kedro_aat.datasets.local import LocalDataset
from kedro_aat.datasets.previews import open_small, read_tensor_info, state_dict_table
from kedro_aat.datasets.recipe import Recipe, build_module, recipe_of
from kedro_aat.errors import AatError
from kedro_aat.export import NotExported
from kedro_aat.imports import Imported
from kedro_aat.storage import FileGroup
from kedro_aat.tensors import load_tensors, serialize_tensors
from kedro_aat.validated import Settings

if TYPE_CHECKING:
    from kedro_datasets._typing import JSONPreview, TablePreview

_RECIPE = "recipe.json"
_TENSORS = "model.safetensors"
_COMPRESSION = "compression.json"
_EXAMPLE = "example_input.safetensors"

_Saved = TypeVar("_Saved")
_Loaded = TypeVar("_Loaded")


class _SavedCompression(Settings):
    """The result of `get_compression_state`."""

    settings: CompressionSettings
    state: dict[str, Any]


class _FolderDataset(LocalDataset[_Saved, _Loaded]):
    """A folder whose files are replaced together, and which holds nothing else.

    Attributes:
        FILES: Names of the files.
    """

    FILES: ClassVar[tuple[str, ...]]

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self._files = FileGroup(self._path, self.FILES)

    def save_mistakes(self, name: str) -> list[str]:
        """Lists why nothing could be saved.

        Args:
            name: Key to report the mistakes under, such as the name of the catalog entry.
        """
        return [f"{name}: {mistake}" for mistake in self._files.mistakes()]


class ModelDataset(_FolderDataset[nn.Module | NotExported, nn.Module]):
    """A module as a folder with `recipe.json` and `model.safetensors`.

    The recipe of a cut module contains its cut plan. The recipe of a quantized module lists the layers that hold int8,
    and the tensors are those integers.

    Args:
        filepath: The folder.
        recipe: `class_path` and `init_args` of the module, if it was not built by `build_module`.
        metadata: For Kedro-Viz and other plugins.
    """

    FILES: ClassVar[tuple[str, ...]] = (_RECIPE, _TENSORS)

    def __init__(
        self, *, filepath: str, recipe: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self._recipe = None if recipe is None else Imported.model_validate(recipe)

    def load(self) -> nn.Module:
        """Builds the module on the CPU in evaluation mode, and loads its tensors."""
        module = build_module(Recipe.model_validate(_read_json(self._files.path(_RECIPE))))
        module.load_state_dict(load_tensors(self._files.path(_TENSORS)))
        return module.eval()

    def save(self, data: nn.Module | NotExported) -> None:
        """Writes the module; `NotExported` removes the folder.

        Raises:
            StorageError: The folder holds files of others, another process is writing it, or the file system refuses.
        """
        if isinstance(data, NotExported):
            self._files.remove()
        else:
            self._files.replace(_module_files(data, recipe_of(data, self._recipe)))

    def preview(self, nrows: int = 100) -> TablePreview:
        """The layers as they are after the cut; for Kedro-Viz."""
        return state_dict_table(read_tensor_info(self._files.path(_TENSORS)), nrows) if self._exists() else None

    def _exists(self) -> bool:
        return self._files.path(_RECIPE).exists()


class ControllerDataset(_FolderDataset[ModelController, ModelController]):
    """A compression controller and its model, saved as one object so that they stay together.

    Args:
        filepath: The folder. It contains `recipe.json`, `compression.json`, `model.safetensors` (with the masks), and
            `example_input.safetensors` if the controller has an example input.
        metadata: For Kedro-Viz and other plugins.
    """

    FILES: ClassVar[tuple[str, ...]] = (_RECIPE, _TENSORS, _COMPRESSION, _EXAMPLE)

    def load(self) -> ModelController:
        """Builds the model and the controller, and loads the state of both."""
        compression = _SavedCompression.model_validate(_read_json(self._files.path(_COMPRESSION)))
        example = self._files.path(_EXAMPLE)
        controller = build_controller(
            build_module(Recipe.model_validate(_read_json(self._files.path(_RECIPE)))),
            compression.settings,
            example_input=load_tensors(example)["input"] if example.exists() else None,
        )
        controller.model.load_state_dict(load_tensors(self._files.path(_TENSORS)))
        controller.load_state(compression.state)
        return controller

    def save(self, data: ModelController) -> None:
        """Writes the controller and its model.

        Raises:
            StorageError: The folder holds files of others, another process is writing it, or the file system refuses.
        """
        try:
            recipe = recipe_of(data.model)
        except AatError as error:
            raise DatasetError(str(error)) from error
        files = _module_files(data.model, recipe)
        files[_COMPRESSION] = json.dumps(data.get_compression_state(), indent=2).encode()
        if data.example_input is not None:
            files[_EXAMPLE] = serialize_tensors({"input": data.example_input})
        self._files.replace(files)

    def preview(self) -> JSONPreview:
        """How the model is built and compressed; for Kedro-Viz."""
        if not self._exists():
            return None
        names = {"recipe": _RECIPE, "compression": _COMPRESSION}
        return json.dumps({key: _read_json(self._files.path(name)) for key, name in names.items()})

    def _exists(self) -> bool:
        return self._files.path(_COMPRESSION).exists()


def _module_files(module: nn.Module, recipe: Imported) -> dict[str, bytes]:
    return {
        _RECIPE: recipe.model_dump_json(indent=2).encode(),
        _TENSORS: serialize_tensors(module.state_dict()),
    }


def _read_json(path: Path) -> Any:
    with open_small(path) as file:
        return json.load(file)
