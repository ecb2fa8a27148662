"""A dataset for the user's own model: an import path, arguments, and a file with its weights."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import Version

from kedro_aat.datasets.files import FileDataset
from kedro_aat.datasets.previews import read_tensor_info, require_small, state_dict_table
from kedro_aat.datasets.recipe import build_module
from kedro_aat.errors import ModelError
from kedro_aat.imports import Imported
from kedro_aat.tensors import load_tensors, save_tensors
from kedro_aat.wrapped import unwrapped, without_wrappers

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview
    from torch import Tensor, nn


class ImportedModelDataset(FileDataset["nn.Module", "nn.Module"]):
    """A module that is built from its import path and loaded with a state dict.

    A node that returns such a module writes its state dict; the file then holds nothing else.

    Args:
        class_path: Import path of a module class, or of a class method or function that returns a module, such as
            `my_models.Net.from_config`. It stands in your own configuration, so the other entries of the catalog trust
            it.
        filepath: The state dict, here or at an address such as `s3://bucket/model.pt`, as `.safetensors` or as written
            by `torch.save`; from the latter, only tensors and plain values are read. None keeps the initial weights of
            the module.
        init_args: Keyword arguments of the class, class method or function. A mapping of `class_path` and `init_args`
            stands for the object that they build.
        key: Key of the state dict in the file, such as `state_dict`, if the file contains more than the state dict.
        prefix: Prefix to remove from the names in the state dict, such as `model.` in a Lightning checkpoint. Names
            without the prefix are ignored. What is saved gets the key and the prefix.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
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
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            filepath=filepath, version=version, credentials=credentials, fs_args=fs_args, metadata=metadata
        )
        self._imported = Imported(class_path=class_path, init_args=init_args or {})
        self._key = key
        self._prefix = prefix

    def lookup_mistakes(self, name: str) -> list[str]:
        """Lists mistakes in the import path and the names of the arguments, without building the module.

        Args:
            name: Key to report the mistakes under, such as the name of the catalog entry.
        """
        return self._imported.lookup_mistakes(name, nested=True)

    def load(self) -> nn.Module:
        """Builds the module on the CPU in evaluation mode, and loads its state dict.

        Raises:
            ConfigurationError: The import path does not exist, or the arguments do not match.
            ModelError: The file does not contain a state dict for this module.
        """
        module = build_module(self._imported, stated="call")
        if self._has_file:
            with self._reading() as path:
                contents = _read(path, self.where)
            state = without_wrappers(self._own_part(contents), module.state_dict())
            try:
                module.load_state_dict(state)
            except RuntimeError as error:
                keys = state_dict_keys(contents) if self._key is None else []
                if len(keys) == 1:
                    raise ModelError(
                        f"{self.where} holds its state dict under one of its keys ({', '.join(map(str, contents))}): "
                        f"set key: {keys[0]} in the catalog entry."
                    ) from None
                raise ModelError(
                    f"{self.where} does not match {self._imported.class_path}: {error}. Correct init_args, or select "
                    "the part of the file that belongs to the model with key or prefix."
                ) from None
        return module.eval()

    def preview(self, nrows: int = 100) -> TablePreview:
        """The layers in the file of weights; for Kedro-Viz."""
        if not self._has_file or not self.exists():
            return None
        with self._reading(is_shown=True) as path:
            if path.suffix == ".safetensors":
                return state_dict_table(self._own_part(read_tensor_info(path)), nrows)
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    names = (part for part in archive.infolist() if part.filename.endswith("data.pkl"))
                    require_small(self.where, sum(part.file_size for part in names))
            # On the device `meta`, tensors have no data to read.
            state = self._own_part(_read(path, self.where, "meta"))
        return state_dict_table({name: (tuple(tensor.shape), _kind(tensor)) for name, tensor in state.items()}, nrows)

    def _own_part(self, contents: Mapping[str, Any]) -> dict[str, Any]:
        if self._key is not None:
            if self._key not in contents:
                raise ModelError(f"{self.where} has no key {self._key!r}; it has {', '.join(map(str, contents))}.")
            contents = contents[self._key]
        length = len(self._prefix)
        return {name[length:]: value for name, value in contents.items() if name.startswith(self._prefix)}

    def save(self, data: nn.Module) -> None:
        """Writes the state dict of a module, so that `load` returns a module with the same.

        Args:
            data: A module whose state dict fits what `class_path` and `init_args` build.

        Raises:
            ModelError: It does not fit, has more than tensors and plain values, or the entry has no file for it.
            StorageError: The file system refuses, or another process is writing the file.
        """
        import torch

        for mistake in self._file_mistakes():
            raise ModelError(mistake)
        data = unwrapped(data) if isinstance(data, torch.nn.Module) else data
        self._require_fit(data)
        state = {
            f"{self._prefix}{name}": value.detach().cpu() if isinstance(value, torch.Tensor) else value
            for name, value in data.state_dict().items()
        }
        with self._writing() as new:
            if new.suffix == ".safetensors":
                save_tensors(state, new)
                return
            torch.save(state if self._key is None else {self._key: state}, new)
            try:
                _read(new, self.where)
            except ModelError:
                raise ModelError(
                    f"The state dict of this {type(data).__name__} has more than tensors and plain values, so "
                    f"{self.where} could be read only by unpickling it. Return plain values from get_extra_state."
                ) from None

    def save_mistakes(self, name: str) -> list[str]:
        """Lists why nothing could be saved.

        Args:
            name: Key to report the mistakes under, such as the name of the catalog entry.
        """
        return [*self.lookup_mistakes(name), *(f"{name}: {mistake}" for mistake in self._file_mistakes())]

    def _file_mistakes(self) -> list[str]:
        if not self._has_file:
            return ["no filepath says where the weights of a module are saved; add one to the catalog entry."]
        if self._is_at_a_folder():
            return [f"{self.where} is a folder, so no weights are written there: give another path, or move it away."]
        if self._key is not None and self._filepath.suffix == ".safetensors":
            return [f"{self.where} cannot have the key {self._key!r}: remove `key`, or give a path that ends with .pt."]
        return []

    def _require_fit(self, module: nn.Module) -> None:
        """Refuses a module whose state dict `load` would refuse, or change."""
        import torch

        path, wanted = self._imported.class_path, "Return a module that this entry builds, or correct class_path and "
        wanted += "init_args. For a module that was cut or quantized, the entry must be a ModelDataset."
        if not isinstance(module, torch.nn.Module):
            raise ModelError(f"The entry takes a module that fits {path}, but got a {type(module).__name__}. {wanted}")
        state = module.state_dict()
        with torch.random.fork_rng(devices=[]):  # its initial weights must not change what later nodes draw
            built = build_module(self._imported, stated="call")
        try:
            built.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(f"This {type(module).__name__} does not fit {path}: {error}. {wanted}") from None
        for name, value in built.state_dict().items():
            if isinstance(value, torch.Tensor) and value.dtype != state[name].dtype:
                raise ModelError(
                    f"{name} is {_kind(state[name])}, but {path} has {_kind(value)}. Convert the module, such as with "
                    "module.float(), or build it in that type."
                )

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "class_path": self._imported.class_path}


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def state_dict_keys(contents: Mapping[str, Any]) -> list[str]:
    """The keys of a file under which there are state dicts, which training scripts save beside epoch and optimizer."""
    import torch

    return [
        str(key)
        for key, part in contents.items()
        if isinstance(part, Mapping) and part and all(isinstance(value, torch.Tensor) for value in part.values())
    ]


def key_of_weights(path: Path) -> str | None:
    """The key under which a file holds the only state dict in it; None if it is one itself, or cannot be read.

    Args:
        path: A file of weights.
    """
    if path.suffix == ".safetensors":
        return None
    try:
        keys = state_dict_keys(_read(path, path, "meta"))
    except ModelError:
        return None  # `kedro aat validate` says why
    return keys[0] if len(keys) == 1 else None


def _read(path: Path, shown: object, device: str = "cpu") -> Mapping[str, Any]:
    import torch

    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        contents = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{shown} contains more than tensors and plain values, and is not unpickled. Save only the weights: "
            "torch.save(model.state_dict(), path)."
        ) from None
    except (EOFError, RuntimeError) as error:  # damaged; or TorchScript, which is code
        raise ModelError(
            f"{shown} cannot be read as the weights of a model: {error}. Save them with "
            "torch.save(model.state_dict(), path), or as safetensors."
        ) from None
    if not isinstance(contents, Mapping):
        raise ModelError(f"{shown} must contain a state dict, but contains a {type(contents).__name__}.")
    return contents
