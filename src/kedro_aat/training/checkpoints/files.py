"""The files of one checkpoint: how they are written, and read whatever version wrote them.

    checkpoint-000012/
        model.safetensors                  tensors of the model's state_dict
        training.pt                        optimizer, scheduler, controller and RNG state (weights_only)
        state.json                         search state, counters, history
        manifest.json                      format version, and checksums of the files above; written last

A torn or damaged checkpoint fails its checksums. Nothing is ever unpickled into arbitrary objects.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import zlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from kedro_aat.disk import disk_errors, sync
from kedro_aat.errors import CheckpointError, DamagedCheckpointError
from kedro_aat.tensors import load_tensors, serialize_tensors
from kedro_aat.training.checkpoints.numpy_values import decoded, encoded, is_plain_numpy
from kedro_aat.training.guards.user_functions import is_out_of_memory

# Of the files of a run. Raise it when an older reader would misread them, and teach `read` the format before.
#   1: version 0.1.0, whose manifests and runs do not say their format
#   2: version 0.2.0; its manifests and runs say format and version
FORMAT_VERSION = 2

_FORMAT_KEY = "format_version"
_CONTAINERS = {dict, OrderedDict, Counter, list, tuple, set, torch.Size}
_PLAIN = {int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device}
_FILES = {"model.safetensors", "training.pt", "state.json"}
_NAME = re.compile(r"checkpoint-(\d{6,})")


@dataclass
class Checkpoint:
    """Everything that a run needs to continue from an epoch boundary.

    Attributes:
        number: Number of the checkpoint; counts the validations of the run from 0.
        model: The model's `state_dict`.
        training: Other state with tensors; plain containers, numbers (Python's and NumPy's), strings, tensors and
            arrays of numbers only.
        state: Plain JSON data.
        folder: Folder of the checkpoint; set when it is read.
    """

    number: int
    model: dict[str, Any]
    training: dict[str, Any]
    state: dict[str, Any]
    folder: Path | None = None

    def value(self, key: str) -> Any:
        """A value of `state`.

        Raises:
            CheckpointError: If the version that wrote the checkpoint did not write this value.
        """
        if key not in self.state:
            raise CheckpointError(
                f"{self.folder} has no {key}, so this version of kedro-aat cannot continue from it. Use the version "
                "that wrote it, or remove the folder of the run to start over."
            )
        return self.state[key]

    @property
    def num_bytes(self) -> int:
        """Size of all tensors, which is about that of the files."""
        leaves = tree_leaves((self.model, self.training))
        return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


def path_in(folder: Path, number: int) -> Path:
    """Folder of a checkpoint in the folder of its run."""
    return folder / f"checkpoint-{number:06d}"


def numbers_in(folder: Path) -> list[int]:
    """Numbers of the checkpoints in the folder of a run, ascending, including damaged ones."""
    paths = folder.iterdir() if folder.exists() else ()
    found = (_NAME.fullmatch(path.name) for path in paths if path.is_dir())
    return sorted(int(match[1]) for match in found if match)


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint into a folder that may hold the user's own files, and flushes all to disk."""
    training = io.BytesIO()
    torch.save(encoded(checkpoint.training), training)
    contents = {
        "model.safetensors": serialize_tensors(checkpoint.model),
        "training.pt": training.getvalue(),
        "state.json": json.dumps(checkpoint.state, allow_nan=False).encode(),
    }
    checksums = {str(path.relative_to(folder)): _checksum(path.read_bytes()) for path in _files_in(folder)}
    checksums |= {name: _checksum(written) for name, written in contents.items()}
    contents["manifest.json"] = json.dumps(checksums | {_FORMAT_KEY: FORMAT_VERSION}, indent=1).encode()
    for name, written in contents.items():
        (folder / name).write_bytes(written)
    for path in (*_files_in(folder), folder):
        sync(path)


def read(folder: Path, number: int) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        folder: Its folder.
        number: Its number.

    Raises:
        DamagedCheckpointError: If it is missing, torn or damaged.
        CheckpointError: If it is of a later format, or the disk cannot be read now.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if not isinstance(manifest, dict) or not manifest.keys() >= _FILES:
            raise DamagedCheckpointError(f"{folder} is damaged: its manifest does not list all files of a checkpoint")
        require_known_format(manifest.pop(_FORMAT_KEY, 1), folder)
        damaged = [name for name, checksum in manifest.items() if _checksum((folder / name).read_bytes()) != checksum]
        if damaged:
            raise DamagedCheckpointError(f"{folder} is damaged: the checksum of {', '.join(damaged)} is wrong")
        checkpoint = Checkpoint(
            number=number,
            model=load_tensors(folder / "model.safetensors"),
            training=decoded(torch.load(folder / "training.pt", map_location="cpu", weights_only=True)),
            state=json.loads((folder / "state.json").read_text()),
            folder=folder,
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedCheckpointError(f"{folder} is not complete: {error}") from error
    except OSError as error:  # the disk may be well again later, so nothing is lost
        with disk_errors(folder):
            raise error
    # The decoders raise any of these for contents that nobody should have written.
    except (ValueError, LookupError, TypeError, RuntimeError, EOFError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise DamagedCheckpointError(f"{folder} cannot be read: {error}") from error
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise DamagedCheckpointError(f"{folder} cannot be read: {error}") from error
    if not isinstance(checkpoint.training, dict) or not isinstance(checkpoint.state, dict):
        raise DamagedCheckpointError(f"{folder} is damaged: its state is not a mapping")
    return checkpoint


def require_known_format(version: object, folder: Path) -> None:
    """Checks that this version can read a format.

    Args:
        version: The format, as it was read.
        folder: Folder that has it, for the message.

    Raises:
        CheckpointError: If it is no format, or a later one.
    """
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format {version}, but this version of kedro-aat reads formats 1 to {FORMAT_VERSION}. Use "
            "the version that wrote it, or a later one"
        )


def copied(state: Any) -> Any:
    """A copy of a nested state, with its tensors on the CPU."""
    return tree_map(
        lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else copy.copy(leaf), state
    )


def require_plain(value: Any, where: str) -> None:
    """Checks that a state can be read back without running code.

    Args:
        value: The state.
        where: Name of the state, for the message.

    Raises:
        CheckpointError: If it holds anything but tensors, arrays, numbers, strings and plain containers.
    """
    if isinstance(value, Mapping) and type(value) in _CONTAINERS:
        for key, part in value.items():
            require_plain(key, where)
            require_plain(part, f"{where}.{key}")
    elif type(value) in _CONTAINERS:
        for index, part in enumerate(value):
            require_plain(part, f"{where}[{index}]")
    elif type(value) not in _PLAIN and not isinstance(value, Tensor) and not is_plain_numpy(value):
        raise CheckpointError(
            f"{where} of a checkpoint is a {type(value).__qualname__}, which cannot be read back without running "
            "code. Let get_state() and state_dict() return tensors, arrays of numbers, numbers, strings and plain "
            "containers."
        )


def relative_to(written: object, folder: Path) -> str:
    """The path that a user's function returned, relative to `folder` if it lies inside."""
    if not isinstance(written, str | Path):
        raise CheckpointError(f"dump_checkpoint_fn must return the path of what it wrote, but returned {written!r}")
    path, folder = Path(written).resolve(), folder.resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _checksum(contents: bytes) -> str:
    # CRC-32 and size find a torn or damaged file; a stronger hash would cost more than all else here.
    return f"crc32:{zlib.crc32(contents):08x}:{len(contents)}"


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
