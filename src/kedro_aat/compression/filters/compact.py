"""A cut copy of a masked model, which trains and runs in its place and costs less.

The masked model stays the one that is saved, ranked and stripped. The copy reads its tensors before it runs, and writes
its own back after training; elements that are cut keep their values in the masked model.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from kedro_aat.compression.filters.cutting import AttributeChange, Cut, apply_cut_plan
from kedro_aat.compression.filters.importance import TAYLOR
from kedro_aat.compression.filters.normalization import restore
from kedro_aat.compression.masks import WeightMasks
from kedro_aat.errors import ModelError
from kedro_aat.model_inputs import ModelInputs, call_model, num_examples, take_examples
from kedro_aat.modes import first_cause

# Optimizers that treat each number alone, so that its part of their state can move with it.
_ELEMENTWISE = frozenset(
    getattr(torch.optim, name)
    for name in ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class CompactModel:
    """A cut copy of a masked model.

    Args:
        masked: The masked model.
        copied: A copy of it without masks, cut in place.
        plan: The cuts.
        kept: Which units are kept, (units of all groups,); identifies the cut.

    Attributes:
        model: The cut copy.
    """

    def __init__(
        self, masked: nn.Module, copied: nn.Module, plan: Sequence[Cut | AttributeChange], kept: NDArray[np.bool_]
    ) -> None:
        self._masked = masked
        self._kept = kept
        # The same cuts, in tensors that hold the numbers of their elements, show which elements stay.
        numbered = copy.deepcopy(copied)
        for tensor in _tensors(numbered).values():
            numbers = torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device)
            tensor.data = numbers.view(tensor.shape)
        shapes = {name: tensor.shape for name, tensor in _tensors(numbered).items()}
        numbers_left = _tensors(apply_cut_plan(numbered, plan))
        self._elements = {
            name: tensor.detach().long() for name, tensor in numbers_left.items() if tensor.shape != shapes[name]
        }
        self.model = apply_cut_plan(copied, plan)

    def is_cut_as(self, kept: NDArray[np.bool_]) -> bool:
        """Whether exactly these units are kept."""
        return np.array_equal(self._kept, kept)

    @torch.no_grad()
    def read(self) -> None:
        """Copies parameters and buffers from the masked model."""
        full = _tensors(self._masked)
        for name, tensor in _tensors(self.model).items():
            tensor.requires_grad_(full[name].requires_grad).copy_(self._taken(name, full[name]))

    @torch.no_grad()
    def write(self) -> None:
        """Copies parameters and buffers into the masked model."""
        full = _tensors(self._masked)
        for name, tensor in _tensors(self.model).items():
            self._put(name, full[name], tensor)

    def can_be_trained_by(self, optimizers: Sequence[Any]) -> bool:
        """Whether `trained_by` can move the state of these optimizers."""
        known = {id(parameter) for parameter in self._masked.parameters()}
        return all(
            type(optimizer) in _ELEMENTWISE
            and all(id(parameter) in known for group in optimizer.param_groups for parameter in group["params"])
            for optimizer in optimizers
        )

    @contextmanager
    def trained_by(self, optimizers: Sequence[Optimizer]) -> Iterator[None]:
        """Lets optimizers of the masked model train this copy for a while; what it learns is then written back.

        Outside of that, their state has the shapes of the masked model, so that it outlives a change of the rate.
        """
        self._masked.zero_grad(set_to_none=True)  # old gradients would pass for new ones
        with contextlib.ExitStack() as stack:
            stack.callback(self.write)
            for optimizer in optimizers:
                stack.enter_context(self._moved(optimizer))
            yield

    @contextmanager
    def _moved(self, optimizer: Optimizer) -> Iterator[None]:
        full, own = dict(self._masked.named_parameters()), dict(self.model.named_parameters())
        wide: dict[tuple[str, str], Tensor] = {}  # the state of elements that are cut stays as it is

        def narrowed(name: str, key: str, value: Any) -> Any:
            if name not in self._elements or getattr(value, "shape", None) != full[name].shape:
                return value
            wide[name, key] = value
            return torch.empty_like(own[name], dtype=value.dtype).copy_(self._taken(name, value))

        def widened(name: str, key: str, value: Any) -> Any:
            if name not in self._elements or getattr(value, "shape", None) != own[name].shape:
                return value
            if (name, key) not in wide:
                wide[name, key] = torch.zeros_like(full[name], dtype=value.dtype)
            self._put(name, wide[name, key], value)
            return wide[name, key]

        _move(optimizer, full, own, narrowed)
        try:
            yield
        finally:
            _move(optimizer, own, full, widened)

    def _taken(self, name: str, full: Tensor) -> Tensor:
        """The elements that stay, of a tensor in the shape of the masked model."""
        elements = self._elements.get(name)
        return full if elements is None else full.reshape(-1)[elements]

    def _put(self, name: str, full: Tensor, part: Tensor) -> None:
        elements = self._elements.get(name)
        if elements is not None:
            part = full.flatten().index_copy(0, elements.flatten(), part.flatten()).view(full.shape)
        full.copy_(part)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def _move(
    optimizer: Optimizer,
    old: dict[str, nn.Parameter],
    new: dict[str, nn.Parameter],
    convert: Callable[[str, str, Any], Any],
) -> None:
    """Lets an optimizer go on with other parameters of the same names.

    Args:
        optimizer: Changed in place.
        old: Its parameters.
        new: Those that replace them.
        convert: Name of a parameter, key and value in its state -> the value for the new parameter.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in old.items()}
    for group in optimizer.param_groups:
        group["params"] = [new[names[parameter]] for parameter in group["params"]]
    state: defaultdict[Tensor, Any] = defaultdict(dict)
    for parameter, values in optimizer.state.items():
        name = names[parameter]
        state[new[name]] = {key: convert(name, key, value) for key, value in values.items()}
    optimizer.state = state


def make_compact(
    masked: nn.Module,
    masks: WeightMasks,
    plan: Sequence[Cut | AttributeChange],
    kept: NDArray[np.bool_],
    batch: ModelInputs,
) -> CompactModel:
    """Makes a cut copy of a masked model, and sees whether it runs in training mode, in which it was never traced.

    Args:
        masked: The masked model.
        masks: Its masks.
        plan: The cuts.
        kept: Which units are kept, (units of all groups,).
        batch: An example input on the device of the model.

    Raises:
        ModelError: If the model cannot be copied, or the copy does not run.
    """
    try:
        copied, masks = copy.deepcopy((masked, masks))
        remove_masks(copied, masks)
        hooks = [getattr(module, kind) for module in copied.modules() for kind in _HOOKS]
        hooks += [parameter._backward_hooks for parameter in masked.parameters()]
        if any(hooks):
            raise ModelError("it has hooks, which may refer to the model itself")
        compact = CompactModel(masked, copied, plan, kept)
        if num_examples(batch) == 1:  # BatchNorm cannot be trained with one
            batch = take_examples(batch, torch.tensor([0, 0]))
        devices = {parameter.device for parameter in masked.parameters() if parameter.is_cuda}
        with torch.no_grad(), torch.random.fork_rng(devices):
            call_model(compact.model.train(), batch)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # the user's model may raise anything
        raise ModelError(f"No cut copy of {type(masked).__name__} can be trained: {first_cause(error)}") from error
    compact.read()
    return compact


def remove_masks(model: nn.Module, masks: WeightMasks) -> None:
    """Removes masks and scores from a model, and normalizes over all channels; its weights keep their values."""
    masks.detach()
    for module in model.modules():
        restore(module)
        for name in [name for name in module._buffers if name.endswith(TAYLOR)]:
            delattr(module, name)
