"""Rank 0 runs the loop as a single process does; the other ranks make the same calls of their runners.

Before each call, rank 0 tells the others its name and arguments; checkpoints are told by folder and number. Random
numbers of the others begin with each call at what follows from rank 0's, so that a resumed run repeats them.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from kedro_aat.errors import LostRankError, MetricError, RankError
from kedro_aat.ranks import group
from kedro_aat.ranks.shards import is_divided, is_sharded, whole_state
from kedro_aat.training.checkpoints import Checkpoint
from kedro_aat.training.checkpoints.files import read
from kedro_aat.training.checkpoints.parts import without_rows, write_parts
from kedro_aat.training.random_state import seed_everything
from kedro_aat.training.ranks.same_masks import require_same_masks
from kedro_aat.training.runner import TrainingRunner, listed

T = TypeVar("T")

# Methods of the runner that change its state, or need all ranks.
_METHODS = (
    *("reset_training", "scale_learning_rate", "use", "set_rate", "adapt", "finish_rate_path", "uncompress"),
    *("train_epoch", "validate", "update_learning_rate", "rates"),
    *("restore_model", "restore_optimizers", "roll_back", "resume", "write_parts", "whole_state"),
)
_BEGIN_ANNEALING, _END_ANNEALING = "begin_annealing", "end_annealing"


@dataclass(frozen=True)
class _Saved:
    """Where a checkpoint is, with which it is told."""

    folder: Path
    number: int


@dataclass(frozen=True)
class _Call:
    """A call of the runner that all ranks make."""

    name: str
    args: tuple[Any, ...]
    seed: int


@dataclass(frozen=True)
class _End:
    """What the loop returned, or the error that it raised."""

    value: Any = None
    error: Exception | None = None


class RankRunner(TrainingRunner):
    """The runner of one of several ranks."""

    def write_parts(self, folder: Path) -> dict[str, str]:
        """Writes what each rank holds of tensors that are divided among the ranks; see `parts.write_parts`."""
        return write_parts(folder, self.model, listed(self.optimizer))

    def whole_state(self) -> dict[str, Tensor]:
        """The state of a model that is divided among the ranks, whole, on the CPU of rank 0; elsewhere nothing."""
        return whole_state(self.model)


class LeadingRunner(RankRunner):
    """The runner of rank 0, which tells the others what it does."""

    _depth = 0  # of calls of the runner's own methods, which the others make by themselves
    _is_alone = False  # after a call that ended in the middle, where the others may still be

    @property
    def is_alone(self) -> bool:
        """Whether a call ended in the middle, where the others may still be, so that they can be told nothing."""
        return self._is_alone

    @contextmanager
    def annealing(self, scale: float, scale_at_end: float | None) -> Iterator[None]:
        """As `TrainingRunner.annealing`, on all ranks."""
        with self._told(_BEGIN_ANNEALING, (scale, scale_at_end)):
            ours = contextlib.ExitStack()
            ours.enter_context(super().annealing(scale, scale_at_end))
        try:
            yield
        finally:
            with self._told(_END_ANNEALING, ()):
                ours.close()

    @contextmanager
    def _told(self, name: str, args: tuple[Any, ...]) -> Iterator[None]:
        """Tells the others a call before it is made here.

        Raises:
            RankError: If it fails here alone, or another rank is lost.
        """
        is_told = self._depth == 0 and not self._is_alone
        self._depth += 1
        try:
            if is_told:
                group.told(_Call(name, tuple(map(_as_told, args)), _seed_of_others()))
                _hand_over(args)
            yield
        except MetricError:  # all ranks have it
            raise
        except RankError:
            self._is_alone = True
            raise
        except Exception as error:
            self._is_alone = True
            raise rank_error(error) from error
        except BaseException:
            self._is_alone = True
            raise
        finally:
            self._depth -= 1

    def checkpoint(self, number: int, state: dict[str, Any], growing: Mapping[str, Any] | None = None) -> Checkpoint:
        """As `TrainingRunner.checkpoint`; each rank writes what it holds of tensors that are divided among them.

        Args:
            number: Number of the checkpoint.
            state: State of the search, as JSON data.
            growing: What grows with the epochs.
        """
        checkpoint = super().checkpoint(number, state, growing)
        if not is_divided(self.model):
            return checkpoint
        return replace(
            checkpoint,
            model={name: tensor for name, tensor in checkpoint.model.items() if not is_sharded(tensor)},
            training=checkpoint.training | {"optimizers": without_rows(checkpoint.training["optimizers"], {})},
            write_parts=lambda folder: self.write_parts(folder.absolute()),
        )

    def end(self, value: Any = None, error: Exception | None = None) -> None:
        """Tells the others how the loop has ended, unless they may be in the middle of something."""
        if not self._is_alone:
            group.told(_End(value, error))


@dataclass
class Ending:
    """How rank 0's work with the others ends.

    Attributes:
        value: What all ranks get in the end.
    """

    value: Any = None


@contextmanager
def leading(runner: LeadingRunner) -> Iterator[Ending]:
    """Rank 0's work with the others, who are told how it ends: by an error, or with a value."""
    ending = Ending()
    try:
        yield ending
    except Exception as error:
        with contextlib.suppress(RuntimeError):  # one of them may be lost
            runner.end(error=error)
        raise
    with contextlib.suppress(RuntimeError):
        runner.end(ending.value)


def _led(method: Callable[..., T]) -> Callable[..., T]:
    @wraps(method)
    def call(self: LeadingRunner, *args: Any) -> T:
        with self._told(method.__name__, args):
            result = method(self, *args)
            if method.__name__ == "train_epoch":
                require_same_masks(self.model, self.cumulative_epoch_count)
            return result

    return call


for _name in _METHODS:
    setattr(LeadingRunner, _name, _led(getattr(RankRunner, _name)))


def follow(runner: TrainingRunner) -> Any:
    """Makes the calls that rank 0 tells, until its loop ends.

    Args:
        runner: This rank's runner.

    Returns:
        What rank 0's loop returned.

    Raises:
        RankError: If rank 0 is lost.
        AatError: What rank 0's loop raised.
    """
    annealing = contextlib.ExitStack()
    with _left_to_rank_0():
        while True:
            try:
                call: _Call | _End = group.told()
            except RuntimeError as error:
                raise rank_error(error) from error
            if isinstance(call, _End):
                if call.error is not None:
                    raise call.error
                return call.value
            args = tuple(map(_as_received, call.args))
            seed_everything(call.seed + group.rank())
            try:
                if call.name == _BEGIN_ANNEALING:
                    annealing.enter_context(runner.annealing(*args))
                elif call.name == _END_ANNEALING:
                    annealing.close()
                else:
                    getattr(runner, call.name)(*args)
                    if call.name == "train_epoch":
                        require_same_masks(runner.model, runner.cumulative_epoch_count)
            except MetricError:  # rank 0 has it too, and says what comes next
                pass


def _as_told(argument: Any) -> Any:
    if isinstance(argument, Checkpoint) and argument.folder is not None:
        return _Saved(argument.folder.absolute(), argument.number)
    return argument


def _hand_over(args: tuple[Any, ...]) -> None:
    """Tells checkpoints themselves where other machines do not see their files."""
    for argument in args:
        if isinstance(argument, Checkpoint) and argument.folder is not None and not all(group.gathered(True)):
            group.told(argument)


def _as_received(argument: Any) -> Any:
    if not isinstance(argument, _Saved):
        return argument
    if all(group.gathered(argument.folder.is_dir())):
        return read(argument.folder, argument.number, checks_parts=False)  # rank 0 has looked at all of them
    return group.told()


def _seed_of_others() -> int:
    """A number that follows from the state of this process's random generator, which stays as it is."""
    state = hashlib.blake2b(torch.get_rng_state().numpy().tobytes(), digest_size=6)
    return int.from_bytes(state.digest(), "big")


@contextmanager
def _left_to_rank_0() -> Iterator[None]:
    """Ignores Ctrl-C, which a terminal sends to all ranks: rank 0 says what it means."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def is_of_lost_rank(error: BaseException | None) -> bool:
    """Whether an error says no more than that another rank does not answer any more."""
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def rank_error(error: Exception) -> RankError:
    """What an error on one rank means for all."""
    if isinstance(error, RankError):
        return error
    if is_of_lost_rank(error):
        return LostRankError(f"Another rank is lost, so rank {group.rank()} cannot go on: {error}")
    return RankError(f"{type(error).__name__} on rank {group.rank()}: {error}")
