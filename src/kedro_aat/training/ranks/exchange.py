"""Files by which a process and the ranks that it starts exchange what they work on, and how they ended.

They lie in a folder that only this user can read. Tensors are mapped from the file, so that all ranks share one copy in
memory, whatever the size of /dev/shm.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.storage import TypedStorage

from kedro_aat import errors
from kedro_aat.errors import AatError, ConfigurationError, LostRankError, OutOfMemoryError, RankError
from kedro_aat.training.ranks.stage_inputs import SearchStageResult, StageInputs

if TYPE_CHECKING:
    from kedro_aat.training.stage import SearchStage


@dataclass(frozen=True)
class Failure:
    """Why a rank ended.

    Attributes:
        rank: Its number.
        seconds: When, on a clock that all processes of this machine share.
        error: The error; a `LostRankError` if it only follows from that of another rank.
    """

    rank: int
    seconds: float
    error: Exception


@dataclass(frozen=True)
class Returned:
    """What rank 0 found.

    Attributes:
        result: Result of the stage.
        model: Tensors of the model.
        controller: State of its controller.
    """

    result: SearchStageResult
    model: dict[str, Tensor]
    controller: dict[str, Any]


_RESULT = TypeAdapter(SearchStageResult)


class Exchange:
    """The files of one launch. None of them is unpickled: what runs code goes through the pipe to the new process.

    Args:
        folder: An empty folder that only this user can read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def give(self, stage: SearchStage, inputs: StageInputs) -> bytes:
        """Writes the numbers of what the ranks work on.

        Returns:
            What else `take` needs: the objects without the numbers of their tensors.

        Raises:
            ConfigurationError: If something cannot be passed to another process.
        """
        given = {"settings": stage} | {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
        try:
            return _packed(given, self._folder)
        except Exception as error:
            wrong = [f"{name} ({found})" for name, value in given.items() if (found := _refusal(value))]
            raise ConfigurationError(
                "training",
                [
                    f"devices: {stage.training.devices} processes were to be started, but {' and '.join(wrong)} cannot "
                    "be passed to another process by pickle. Define functions and classes at the top of a module, not "
                    "inside of others, open files when they are read; or start the processes yourself, so that each "
                    f"makes its own: torchrun --nproc-per-node {stage.training.devices} -m kedro run"
                ],
            ) from error

    def take(self, given: bytes) -> tuple[SearchStage, StageInputs]:
        """Makes what the ranks work on.

        Args:
            given: What `give` returned, which this process got from the one that started it.

        Raises:
            RankError: If this process cannot make these objects.
        """
        try:
            made = _Unpacker(given, self._folder).load()
        except Exception as error:  # unpickling runs the user's code
            raise RankError(
                f"What was passed to another process cannot be made there: {type(error).__name__}: {error}. Classes "
                "and functions of a notebook or an interactive session must be in a module that it imports; or start "
                "the processes yourself with torchrun."
            ) from error
        stage: SearchStage = made.pop("settings")
        return stage, StageInputs(**made)

    def begin(self, rank: int) -> None:
        """Notes the number of this process, which computes a rank."""
        self._put(f"process-{rank}", str(os.getpid()).encode())

    def process_of(self, rank: int) -> int | None:
        """Number of the process of a rank; None if it has not begun."""
        path = self._folder / f"process-{rank}"
        return int(path.read_text()) if path.exists() else None

    def fail(self, rank: int, error: Exception) -> None:
        """Writes why a rank ends."""
        notes = [*getattr(error, "__notes__", ())]
        if (cause := error.__cause__) is not None:
            notes.append(f"On rank {rank}:\n{''.join(traceback.format_exception(cause))}")
        role = getattr(error, "role", None)
        written = {"rank": rank, "seconds": time.monotonic(), "notes": notes, "role": role}
        try:
            if not isinstance(error, AatError):
                raise TypeError
            text = json.dumps(written | {"kind": type(error).__name__, "args": error.args})
        except TypeError:  # of an error that is not ours, the class may be anything
            text = json.dumps(
                written | {"kind": "RankError", "args": [f"{type(error).__name__} on rank {rank}: {error}"]}
            )
        self._put(f"failure-{rank}", text.encode())

    def failures(self) -> list[Failure]:
        """Why ranks have ended, the first one first; those that are only a consequence come last."""
        found = [_failure(json.loads(path.read_bytes())) for path in self._folder.glob("failure-*")]
        return sorted(found, key=lambda failure: (isinstance(failure.error, LostRankError), failure.seconds))

    def finish(self, returned: Returned) -> None:
        """Writes what rank 0 found."""
        content = io.BytesIO()
        torch.save({"model": returned.model, "controller": returned.controller}, content)
        self._put("tensors", content.getbuffer())
        self._put("returned", json.dumps(_RESULT.dump_python(returned.result, mode="json")).encode())

    def returned(self) -> Returned | None:
        """What rank 0 found; None if it has not come to its end."""
        path = self._folder / "returned"
        if not path.exists():
            return None
        tensors = torch.load(self._folder / "tensors", weights_only=True)
        return Returned(_RESULT.validate_python(json.loads(path.read_bytes())), **tensors)

    def begin_again(self) -> None:
        """Removes what the ranks of the last start wrote."""
        for kind in ("process", "failure"):
            for path in self._folder.glob(f"{kind}-*"):
                path.unlink()

    def _put(self, name: str, content: bytes | memoryview) -> None:
        new = self._folder / f".{name}"
        new.write_bytes(content)
        new.replace(self._folder / name)


def _failure(written: Mapping[str, Any]) -> Failure:
    kind: type[AatError] = getattr(errors, written["kind"])
    error = kind(*written["args"])
    if isinstance(error, OutOfMemoryError):
        error.role = written["role"]
    for note in written["notes"]:
        error.add_note(note)
    return Failure(written["rank"], written["seconds"], error)


class _Packer(pickle.Pickler):
    """Pickles objects without the numbers of their tensors, which it writes to files.

    Args:
        file: Gets the pickle.
        folder: Gets a file for each storage of tensors, which several of them may share; None writes none.
    """

    def __init__(self, file: IO[bytes], folder: Path | None) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._folder = folder
        self._known: dict[int, int] = {}
        self._kept: list[torch.UntypedStorage] = []  # as long as they live, no other one has their address

    def persistent_id(self, obj: Any) -> tuple[int, int, str] | None:
        """Number, bytes and type of a storage on the CPU; None for what is pickled."""
        if not isinstance(obj, TypedStorage):
            return None
        storage = obj._untyped_storage
        if storage.device.type != "cpu" or not storage.nbytes():
            return None
        address = storage.data_ptr()
        if address not in self._known:
            self._known[address] = len(self._known)
            self._kept.append(storage)
            if self._folder is not None:
                numbers = torch.empty(0, dtype=torch.uint8).set_(storage)
                numbers.numpy().tofile(self._folder / f"storage-{self._known[address]}")
        return self._known[address], storage.nbytes(), str(obj.dtype).removeprefix("torch.")


class _Unpacker(pickle.Unpickler):
    """Makes what a `_Packer` has pickled; each process has its own copy of what it changes in a tensor."""

    def __init__(self, given: bytes, folder: Path) -> None:
        super().__init__(io.BytesIO(given))
        self._folder = folder
        self._known: dict[int, torch.UntypedStorage] = {}

    def persistent_load(self, pid: tuple[int, int, str]) -> TypedStorage:
        """The storage with an id of the packer's."""
        number, num_bytes, dtype = pid
        if number not in self._known:
            path = str(self._folder / f"storage-{number}")
            self._known[number] = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(path, False, num_bytes))
        return TypedStorage(wrap_storage=self._known[number], dtype=getattr(torch, dtype), _internal=True)


def _packed(value: Any, folder: Path | None) -> bytes:
    content = io.BytesIO()
    _Packer(content, folder).dump(value)
    return content.getvalue()


def _refusal(value: Any) -> str:
    """Why a value cannot be pickled; empty if it can."""
    try:
        _packed(value, None)
    except Exception as error:  # whatever its classes raise
        return f"{type(error).__name__}: {error}"
    return ""
