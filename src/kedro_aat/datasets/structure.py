"""Writes the structure of a controller's example input as JSON, without naming a class to import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from kedro_aat.errors import ModelError
from kedro_aat.model_inputs import ModelInputs

# One of: {"tensor": name}, {"list": [...]}, {"tuple": [...]}, {"mapping": {key: ...}}, {"value": a plain value}.
StructureText: TypeAlias = dict[str, Any]


def described(structure: ModelInputs) -> tuple[StructureText, dict[str, Tensor]]:
    """A structure as JSON data, and its tensors by the names that it gives them; `input` for a single tensor.

    Dataclasses and other mappings are written as mappings, and become dictionaries.

    Raises:
        ModelError: If it holds anything but tensors, numbers, texts, truth values and None.
    """
    tensors: dict[str, Tensor] = {}

    def text(part: Any, name: str) -> StructureText:
        if isinstance(part, Tensor):
            tensors[name] = part
            return {"tensor": name}
        if dataclasses.is_dataclass(part) and not isinstance(part, Mapping | type):
            part = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        if isinstance(part, Mapping):
            return {"mapping": {str(key): text(each, f"{name}.{key}") for key, each in part.items()}}
        if isinstance(part, tuple | list):
            kind = "list" if isinstance(part, list) else "tuple"
            return {kind: [text(each, f"{name}.{index}") for index, each in enumerate(part)]}
        if part is None or isinstance(part, bool | int | float | str):
            return {"value": part}
        raise ModelError(
            f"{name} in the controller's example_input is a {type(part).__name__}, which is not saved: use tensors, "
            "numbers, texts and None, in tuples, lists and mappings."
        )

    return text(structure, "input"), tensors


def restored(text: StructureText, tensors: Mapping[str, Tensor]) -> ModelInputs:
    """The structure that `described` wrote.

    Raises:
        ModelError: If it is not in this form.
    """
    try:
        ((kind, content),) = text.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "value":
            return content
        if kind == "mapping":
            return {key: restored(part, tensors) for key, part in content.items()}
        if kind in ("list", "tuple"):
            parts = [restored(part, tensors) for part in content]
            return parts if kind == "list" else tuple(parts)
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"the structure of the saved example input is damaged: {error}") from error
    raise ModelError(f"the structure of the saved example input has an unknown part: {kind}.")
