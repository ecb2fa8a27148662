"""Makes the example input that `input_info` of an NNCF configuration describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.model_inputs import ModelInputs, inputs_of_arguments
from kedro_aat.modes import evaluating
from kedro_aat.nncf.config import InputInfo

_FILLERS: dict[str | None, Callable[..., Tensor]] = {
    None: torch.ones,
    "zeros": torch.zeros,
    "ones": torch.ones,
    "random": lambda size, dtype: torch.rand(size).round().to(dtype) if dtype == torch.int64 else torch.rand(size),
}


def described_inputs(entries: Sequence[InputInfo], model: nn.Module) -> ModelInputs:
    """What a model is called with: a tensor, or several by position, by keyword, or first by position.

    By default a tensor is of ones and float32, as NNCF makes it; `long` makes whole numbers. Random whole numbers are 0
    or 1, since they often are rows of an embedding.

    Args:
        entries: The entries of `input_info`.
        model: The model, whose signature names the parameters of entries without a keyword; not called.

    Raises:
        ConfigurationError: If a filler is unknown, or the model does not take these inputs.
    """
    known = ", ".join(str(name) for name in _FILLERS if name)
    mistakes = [
        f"filler must be {known}, but got {entry.filler!r}" for entry in entries if entry.filler not in _FILLERS
    ]
    if mistakes:
        raise ConfigurationError("input_info", mistakes)
    made = [_FILLERS[each.filler](each.sample_size, dtype=_dtype(each)) for each in entries]
    by_position = tuple(tensor for tensor, entry in zip(made, entries, strict=True) if entry.keyword is None)
    by_keyword = {entry.keyword: tensor for tensor, entry in zip(made, entries, strict=True) if entry.keyword}
    if not by_keyword:
        return by_position[0] if len(by_position) == 1 else by_position
    if not by_position:
        return by_keyword
    try:  # a mapping alone can hold both kinds
        return inputs_of_arguments(model, by_position, by_keyword)
    except TypeError as error:
        raise ConfigurationError(
            "input_info", [f"{type(model).__name__} does not take these inputs: {error}"]
        ) from None


def inputs_of_call(model: nn.Module, function: Callable[[nn.Module], object]) -> ModelInputs:
    """What a function calls a model with, the first time, as `dummy_forward_fn` of NNCF does.

    Args:
        model: Called in evaluation mode, without gradients.
        function: Gets the model and calls it.

    Raises:
        ModelError: If the function does not call the model.
    """
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        with evaluating(model), torch.no_grad():
            function(model)
    finally:
        hook.remove()
    if not calls:
        raise ModelError("dummy_forward_fn does not call the model that it gets, so the inputs remain unknown.")
    args, kwargs = calls[0]
    if kwargs:
        try:
            return inputs_of_arguments(model, args, kwargs)
        except TypeError as error:
            raise ModelError(f"dummy_forward_fn calls {type(model).__name__} in an unknown way: {error}") from None
    return args[0] if len(args) == 1 and isinstance(args[0], Tensor) else args


def nncf_model_input(tensor: Tensor) -> Tensor:
    """Returns a tensor as it is: NNCF's scripts mark inputs with it, which are found without marks here."""
    return tensor


def nncf_model_output(tensor: Tensor) -> Tensor:
    """Returns a tensor as it is, as `nncf_model_input` does."""
    return tensor


def _dtype(entry: InputInfo) -> torch.dtype:
    return torch.int64 if entry.type == "long" else torch.float32
