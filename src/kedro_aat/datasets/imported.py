"""A model of the user's own: an import path, arguments, and a file with its weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from kedro.io import AbstractDataset, DatasetError

from kedro_aat.datasets.previews import layer_table, tensors_in
from kedro_aat.datasets.recipe import build_module
from kedro_aat.errors import ModelError
from kedro_aat.imports import Imported
from kedro_aat.tensors import load_tensors

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview
    from torch import Tensor, nn


class ImportedModelDataset(AbstractDataset[Never, "nn.Module"]):
    """A module that is built by its import path and filled with a state dict; for reading alone.

    Args:
        class_path: A class of modules, or a function annotated with the class of modules that it returns.
        filepath: The state dict, as `.safetensors` or as `torch.save` writes it; of the latter only tensors and plain
            values are read. None keeps the weights that the module was built with.
        init_args: Keyword arguments of the class.
        key: Where the file holds the state dict under a key beside other things, that key, such as `state_dict`.
        prefix: What is taken off the names in the state dict, such as `model.` of a Lightning checkpoint; others are
            left out then.
        metadata: For Kedro-Viz.
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
        self._made = Imported(class_path=class_path, init_args=init_args or {})
        self._path = None if filepath is None else Path(filepath)
        self._key = key
        self._prefix = prefix
        self.metadata = metadata

    def lookup_mistakes(self, name: str) -> list[str]:
        """What is wrong with the import path or the names of the arguments, without building the module."""
        return self._made.lookup_mistakes(name)

    def load(self) -> nn.Module:
        """Builds the module on the CPU and fills it; it is in evaluation mode.

        Raises:
            ConfigurationError: For an import path or arguments that do not fit.
            ModelError: If the file does not hold this module's state dict.
        """
        module = build_module(self._made)
        if self._path is not None:
            state = self._own_part(_read(self._path))
            try:
                module.load_state_dict(state)
            except RuntimeError as error:
                raise ModelError(
                    f"{self._path} does not fit {self._made.class_path}: {error}. Mend init_args, or name the part of "
                    "the file that belongs to the model with key or prefix."
                ) from None
        return module.eval()

    def preview(self, nrows: int = 100) -> TablePreview:
        """The layers in the file with the weights; for Kedro-Viz."""
        if self._path is None or not self._path.exists():
            return None
        if self._path.suffix == ".safetensors":
            return layer_table(self._own_part(tensors_in(self._path)), nrows)
        state = self._own_part(_read(self._path, "meta"))  # on this device tensors have no numbers to be read
        return layer_table({name: (tuple(tensor.shape), _kind(tensor)) for name, tensor in state.items()}, nrows)

    def _own_part(self, found: Mapping[str, Any]) -> dict[str, Any]:
        if self._key is not None:
            if self._key not in found:
                raise ModelError(f"{self._path} has no key {self._key!r}; it has {', '.join(map(str, found))}.")
            found = found[self._key]
        length = len(self._prefix)
        return {name[length:]: value for name, value in found.items() if name.startswith(self._prefix)}

    def save(self, data: Never) -> None:
        """Refuses: this entry only reads."""
        raise DatasetError(
            "A model given by its import path is not written. Name a kedro_aat.datasets.model.ModelDataset in the "
            "catalog for a model that a node makes."
        )

    def _exists(self) -> bool:
        return self._path is None or self._path.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": None if self._path is None else str(self._path), "class_path": self._made.class_path}


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read(path: Path, device: str = "cpu") -> Mapping[str, Any]:
    import torch

    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} holds more than tensors and plain values, and is not unpickled. Write the weights alone: "
            "torch.save(model.state_dict(), path)."
        ) from None
    if not isinstance(found, Mapping):
        raise ModelError(f"{path} must hold a state dict, but holds a {type(found).__name__}.")
    return found
