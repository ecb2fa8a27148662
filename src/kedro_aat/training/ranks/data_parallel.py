"""Training steps and validations in which every rank computes its part of each batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kedro_aat.compression.quantization.fake import RANGES
from kedro_aat.ranks import group
from kedro_aat.ranks.shards import is_divided
from kedro_aat.training.ranks.sharding import Part, Shard
from kedro_aat.training.ranks.synchronized_norms import SynchronizedNorms, has_norms

T = TypeVar("T")

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_IGNORED = "_ddp_params_and_buffers_to_ignore"  # where torch looks for them


class DataParallel:
    """What several ranks do beside the work of a single process; nothing if there is only one.

    Args:
        shard: The part of each batch that this rank computes; None in a single process.
        device: Device of this rank.

    Attributes:
        shard: The part of each batch that this rank computes; None in a single process.
        is_divided: Whether each rank holds some rows of the model's weights only; torch then averages the gradients.
    """

    def __init__(self, shard: Shard | None, device: torch.device) -> None:
        self.shard, self._device = shard, device
        self._norms: SynchronizedNorms | None = None
        self._wrapped: tuple[nn.Module, Any] | None = None
        self.is_divided = False
        self._has_unused: bool | None = None  # parameters without gradients; None until the first step

    def synchronize(self, model: nn.Module) -> None:
        """Gives all ranks rank 0's parameters and buffers, unless each holds other rows of them."""
        self.is_divided = is_divided(model)
        if self.shard is not None and not self.is_divided:
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                dist.broadcast(tensor.detach(), 0)

    @contextmanager
    def at_work(self, model: nn.Module, *, in_evaluation: bool = False) -> Iterator[None]:
        """All ranks run the model, each on its part of the same batches; buffers that depend on them are rank 0's."""
        if self.shard is None:
            yield
            return
        self._norms = SynchronizedNorms() if has_norms(model, in_evaluation=in_evaluation) else None
        try:
            with group.in_step():
                yield
        finally:
            self._norms = None
        if not in_evaluation:
            ignored = _computed_alike(model)
            for name, buffer in model.named_buffers():
                if name not in ignored:
                    dist.broadcast(buffer, 0)

    @contextmanager
    def part(self, batch: Any, forward: Any = None, *, is_last: bool = True) -> Iterator[None]:
        """This rank runs the model on its part of a batch, or on a part of that.

        Args:
            batch: The batch, or this rank's part of it.
            forward: What is called in the place of the model, in training.
            is_last: Whether gradients are averaged after this one.
        """
        with contextlib.ExitStack() as stack:
            if self._norms is not None:
                self._norms.counts = not isinstance(batch, Part) or batch.number > 0
                stack.enter_context(self._norms)
            if not is_last and isinstance(forward, DistributedDataParallel):
                stack.enter_context(forward.no_sync())
            yield

    def wrapped(self, model: Any) -> Any:
        """What is called in training steps in the place of the model: torch's DDP, which averages the gradients.

        A model whose weights are divided among the ranks does so by itself. Before the first step, it is the model
        itself, since DDP must know whether all parameters get gradients.
        """
        if self.is_divided or self.shard is None or self._has_unused is None:
            return model
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        if self._wrapped is None or self._wrapped[0] is not model:
            self._wrapped = None  # the hooks of the old one go with it
            before = getattr(model, _IGNORED, None)
            setattr(model, _IGNORED, sorted(_computed_alike(model)))
            ddp = DistributedDataParallel(model, find_unused_parameters=self._has_unused)
            if before is None:  # a DDP of the user's, later, synchronizes its own BatchNorms
                delattr(model, _IGNORED)
            else:
                setattr(model, _IGNORED, before)
            self._wrapped = model, ddp
        return self._wrapped[1]

    def after_backward(self, forward: Any) -> Any:
        """Averages the gradients if DDP has not; returns what is called in the next step."""
        if self.is_divided or self.shard is None or self._has_unused is not None:
            return forward
        self._has_unused = self.sum_gradients(forward)
        for parameter in forward.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.shard.size
        return self.wrapped(forward)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss whose gradients are averaged over the ranks, of one whose gradients are to be added up."""
        return loss if self.shard is None else loss * self.shard.size

    def total(self, loss: Tensor) -> Tensor:
        """The sum of all ranks' losses."""
        return loss if self.shard is None else group.summed(loss)

    def sum_gradients(self, model: nn.Module) -> bool:
        """Adds up all ranks' gradients without DDP, and returns whether a rank has parameters without them."""
        parameters = [each for each in model.parameters() if each.requires_grad]
        if self.shard is None or not parameters:
            return False
        numbers = torch.tensor([float(each.grad is not None) for each in parameters], device=self._device)
        for parameter, number in zip(parameters, group.summed(numbers).tolist(), strict=True):
            if number:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                group.summed(parameter.grad)
        return bool(numbers.min() < self.shard.size)

    def by_rank_0(self, function: Callable[..., T]) -> Callable[..., T]:
        """A function of the user's that rank 0 alone calls; the others get its result, or its error."""
        if self.shard is None:
            return function

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> T:
            found: tuple[Any, Exception | None] = None, None
            if group.is_main():
                try:
                    with group.alone():
                        found = function(*args, **kwargs), None
                except Exception as error:  # the user's function may raise anything
                    found = None, error
            result, failure = group.told(found)
            if failure is not None:
                raise failure
            return result  # type: ignore[no-any-return]  # told through pickle

        return call

    def in_order(
        self, answers: Callable[[Any], Iterable[tuple[Tensor, Any]]], batch: Any
    ) -> Iterable[tuple[Tensor, Any]]:
        """Outputs and targets of all examples of a batch, in their order, on every rank.

        Args:
            answers: Yields those of a rank's part, piece by piece.
            batch: The batch, or this rank's part of it.
        """
        if self.shard is None or not isinstance(batch, Part):
            yield from answers(batch)
            return
        with self.part(batch):
            own = list(answers(batch))
        own = own if batch.number else []
        outputs = _of_all_ranks([each for each, _ in own], self._device)
        targets = _of_all_ranks([each for _, each in own], self._device)
        if _can_be_joined(outputs) and _can_be_joined(targets):  # as a single process sees them
            yield torch.cat(outputs), torch.cat(targets)
        else:  # each rank has padded its part to a length of its own
            yield from zip(outputs, targets, strict=True)


def _can_be_joined(parts: list[Any]) -> bool:
    return all(isinstance(each, Tensor) and each.dim() and each.shape[1:] == parts[0].shape[1:] for each in parts)


def _of_all_ranks(own: list[Any], device: torch.device) -> list[Any]:
    """What all ranks have, one after another; tensors on the device."""
    form = [(each.shape, each.dtype) for each in own if isinstance(each, Tensor)]
    forms = group.gathered(form if len(form) == len(own) else None)
    known = [each for each in forms if each is not None]
    dtypes = {dtype for found in known for _, dtype in found}
    if len(known) < len(forms) or len(dtypes) != 1:
        return [each for others in group.gathered(own) for each in others]
    sizes = [[shape.numel() for shape, _ in found] for found in known]
    padded = torch.zeros(max(map(sum, sizes)), dtype=dtypes.pop(), device=device)
    if own:
        flat = torch.cat([each.detach().reshape(-1) for each in own])
        padded[: len(flat)] = flat
    received = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(received, padded)
    return [
        part.view(shape)
        for flat, found, numbers in zip(received, known, sizes, strict=True)
        for part, (shape, _) in zip(flat[: sum(numbers)].split(numbers), found, strict=True)
    ]


def _computed_alike(model: nn.Module) -> set[str]:
    """Names of buffers that every rank computes alike, so that nothing needs to be told."""
    found = set(getattr(model, _IGNORED, ()))
    for name, module in model.named_modules():
        for key, _ in module.named_buffers(recurse=False):
            if key == RANGES or (isinstance(module, _BatchNorm) and key in _STATISTICS):
                found.add(f"{name}.{key}" if name else key)
    return found
