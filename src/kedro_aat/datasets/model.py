"""Datasets that save and load a module or a controller, as safetensors and a JSON recipe, without pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from kedro.io import DatasetError, Version
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.frozen import frozen_parameters
from kedro_aat.compression.masks import SHADOW, SPARSITY_MASK
from kedro_aat.compression.settings import CompressionSettings
from kedro_aat.datasets.files import GroupDataset
from kedro_aat.datasets.previews import open_small, read_tensor_info, state_dict_table
from kedro_aat.datasets.recipe import Recipe, build_module, recipe_of
from kedro_aat.datasets.structure import StructureText, described, restored
from kedro_aat.datasets.trust import Trust, Trusted
from kedro_aat.errors import AatError, ModelError
from kedro_aat.export import NotExported
from kedro_aat.imports import Imported
from kedro_aat.model_inputs import ModelInputs, call_model, num_examples, placed_like
from kedro_aat.modes import evaluating
from kedro_aat.reading import describe
from kedro_aat.storage import FileGroup
from kedro_aat.tensors import hash_file, is_made_up, load_tensors, mark_made_up, serialize_tensors, synthetic_like
from kedro_aat.validated import Settings
from kedro_aat.wrapped import unwrapped

if TYPE_CHECKING:
    from kedro_datasets._typing import JSONPreview, TablePreview

_RECIPE = "recipe.json"
_TENSORS = "model.safetensors"
_COMPRESSION = "compression.json"
_EXAMPLE = "example_input.safetensors"
_REASON = "not_exported.txt"  # of a version without a model

_Saved = TypeVar("_Saved")
_Loaded = TypeVar("_Loaded")


class _SavedRecipe(Recipe):
    """How a saved module is built.

    Attributes:
        frozen: Names of the parameters that are not trained; None if the file does not say it, as before 0.2.0.
        sha256: Name -> SHA-256 of the other files in the folder; empty if a version before 0.2.0 saved it.
    """

    frozen: tuple[str, ...] | None = None
    sha256: dict[str, str] = Field(default_factory=dict)


class _SavedCompression(Settings):
    """The result of `get_compression_state`, and the structure of the example input, if it is more than a tensor."""

    settings: CompressionSettings
    state: dict[str, Any]
    example: StructureText | None = None


class _FolderDataset(GroupDataset[_Saved, _Loaded]):
    """A folder whose files are replaced together, and which holds nothing else.

    Attributes:
        FILES: Names of the files. Without the first one, nothing is saved.
    """

    FILES: ClassVar[tuple[str, ...]]

    def _names(self, path: PurePosixPath) -> tuple[str, ...]:
        return self.FILES


class ModelDataset(_FolderDataset[nn.Module | NotExported, nn.Module]):
    """A module as a folder with `recipe.json` and `model.safetensors`.

    The recipe of a cut module contains its cut plan. The recipe of a quantized module lists the layers that hold int8,
    and the tensors are those integers.

    Args:
        filepath: The folder, here or at an address such as `s3://bucket/model`.
        recipe: `class_path` and `init_args` of the module, if it was not built by `build_module`.
        class_path: The only class, class method or function that the folder may have built when it is loaded.
        trusted: Without a `class_path`, the folder may name module classes of `torch.nn`, `kedro_aat`, the project's
            own package and of the packages and modules in this list, and functions of those in this list that are
            annotated to return a module. A full import path allows that class or function alone. In a Kedro project,
            what other entries of the catalog build from a `class_path` is trusted, too.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
        metadata: For Kedro-Viz and other plugins.
    """

    FILES: ClassVar[tuple[str, ...]] = (_RECIPE, _TENSORS, _REASON)

    def __init__(
        self,
        *,
        filepath: str,
        recipe: dict[str, Any] | None = None,
        class_path: str | None = None,
        trusted: Trusted | None = None,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            filepath=filepath, version=version, credentials=credentials, fs_args=fs_args, metadata=metadata
        )
        self._recipe = None if recipe is None else Imported.model_validate(recipe)
        self._trust = Trust(class_path, trusted, self._recipe)

    def load(self) -> nn.Module:
        """Builds the module on the CPU in evaluation mode, and loads its tensors.

        Raises:
            ModelError: The recipe names what the catalog entry does not trust, a file is damaged, or the version of a
                run has no model.
        """
        with self._reading_group() as files:
            if files.has(_REASON) and not files.has(_RECIPE):
                reason = files.path(_REASON).read_text(encoding="utf-8")
                raise ModelError(f"{files.shown(_RECIPE)} was not written: {reason}. Choose another version.")
            module, _ = _load_module(files, self._trust)
            _load_state(module, files)
        return module.eval()

    def save(self, data: nn.Module | NotExported) -> None:
        """Writes the module; `NotExported` removes the folder, or writes the reason as a version of its own.

        Raises:
            StorageError: The folder holds files of others, another process is writing it, or the file system refuses.
        """
        if not isinstance(data, NotExported):
            data = unwrapped(data)
            self._replace(_module_files(data, recipe_of(data, self._recipe)))
        elif self._version is None:
            self._group(self._get_save_path()).remove()
        else:  # Kedro wants each version of a run to exist
            self._replace({_REASON: data.reason.encode()})

    def preview(self, nrows: int = 100) -> TablePreview:
        """The layers as they are after the cut; for Kedro-Viz."""
        if not self.exists():
            return None
        with self._reading_group(is_shown=True) as files:
            return state_dict_table(read_tensor_info(files.path(_TENSORS)), nrows)

    def _exists(self) -> bool:
        return _RECIPE in self._present(self._get_load_path())

    def _exists_at(self, path: str) -> bool:
        return not self._present(PurePosixPath(path)).isdisjoint({_RECIPE, _REASON})


class ControllerDataset(_FolderDataset[ModelController, ModelController]):
    """A compression controller and its model, saved as one object so that they stay together.

    Args:
        filepath: The folder. It contains `recipe.json`, `compression.json`, `model.safetensors` (with the masks), and
            `example_input.safetensors` if the controller has an example input: made-up values in place of yours.
        class_path: As for `ModelDataset`.
        trusted: As for `ModelDataset`.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
        metadata: For Kedro-Viz and other plugins.
    """

    FILES: ClassVar[tuple[str, ...]] = (_RECIPE, _TENSORS, _COMPRESSION, _EXAMPLE)

    def __init__(
        self,
        *,
        filepath: str,
        class_path: str | None = None,
        trusted: Trusted | None = None,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            filepath=filepath, version=version, credentials=credentials, fs_args=fs_args, metadata=metadata
        )
        self._trust = Trust(class_path, trusted)

    def load(self) -> ModelController:
        """Builds the model and the controller, and loads the state of both.

        Raises:
            ModelError: The recipe names what the catalog entry does not trust, or a file is damaged.
        """
        with self._reading_group() as files:
            module, saved = _load_module(files, self._trust)
            compression = _SavedCompression.model_validate(_read_json(files, _COMPRESSION))
            example = None
            if files.has(_EXAMPLE):
                tensors = load_tensors(files.path(_EXAMPLE))
                example = tensors["input"] if compression.example is None else restored(compression.example, tensors)
                if saved.sha256:  # versions before 0.2.0 saved the user's example
                    mark_made_up(example)
            controller = build_controller(module, compression.settings, example_input=example)
            _load_state(controller.model, files)
        controller.load_state(compression.state)
        return controller

    def save(self, data: ModelController) -> None:
        """Writes the controller and its model.

        Raises:
            DatasetError: It is unknown how the model was built, or it cannot run made-up values in place of the
                controller's example input.
            StorageError: The folder holds files of others, another process is writing it, or the file system refuses.
        """
        try:
            recipe = recipe_of(data.model)
        except AatError as error:
            raise DatasetError(str(error)) from error
        state, more = data.get_compression_state(), {}
        if data.example_input is not None:
            example = _made_up_example(data.model, data.example_input)
            text, tensors = described(example)
            if not isinstance(example, Tensor):
                state["example"] = text
            more[_EXAMPLE] = serialize_tensors(tensors)
        more[_COMPRESSION] = json.dumps(state, indent=2).encode()
        self._replace(_module_files(data.model, recipe, more))

    def preview(self) -> JSONPreview:
        """How the model is built and compressed; for Kedro-Viz."""
        if not self.exists():
            return None
        names = {"recipe": _RECIPE, "compression": _COMPRESSION}
        with self._reading_group(is_shown=True) as files:
            return json.dumps({key: _read_json(files, name) for key, name in names.items()})

    def _exists_at(self, path: str) -> bool:
        return self._present(PurePosixPath(path)) >= {_RECIPE, _COMPRESSION}


def _module_files(module: nn.Module, recipe: Imported, more: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """The files of a module and more files; the recipe has their checksums."""
    files = {_TENSORS: serialize_tensors(module.state_dict())} | dict(more or {})
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    saved = recipe.model_dump(mode="json") | {"frozen": frozen_parameters(module), "sha256": checksums}
    return files | {_RECIPE: json.dumps(saved, indent=2).encode()}


def _made_up_example(model: nn.Module, example: ModelInputs) -> ModelInputs:
    """What is saved in place of a controller's example input, which may be the user's data.

    Raises:
        DatasetError: The model cannot run it. Then the controller could not be loaded either, since it is traced.
    """
    if is_made_up(example):
        return example
    values = synthetic_like(example, num_examples(example))
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            call_model(model, placed_like(values, model))
    except Exception as error:
        raise DatasetError(
            f"The controller's example_input is not saved, since it may be data of yours, and the model cannot run "
            f"made-up values of its range ({describe(error)}). Build the controller with at least 32 examples, so that "
            "each column keeps its own range, or with values that you made up and marked with "
            "kedro_aat.tensors.mark_made_up."
        ) from error
    return values


def _load_module(files: FileGroup, trust: Trust) -> tuple[nn.Module, _SavedRecipe]:
    """Builds the module of a folder, without its tensors, if it is trusted and no file of the folder is damaged."""
    saved = _SavedRecipe.model_validate(_read_json(files, _RECIPE))
    stated = trust.require(saved)
    for name in (_TENSORS, _COMPRESSION, _EXAMPLE):  # not what the file names: that could be any path
        if name in saved.sha256 and hash_file(files.path(name)) != saved.sha256[name]:
            raise ModelError(
                f"{files.shown(name)} is damaged: its SHA-256 is not the one in {_RECIPE}. Copy the folder again, or "
                "run the node that wrote it."
            )
    module = build_module(saved, stated=stated)
    if saved.frozen is not None:
        for name, parameter in module.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(name not in saved.frozen)
    return module, saved


def _load_state(module: nn.Module, files: FileGroup) -> None:
    try:
        state = load_tensors(files.path(_TENSORS))
        # Version 0.1.0 masked fewer weights than this one; what they left dense begins dense.
        dense = {name: tensor for name, tensor in module.state_dict().items() if name.endswith((SPARSITY_MASK, SHADOW))}
        module.load_state_dict(dense | state)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{files.shown(_TENSORS)} does not have the tensors of this {type(module).__name__}: {error}"
        ) from None


def _read_json(files: FileGroup, name: str) -> Any:
    with open_small(files.path(name)) as file:
        return json.load(file)
