"""Makes the example input that `input_info` of an NNCF configuration describes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kedro_aat.errors import ConfigurationError
from kedro_aat.model_inputs import ModelInputs
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
        return dict(inspect.signature(model.forward).bind(*by_position, **by_keyword).arguments)
    except TypeError as error:
        raise ConfigurationError(
            "input_info", [f"{type(model).__name__} does not take these inputs: {error}"]
        ) from None


def _dtype(entry: InputInfo) -> torch.dtype:
    return torch.int64 if entry.type == "long" else torch.float32
