"""Guards the calls of the user's functions: errors name them, and what they must not change is compared."""

from __future__ import annotations

import inspect
import itertools
import logging
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.errors import AatError, OutOfMemoryError, UserFunctionError, first_of
from kedro_aat.ranks.shards import local
from kedro_aat.training.guards.watchdog import stop_watching

logger = logging.getLogger(__name__)

_OUR_FILES = str(Path(__file__).parents[2])


@contextmanager
def calling(
    function: Callable[..., Any],
    role: str,
    subject: str,
    *,
    batch_size: int | None = None,
    can_be_halved: bool = False,
) -> Iterator[None]:
    """Names the epoch and the function in an error of the user's code, which stays its `__cause__`.

    Args:
        function: The function that is called.
        role: What it is for the loop, such as `train_epoch`.
        subject: The epoch, such as "epoch 7", or what else the function is called for.
        batch_size: Examples in a batch, for an error about memory; None if unknown.
        can_be_halved: Whether such an error advises to let the batch be halved.

    Raises:
        OutOfMemoryError: If there was too little memory.
        UserFunctionError: For any other error that is not one of ours.
    """
    try:
        yield
    except AatError:
        raise
    except (Exception, SystemExit) as error:
        called = f"{subject[0].upper()}{subject[1:]}: {role} ({name_of(function)})"
        if is_out_of_memory(error):
            batch = "" if batch_size is None else f" with a batch size of {batch_size}"
            halve = ", or let training.on_out_of_memory: halve_batch compute it in parts" if can_be_halved else ""
            out_of_memory = OutOfMemoryError(
                f"{called} ran out of memory{batch}; the peak was {peak_memory() / 2**30:.2f} GiB. Use a smaller batch "
                f"(training.batch_size){halve}. The error was {type(error).__name__}: {error}"
            )
            out_of_memory.role = role
            raise out_of_memory from error
        raise UserFunctionError(f"{called} failed.\n{_own_traceback(error)}") from error
    finally:
        stop_watching()


def name_of(function: Callable[..., Any]) -> str:
    """The import path of a function, of what a partial calls, or of the class of an object that can be called."""
    function = inspect.unwrap(function.func if isinstance(function, partial) else function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _own_traceback(error: BaseException) -> str:
    """The traceback from the first frame that is not ours."""
    shown = traceback.TracebackException.from_exception(error)
    own = [*itertools.dropwhile(lambda frame: frame.filename.startswith(_OUR_FILES), shown.stack)]
    if own:
        shown.stack = traceback.StackSummary.from_list(own)
    return "".join(shown.format()).rstrip()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that there is too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # On the CPU and on other accelerators, torch raises a RuntimeError.
    message = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in message or "can't allocate memory" in message)


def peak_memory() -> int:
    """Largest number of bytes so far: allocated on the GPU if one is in use, else resident; 0 if unknown."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def norms_of(model: nn.Module) -> tuple[list[str], Tensor]:
    """Names of the tensors in the model's state, and two numbers of each: its norm, and a weighted sum.

    The weights differ from place to place, so that changed signs and another order count too.

    Reading the state applies masks, so that a mask which the next forward pass would apply is no change.
    """
    tensors = {name: local(value) for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    numbers = [_numbers_of(_floating(tensor)) for tensor in tensors.values()]
    if not numbers:
        return [], torch.zeros(0, 2)
    return list(tensors), torch.stack([number.to(numbers[0].device) for number in numbers]).nan_to_num()


def _numbers_of(tensor: Tensor) -> Tensor:
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten()
    weights = torch.arange(1, len(flat) + 1, dtype=flat.dtype, device=flat.device)
    return torch.stack([torch.linalg.vector_norm(flat), torch.dot(flat, weights / len(flat))]).double()


def _floating(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    is_wide = tensor.dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128)
    return tensor if is_wide else tensor.float()


@contextmanager
def left_unchanged(
    model: nn.Module, function: Callable[..., Any], epoch: int, *, only_parameters: bool = False
) -> Iterator[None]:
    """Finds out whether a validation function changes the model.

    Args:
        model: The model.
        function: The validation function.
        epoch: Number of the epoch.
        only_parameters: Whether buffers may change.

    Raises:
        UserFunctionError: If a tensor has changed.
    """
    names, before = norms_of(model)
    yield
    names_after, after = norms_of(model)
    if names == names_after and torch.equal(before, after):  # the only time that the host waits for the device
        return
    norms = dict(zip(names, before.tolist(), strict=True))
    changed = [name for name, norm in zip(names_after, after.tolist(), strict=True) if norms.get(name) != norm]
    if only_parameters:
        parameters = dict(model.named_parameters())
        changed = [name for name in changed if name in parameters]
    if changed:
        raise UserFunctionError(
            f"Epoch {epoch}: validate ({name_of(function)}) changed {first_of(changed, 3)} of the model. Let it begin "
            "with model.eval(), and change nothing."
        )


def require_same_names(before: Collection[str], names: Collection[str], epoch: int) -> None:
    """Finds tensors that the user's functions added or removed, after which no earlier checkpoint could be loaded.

    Args:
        before: Names in the model's state when the run began.
        names: Names in its state now.
        epoch: Number of the epoch.

    Raises:
        UserFunctionError: If they differ.
    """
    added, removed = sorted({*names} - {*before}), sorted({*before} - {*names})
    changes = [f"{first_of(found, 3)} was {how}" for found, how in ((added, "added"), (removed, "removed")) if found]
    if changes:
        raise UserFunctionError(
            f"Epoch {epoch}: the names in the model's state_dict changed: {'; '.join(changes)}. Earlier "
            "checkpoints would not fit. Let the functions change tensors only, and add or wrap modules before the run."
        )


def warn_of_evaluation_mode(train: Callable[..., Any], epoch: int) -> None:
    """Says that a training function has trained the model in evaluation mode.

    Args:
        train: The function.
        epoch: Number of the epoch.
    """
    logger.warning(
        "Epoch %d: train_epoch (%s) leaves the model in evaluation mode. Let it begin with model.train(), or dropout "
        "and batch statistics are off in the next epoch.",
        epoch,
        name_of(train),
    )
