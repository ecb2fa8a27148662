"""The errors that a user can meet. Each says what is wrong, where, and how to fix it."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_LISTED = 100  # mistakes in a message
_MAX_LENGTH = 2000  # characters of a mistake; libraries show whole values in theirs


def first_of(names: Sequence[str], most: int) -> str:
    """The first names of a list, and how many more there are, for a message.

    Args:
        names: At least one.
        most: How many are written out, at least 1.
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


class AatError(Exception):
    """Base class of all errors that kedro-aat raises on purpose."""


class ConfigurationError(AatError, ValueError):
    """Settings that cannot be used.

    Attributes:
        where: What the user calls this piece of configuration.
        mistakes: All mistakes, one line each.
    """

    def __init__(self, where: str, mistakes: list[str]) -> None:
        self.where = where
        self.mistakes = mistakes
        super().__init__(where, mistakes)

    def __str__(self) -> str:
        count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        num_more = len(self.mistakes) - _MAX_LISTED
        lines = [*self.mistakes[:_MAX_LISTED], *([f"... and {num_more} more"] if num_more > 0 else [])]
        text = f"{self.where}: {count}" + "".join(f"\n  - {_cut(line)}" for line in lines)
        return text.encode(errors="backslashreplace").decode()  # the user's texts may be no valid Unicode


def _cut(line: str) -> str:
    return line if len(line) <= _MAX_LENGTH else line[: _MAX_LENGTH - 3] + "..."


class DataError(AatError, ValueError):
    """Data that is missing, incomplete or of the wrong form."""


class ModelError(AatError, ValueError):
    """A model that cannot be compressed, saved or rebuilt as asked."""


class MetricError(AatError, ValueError):
    """A metric that is not a finite number, in which case the message names its epoch; or one that means nothing."""


class DivergedError(MetricError):
    """A loss or a metric that is NaN or infinite; the search is told of it as a failed epoch."""


class UserFunctionError(AatError):
    """A function of the user's failed, or left something behind that it must not.

    The message begins with the epoch and the function; the function's own error is the `__cause__`.
    """


class OutOfMemoryError(UserFunctionError):
    """A function of the user's needed more memory than there is.

    Attributes:
        role: What the function is for the loop, such as `train_epoch`.
    """

    role: str = ""


class UnrepeatableError(AatError):
    """A model whose validation, repeated at the end, gives another metric than the one that it was chosen by."""


class StorageError(AatError):
    """A path that cannot be used, or files that cannot be written; nothing is lost."""


class HeldError(StorageError):
    """What only one process may use at a time is in use by another one."""


class CheckpointError(StorageError):
    """A checkpoint, or the ledger, cannot be written or read: damage, the disk, another process, another version."""


class MissingRunError(CheckpointError):
    """There is no run with these settings, model and data, or none that a result names, of which it could be read."""


class LostLedgerError(CheckpointError):
    """The ledger does not know a baseline that was registered in it, so it was lost or is another one."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is missing, torn or damaged, and so lost for good; others may take its place."""


class ExportError(AatError):
    """An exported file that does not compute what its model computes."""


class DeviceError(AatError):
    """The function of `export.measure_with` did not measure a file; the message says why."""


class RehearsalError(AatError):
    """Something that the run would do does not work, which was found by doing it once before the search.

    Attributes:
        faults: What fails: part, cause, what mends it, and what goes on working without it, in words.
        num_parts: Number of parts that were tried.
    """

    def __init__(self, faults: list[str], num_parts: int) -> None:
        self.faults = faults
        self.num_parts = num_parts
        super().__init__(faults, num_parts)

    def __str__(self) -> str:
        fail = "fails" if len(self.faults) == 1 else "fail"
        text = f"{len(self.faults)} of {self.num_parts} parts {fail} in the rehearsal, so the run would fail later:"
        text += "".join(f"\n  - {fault}" for fault in self.faults)
        text += "\nA run with `rehearsal: false` tries it nevertheless."
        return text.encode(errors="backslashreplace").decode()


class InfeasibleError(AatError):
    """No compressed model kept the budget, and the settings ask for an error in that case."""


class InterruptedRunError(AatError):
    """The run was stopped from outside; the same command continues it."""


class RankError(AatError):
    """One of several processes that train together is lost, or cannot be started; the same command continues the run.

    What failed in a process that is not lost is the `__cause__`.
    """


class LostRankError(RankError):
    """Another process does not answer any more: it was killed, or its machine is gone."""


def ends_run(error: BaseException) -> bool:
    """Whether an error must end the run, so that nothing may be done instead of what failed.

    So do interruptions, mistakes in the settings, lost ranks, and files that cannot be written, as on a full disk.
    """
    return not isinstance(error, Exception) or isinstance(
        error, ConfigurationError | InterruptedRunError | RankError | StorageError | OSError
    )
