"""Datasets of modules: a module is saved and a module is loaded, through safetensors and a JSON recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError
from torch import nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.quantized_layers import Quantized, make_quantized, quantized_of
from kedro_aat.compression.scheduled import ScheduledController
from kedro_aat.compression.settings import parse_compression
from kedro_aat.datasets.folder import remove, replacing
from kedro_aat.datasets.recipe import build_module, recipe_of
from kedro_aat.errors import AatError
from kedro_aat.export.exported import NotExported
from kedro_aat.training.checkpoints import load_tensors, save_tensors
from kedro_aat.training.settings import Imported


class ModelDataset(AbstractDataset[nn.Module | NotExported, nn.Module]):
    """A module as a folder of `recipe.json` and `model.safetensors`.

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
        recipe = json.loads((self._folder / "recipe.json").read_text())
        quantized = recipe.pop("quantized", None)
        module = build_module(Imported.model_validate(recipe))
        if quantized is not None:
            make_quantized(module, Quantized.model_validate(quantized))
        module.load_state_dict(load_tensors(self._folder / "model.safetensors"))
        return module.eval()

    def save(self, data: nn.Module | NotExported) -> None:
        """Writes the module; `NotExported` removes what was there."""
        if isinstance(data, NotExported):
            remove(self._folder)
            return
        recipe = (self._recipe or recipe_of(data)).model_dump(mode="json")
        if (quantized := quantized_of(data)) is not None:
            recipe["quantized"] = quantized.model_dump(mode="json")
        with replacing(self._folder) as folder:
            (folder / "recipe.json").write_text(json.dumps(recipe, indent=2))
            save_tensors(data.state_dict(), folder / "model.safetensors")

    def _exists(self) -> bool:
        return (self._folder / "recipe.json").exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}


class ControllerDataset(AbstractDataset[ScheduledController, ScheduledController]):
    """A compression controller together with its model: one object, so that neither loses the other.

    Args:
        filepath: The folder: `recipe.json`, `compression.json` and `model.safetensors`, masks included.
        metadata: For Kedro-Viz.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> ScheduledController:
        """Builds model and controller, and fills both."""
        recipe = Imported.model_validate(json.loads((self._folder / "recipe.json").read_text()))
        compression = json.loads((self._folder / "compression.json").read_text())
        controller = build_controller(build_module(recipe), parse_compression(compression["settings"]))
        controller.model.load_state_dict(load_tensors(self._folder / "model.safetensors"))
        controller.load_state(compression["state"])
        return controller

    def save(self, data: ScheduledController) -> None:
        """Writes both."""
        try:
            recipe = recipe_of(data.model)
        except AatError as error:
            raise DatasetError(str(error)) from error
        with replacing(self._folder) as folder:
            (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2))
            (folder / "compression.json").write_text(json.dumps(data.get_compression_state(), indent=2))
            save_tensors(data.model.state_dict(), folder / "model.safetensors")

    def _exists(self) -> bool:
        return (self._folder / "compression.json").exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}
