"""The files of one checkpoint: how they are written, and read whatever version wrote them.

    checkpoint-000012/                     if the weights are divided among ranks, also the files in `parts`
        model.safetensors                  tensors of the model's state_dict
        optimizers.safetensors             large tensors of the optimizers; removed where no search can ask for them
        training.pt                        optimizer, scheduler, controller and RNG state (weights_only)
        state.json                         counters, and which part of the run's journal belongs to it
        manifest.json                      format version, and checksums of the files above; written last

Files are written and read once, a tensor at a time. A torn or damaged checkpoint fails its checksums. Nothing is ever
unpickled into arbitrary objects.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kedro_aat.disk import disk_errors, sync
from kedro_aat.errors import CheckpointError, DamagedCheckpointError
from kedro_aat.training.checkpoints.checked import Checksum, checksum_of, writing
from kedro_aat.training.checkpoints.journal import read_journal, replayed
from kedro_aat.training.checkpoints.large_tensors import with_large, without_large
from kedro_aat.training.checkpoints.numpy_values import decoded, encoded, is_plain_numpy
from kedro_aat.training.checkpoints.parts import open_parts, part_files, with_divided
from kedro_aat.training.checkpoints.tensor_files import read_tensors, write_tensors
from kedro_aat.training.guards.user_functions import is_out_of_memory

# Of the files of a run. Raise it when an older reader would misread them, and teach `read` the format before.
#   1: version 0.1.0, whose manifests and runs do not say their format
#   2: version 0.2.0; its manifests and runs say format and version
#   3: optimizers have a file of their own, large tensors of bool are bits, and what grows is in a journal
FORMAT_VERSION = 3

JOURNAL = "journal"  # key of a checkpoint's state: which part of the run's journal belongs to it

_FORMAT_KEY = "format_version"
_FIRST_WITH_FILES = 3  # format of the first manifests that list the files under a key of their own
_CONTAINERS = {dict, OrderedDict, Counter, list, tuple, set, torch.Size}
_PLAIN = {int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device}
_MODEL, _OPTIMIZERS, _TRAINING, _STATE = "model.safetensors", "optimizers.safetensors", "training.pt", "state.json"
_FILES = {_MODEL, _TRAINING, _STATE}
_NAME = re.compile(r"checkpoint-(\d{6,})")


@dataclass
class Checkpoint:
    """Everything that a run needs to continue from an epoch boundary.

    Attributes:
        number: Number of the checkpoint; counts the validations of the run from 0.
        model: The model's `state_dict`. When it was read, tensors that ranks wrote in parts are `DividedTensor`s, for
            `placed_as`.
        training: Other state with tensors; plain containers, numbers (Python's and NumPy's), strings, tensors and
            arrays of numbers only. It has no `optimizers` if they were not read, or removed.
        state: Plain JSON data.
        growing: By name, what grows with the epochs: JSON data or pydantic models, which the run's journal keeps.
        write_parts: Lets all ranks write the rows of divided tensors that they hold into a folder, and returns the
            checksums of their files by name; None if no tensor is divided. See `parts`.
        folder: Folder of the checkpoint; set when it is read.
        journal: Lines of the run's journal from which `growing` is read when it is asked for.
    """

    number: int
    model: dict[str, Any]
    training: dict[str, Any]
    state: dict[str, Any]
    growing: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    journal: str = ""
    write_parts: Callable[[Path], Mapping[str, str]] | None = None

    def value(self, key: str) -> Any:
        """A value of `state` or `growing`.

        Raises:
            CheckpointError: If the version that wrote the checkpoint did not write this value.
        """
        if key in self.state:
            return self.state[key]
        if self.journal and not self.growing:
            try:
                self.growing = replayed(self.journal)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise DamagedCheckpointError(
                    f"{self.folder} is damaged: its journal cannot be read: {error}"
                ) from error
        if key not in self.growing:
            raise CheckpointError(
                f"{self.folder} has no {key}, so this version of kedro-aat cannot continue from it. Use the version "
                "that wrote it, or remove the folder of the run to start over."
            )
        return self.growing[key]

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


def write(folder: Path, checkpoint: Checkpoint, parts: Mapping[str, str] | None = None) -> None:
    """Writes a checkpoint into a folder that may hold the user's own files, and flushes all to disk.

    Args:
        folder: The folder.
        checkpoint: The checkpoint, which must not change meanwhile; `growing` is not written.
        parts: Checksums of files that are there already, by name.
    """
    checksums = dict(parts or {})
    for path in _files_in(folder):
        if (name := str(path.relative_to(folder))) not in checksums:
            checksums[name] = checksum_of(path)
    optimizers: dict[str, Tensor] = {}
    training = checkpoint.training
    if "optimizers" in training:
        training = training | {"optimizers": without_large(training["optimizers"], optimizers)}
    checksums[_MODEL] = write_tensors(checkpoint.model, folder / _MODEL)
    if optimizers:
        checksums[_OPTIMIZERS] = write_tensors(optimizers, folder / _OPTIMIZERS)
    with writing(folder / _TRAINING) as file:
        torch.save(encoded(training), cast(IO[bytes], file))  # it only writes
    checksums[_TRAINING] = str(file.checksum)
    with writing(folder / _STATE) as file:
        file.write(json.dumps(checkpoint.state, allow_nan=False).encode())
    checksums[_STATE] = str(file.checksum)
    manifest = {_FORMAT_KEY: FORMAT_VERSION, "files": checksums}
    (folder / "manifest.json").write_bytes(json.dumps(manifest, indent=1).encode())
    for path in (*_files_in(folder), folder):
        sync(path)


def remove_optimizers(folder: Path) -> None:
    """Removes the large tensors of the optimizers from a checkpoint, if there are any."""
    for path in folder.glob("optimizers*.safetensors"):
        path.unlink()


def journal_of(folder: Path) -> str | None:
    """Name of the journal that a checkpoint needs; None if it needs none, or is damaged."""
    try:
        place = json.loads((folder / _STATE).read_bytes())[JOURNAL]
        return str(place["file"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def read(folder: Path, number: int, *, optimizers: bool = True, checks_parts: bool = True) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        folder: Its folder.
        number: Its number.
        optimizers: Whether the optimizers are read, too, if they are still there.
        checks_parts: Whether the checksums of files that several ranks wrote are looked at, which reads all of them.

    Raises:
        DamagedCheckpointError: If it is missing, torn or damaged.
        CheckpointError: If it is of a later format, or the disk cannot be read now.
    """
    try:
        manifest = _manifest(folder)
        of_optimizers = {_OPTIMIZERS, *part_files(manifest, "optimizers")} & manifest.keys()
        has_optimizers = optimizers and all((folder / name).exists() for name in of_optimizers)
        if not has_optimizers:
            manifest = {name: checksum for name, checksum in manifest.items() if name not in of_optimizers}
        model_parts = open_parts(folder, manifest, "model")
        optimizer_parts = open_parts(folder, manifest, "optimizers")
        if not checks_parts:
            parts = {*part_files(manifest, "model"), *part_files(manifest, "optimizers")}
            manifest = {name: checksum for name, checksum in manifest.items() if name not in parts}
        checksums = {name: checksum_of(folder / name) for name in manifest.keys() - _FILES - {_OPTIMIZERS}}
        model, checksums[_MODEL] = read_tensors(folder / _MODEL)
        large: dict[str, Tensor] = {}
        if _OPTIMIZERS in manifest:
            large, checksums[_OPTIMIZERS] = read_tensors(folder / _OPTIMIZERS)
        contents = {name: (folder / name).read_bytes() for name in (_TRAINING, _STATE)}
        checksums |= {name: str(Checksum(each)) for name, each in contents.items()}
        damaged = [name for name, checksum in manifest.items() if checksums[name] != checksum]
        if damaged:
            raise DamagedCheckpointError(f"{folder} is damaged: the checksum of {', '.join(sorted(damaged))} is wrong")
        training = decoded(torch.load(io.BytesIO(contents[_TRAINING]), map_location="cpu", weights_only=True))
        state = json.loads(contents[_STATE])
        if not isinstance(training, dict) or not isinstance(state, dict):
            raise DamagedCheckpointError(f"{folder} is damaged: its state is not a mapping")
        if not has_optimizers:
            training.pop("optimizers", None)
        elif large or optimizer_parts:
            training["optimizers"] = with_divided(with_large(training["optimizers"], large), optimizer_parts)
        checkpoint = Checkpoint(
            number=number,
            model=model | model_parts,
            training=training,
            state=state,
            folder=folder,
            journal=read_journal(folder.parent, state[JOURNAL]) if JOURNAL in state else "",
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
    except pickle.UnpicklingError as error:
        raise DamagedCheckpointError(f"{folder} cannot be read: {error}") from error
    return checkpoint


def _manifest(folder: Path) -> dict[str, str]:
    """Checksums of the files of a checkpoint, by name."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if isinstance(manifest, dict):
        version = manifest.pop(_FORMAT_KEY, 1)
        require_known_format(version, folder)
        manifest = manifest if version < _FIRST_WITH_FILES else manifest.get("files")
    if not isinstance(manifest, dict) or not manifest.keys() >= _FILES:
        raise DamagedCheckpointError(f"{folder} is damaged: its manifest does not list all files of a checkpoint")
    return manifest


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


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
