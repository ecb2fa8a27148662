"""Datasets of modules: a module is saved and a module is loaded, through safetensors and a JSON recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset, DatasetError
from torch import nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import CompressionSettings
from kedro_aat.datasets.folder import remove, replacing
from kedro_aat.datasets.previews import layer_table, tensors_in
from kedro_aat.datasets.recipe import Recipe, build_module, recipe_of
from kedro_aat.errors import AatError
from kedro_aat.export import NotExported
from kedro_aat.imports import Imported
from kedro_aat.tensors import load_tensors, save_tensors
from kedro_aat.validated import Settings

if TYPE_CHECKING:
    from kedro_datasets._typing import JSONPreview, TablePreview

_EXAMPLE = "example_input.safetensors"


class _SavedCompression(Settings):
    """What `get_compression_state` gives."""

    settings: CompressionSettings
    state: dict[str, Any]


class ModelDataset(AbstractDataset[nn.Module | NotExported, nn.Module]):
    """A module as a folder of `recipe.json` and `model.safetensors`; of a cut one the recipe holds the plan.

    Of a quantized module the recipe tells which layers hold int8, and the tensors are those integers.

    Args:
        filepath: The folder.
        recipe: `class_path` and `init_args` of the module, for one that was not built by `build_module`.
        metadata: For Kedro-Viz.
    """

    def __init__(
        self, *, filepath: str, recipe: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        self._folder = Path(filepath)
        self._recipe = None if recipe is None else Imported.model_validate(recipe)
        self.metadata = metadata

    def load(self) -> nn.Module:
        """Builds the module on the CPU and fills it; it is in evaluation mode."""
        recipe = Recipe.model_validate(json.loads((self._folder / "recipe.json").read_bytes()))
        module = build_module(recipe)
        module.load_state_dict(load_tensors(self._folder / "model.safetensors"))
        return module.eval()

    def save(self, data: nn.Module | NotExported) -> None:
        """Writes the module; `NotExported` removes what was there."""
        if isinstance(data, NotExported):
            remove(self._folder)
            return
        recipe = recipe_of(data, self._recipe)
        with replacing(self._folder) as folder:
            (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2), encoding="utf-8")
            save_tensors(data.state_dict(), folder / "model.safetensors")

    def preview(self, nrows: int = 100) -> TablePreview:
        """The layers, as they are after the cut; for Kedro-Viz."""
        return layer_table(tensors_in(self._folder / "model.safetensors"), nrows) if self._exists() else None

    def _exists(self) -> bool:
        return (self._folder / "recipe.json").exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}


class ControllerDataset(AbstractDataset[ModelController, ModelController]):
    """A compression controller together with its model: one object, so that neither loses the other.

    Args:
        filepath: The folder: `recipe.json`, `compression.json`, `model.safetensors`, masks included, and the
            example input, if there is one, as `example_input.safetensors`.
        metadata: For Kedro-Viz.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> ModelController:
        """Builds model and controller, and fills both."""
        recipe = Recipe.model_validate(json.loads((self._folder / "recipe.json").read_bytes()))
        compression = _SavedCompression.model_validate(json.loads((self._folder / "compression.json").read_bytes()))
        example = self._folder / _EXAMPLE
        controller = build_controller(
            build_module(recipe),
            compression.settings,
            example_input=load_tensors(example)["input"] if example.exists() else None,
        )
        controller.model.load_state_dict(load_tensors(self._folder / "model.safetensors"))
        controller.load_state(compression.state)
        return controller

    def save(self, data: ModelController) -> None:
        """Writes both."""
        try:
            recipe = recipe_of(data.model)
        except AatError as error:
            raise DatasetError(str(error)) from error
        with replacing(self._folder) as folder:
            (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2), encoding="utf-8")
            (folder / "compression.json").write_text(json.dumps(data.get_compression_state(), indent=2))
            save_tensors(data.model.state_dict(), folder / "model.safetensors")
            if data.example_input is not None:
                save_tensors({"input": data.example_input}, folder / _EXAMPLE)

    def preview(self) -> JSONPreview:
        """How the model is made and compressed; for Kedro-Viz."""
        if not self._exists():
            return None
        parts = {name: json.loads((self._folder / f"{name}.json").read_bytes()) for name in ("recipe", "compression")}
        return json.dumps(parts)

    def _exists(self) -> bool:
        return (self._folder / "compression.json").exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}
