"""A dataset for the user's own model: an import path, arguments, and a file with its weights."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from kedro.io import AbstractDataset, DatasetError

from kedro_aat.datasets.arguments import RecordedArguments
from kedro_aat.datasets.damage import ReportsDamage
from kedro_aat.datasets.previews import read_tensor_info, require_small, state_dict_table
from kedro_aat.datasets.recipe import build_module
from kedro_aat.errors import ModelError
from kedro_aat.imports import Imported
from kedro_aat.storage import local_path
from kedro_aat.tensors import load_tensors

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview
    from torch import Tensor, nn


class ImportedModelDataset(ReportsDamage, RecordedArguments, AbstractDataset[Never, "nn.Module"]):
    """A module that is built from its import path and loaded with a state dict; read-only.

    Args:
        class_path: Import path of a module class, or of a class method or function that is annotated to return a
            module. It stands in your own configuration, so the other entries of the catalog trust it.
        filepath: The state dict, as `.safetensors` or as written by `torch.save`; from the latter, only tensors and
            plain values are read. None keeps the initial weights of the module.
        init_args: Keyword arguments of the class, class method or function.
        key: Key of the state dict in the file, such as `state_dict`, if the file contains more than the state dict.
        prefix: Prefix to remove from the names in the state dict, such as `model.` in a Lightning checkpoint. Names
            without the prefix are ignored.
        metadata: For Kedro-Viz and other plugins.
    """

    def __init__(
        self,
        *,
        class_path: str,
        filepath: str | None = None,
        init_args: dict[str, Any] | None = None,
        key: str | None = None,
        prefix: str = "",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._imported = Imported(class_path=class_path, init_args=init_args or {})
        self._path = None if filepath is None else local_path(filepath)
        self._key = key
        self._prefix = prefix
        self.metadata = metadata

    def lookup_mistakes(self, name: str) -> list[str]:
        """Lists mistakes in the import path and the names of the arguments, without building the module.

        Args:
            name: Key to report the mistakes under, such as the name of the catalog entry.
        """
        return self._imported.lookup_mistakes(name)

    def load(self) -> nn.Module:
        """Builds the module on the CPU in evaluation mode, and loads its state dict.

        Raises:
            ConfigurationError: The import path does not exist, or the arguments do not match.
            ModelError: The file does not contain a state dict for this module.
        """
        module = build_module(self._imported)
        if self._path is not None:
            state = self._own_part(_read(self._path))
            try:
                module.load_state_dict(state)
            except RuntimeError as error:
                raise ModelError(
                    f"{self._path} does not match {self._imported.class_path}: {error}. Correct init_args, or select "
                    "the part of the file that belongs to the model with key or prefix."
                ) from None
        return module.eval()

    def preview(self, nrows: int = 100) -> TablePreview:
        """The layers in the file of weights; for Kedro-Viz."""
        if self._path is None or not self._path.exists():
            return None
        if self._path.suffix == ".safetensors":
            return state_dict_table(self._own_part(read_tensor_info(self._path)), nrows)
        if zipfile.is_zipfile(self._path):
            with zipfile.ZipFile(self._path) as archive:
                names = (part for part in archive.infolist() if part.filename.endswith("data.pkl"))
                require_small(self._path, sum(part.file_size for part in names))
        state = self._own_part(_read(self._path, "meta"))  # on this device, tensors have no data to read
        return state_dict_table({name: (tuple(tensor.shape), _kind(tensor)) for name, tensor in state.items()}, nrows)

    def _own_part(self, contents: Mapping[str, Any]) -> dict[str, Any]:
        if self._key is not None:
            if self._key not in contents:
                raise ModelError(f"{self._path} has no key {self._key!r}; it has {', '.join(map(str, contents))}.")
            contents = contents[self._key]
        length = len(self._prefix)
        return {name[length:]: value for name, value in contents.items() if name.startswith(self._prefix)}

    def save(self, data: Never) -> None:
        """Refuses: a ModelDataset writes models."""
        raise DatasetError(
            "An ImportedModelDataset is read-only. Use a kedro_aat.datasets.model.ModelDataset in the catalog for a "
            "model that a node returns."
        )

    def _exists(self) -> bool:
        return self._path is None or self._path.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": None if self._path is None else str(self._path), "class_path": self._imported.class_path}


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read(path: Path, device: str = "cpu") -> Mapping[str, Any]:
    import torch

    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        contents = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} contains more than tensors and plain values, and is not unpickled. Save only the weights: "
            "torch.save(model.state_dict(), path)."
        ) from None
    except (EOFError, RuntimeError) as error:  # damaged; or TorchScript, which is code
        raise ModelError(
            f"{path} cannot be read as the weights of a model: {error}. Save them with "
            "torch.save(model.state_dict(), path), or as safetensors."
        ) from None
    if not isinstance(contents, Mapping):
        raise ModelError(f"{path} must contain a state dict, but contains a {type(contents).__name__}.")
    return contents
