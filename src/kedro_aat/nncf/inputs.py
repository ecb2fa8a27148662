"""Makes the example input that `input_info` of an NNCF configuration describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kedro_aat.errors import ConfigurationError
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.nncf.config import InputInfo

_TYPES = {None: torch.float32, "float": torch.float32, "long": torch.int64}
_FILLERS: dict[str | None, Callable[..., Tensor]] = {
    None: torch.zeros,
    "zeros": torch.zeros,
    "ones": torch.ones,
    "random": lambda size, dtype: torch.rand(size).round().to(dtype) if dtype == torch.int64 else torch.rand(size),
}


def described_inputs(entries: Sequence[InputInfo]) -> ModelInputs:
    """What a model is called with: a tensor, or several by position or by keyword.

    By default a tensor is of zeros and float32. Random whole numbers are 0 or 1, since they often are rows of an
    embedding.

    Raises:
        ConfigurationError: If a type or filler is unknown, or only some entries have a keyword.
    """
    mistakes = [
        f"{key} must be {', '.join(str(name) for name in known if name)}, but got {value!r}"
        for entry in entries
        for key, value, known in (("type", entry.type, _TYPES), ("filler", entry.filler, _FILLERS))
        if value not in known
    ]
    named = [entry.keyword is not None for entry in entries]
    if any(named) and not all(named):
        mistakes.append("give each entry a keyword, or none of them")
    if mistakes:
        raise ConfigurationError("input_info", mistakes)
    tensors = [_FILLERS[entry.filler](entry.sample_size, dtype=_TYPES[entry.type]) for entry in entries]
    if all(named):
        return {str(entry.keyword): tensor for entry, tensor in zip(entries, tensors, strict=True)}
    return tensors[0] if len(tensors) == 1 else tuple(tensors)
