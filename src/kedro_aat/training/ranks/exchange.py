"""Files by which a process and the ranks that it starts exchange what they work on, and how they ended.

They lie in a folder that only this user can read. Tensors are mapped from the file, so that all ranks share one copy in
memory, whatever the size of /dev/shm.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kedro_aat.errors import ConfigurationError, LostRankError, RankError
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


class Exchange:
    """The files of one launch.

    Args:
        folder: An empty folder that only this user can read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def give(self, stage: SearchStage, inputs: StageInputs) -> None:
        """Writes what the ranks work on.

        Raises:
            ConfigurationError: If something cannot be passed to another process.
        """
        given = {"settings": stage} | {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
        try:
            torch.save(given, self._folder / "given")
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

    def take(self) -> tuple[SearchStage, StageInputs]:
        """Reads what the ranks work on.

        Raises:
            RankError: If this process cannot make these objects.
        """
        try:
            given = torch.load(self._folder / "given", mmap=True, weights_only=False)
        except Exception as error:  # unpickling runs the user's code
            raise RankError(
                f"What was passed to another process cannot be made there: {type(error).__name__}: {error}. Classes "
                "and functions of a notebook or an interactive session must be in a module that it imports; or start "
                "the processes yourself with torchrun."
            ) from error
        stage: SearchStage = given.pop("settings")
        return stage, StageInputs(**given)

    def begin(self, rank: int) -> None:
        """Notes the number of this process, which computes a rank."""
        self._put(f"process-{rank}", str(os.getpid()).encode())

    def process_of(self, rank: int) -> int | None:
        """Number of the process of a rank; None if it has not begun."""
        path = self._folder / f"process-{rank}"
        return int(path.read_text()) if path.exists() else None

    def fail(self, rank: int, error: Exception) -> None:
        """Writes why a rank ends."""
        if (cause := error.__cause__) is not None:
            error.add_note(f"On rank {rank}:\n{''.join(traceback.format_exception(cause))}")
        try:
            contents = pickle.dumps(Failure(rank, time.monotonic(), error))
            pickle.loads(contents)  # an error class of the user's may refuse it
        except Exception:
            plain = RankError(f"{type(error).__name__} on rank {rank}: {error}")
            contents = pickle.dumps(Failure(rank, time.monotonic(), plain))
        self._put(f"failure-{rank}", contents)

    def failures(self) -> list[Failure]:
        """Why ranks have ended, the first one first; those that are only a consequence come last."""
        found: list[Failure] = [pickle.loads(path.read_bytes()) for path in self._folder.glob("failure-*")]
        return sorted(found, key=lambda failure: (isinstance(failure.error, LostRankError), failure.seconds))

    def finish(self, returned: Returned) -> None:
        """Writes what rank 0 found."""
        content = io.BytesIO()
        torch.save(returned, content)
        self._put("returned", content.getbuffer())

    def returned(self) -> Returned | None:
        """What rank 0 found; None if it has not come to its end."""
        path = self._folder / "returned"
        return torch.load(path, weights_only=False) if path.exists() else None

    def begin_again(self) -> None:
        """Removes what the ranks of the last start wrote."""
        for kind in ("process", "failure"):
            for path in self._folder.glob(f"{kind}-*"):
                path.unlink()

    def _put(self, name: str, content: bytes | memoryview) -> None:
        new = self._folder / f".{name}"
        new.write_bytes(content)
        new.replace(self._folder / name)


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        return len(content)


def _refusal(value: Any) -> str:
    """Why a value cannot be pickled; empty if it can."""
    try:
        torch.save(value, cast(IO[bytes], _Nowhere()))
    except Exception as error:  # whatever its classes raise
        return f"{type(error).__name__}: {error}"
    return ""
