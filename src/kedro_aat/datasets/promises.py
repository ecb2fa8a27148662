"""How far a recipe is stated by the user, and what its class, class method or function promises to return."""

from __future__ import annotations

import inspect
import typing
from typing import Any, Literal, TypeAlias

from torch import nn

# How much of a recipe the user's own configuration states: the whole call, only the import path, or only a package
# in which it is. The rest stands in a file that may come from anywhere.
Stated: TypeAlias = Literal["call", "name", "package"]


def promises_module(target: Any) -> bool | None:
    """Whether a call returns a module, as its annotation says; None if it says nothing that could be checked."""
    if not inspect.isclass(target):
        owner = getattr(target, "__self__", None)  # the class, if it is a class method
        if inspect.isbuiltin(target):  # like `os.system`: written in C, and without annotations
            return False
        try:
            target = typing.get_type_hints(target).get("return")
        except (NameError, TypeError):  # an annotation that only type checkers can resolve, or not a function
            return None
        target = owner if target is typing.Self else target
    return issubclass(target, nn.Module) if inspect.isclass(target) and target is not Any else None
