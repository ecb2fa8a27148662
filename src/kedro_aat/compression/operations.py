"""NNCF's names of modules and operations, and whether a scope names operations that have no weights."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import nn

EXPRESSION = "{re}"  # marks a regular expression, wherever it stands in a scope
# NNCF names an operation after the function of torch that computes it.
_FUNCTIONS = frozenset(
    name
    for place in (torch, torch.Tensor, nn.functional)
    for name in dir(place)
    if callable(getattr(place, name, None)) and not isinstance(getattr(place, name), type)
)
_OPERATION = re.compile(r"/([A-Za-z_][A-Za-z_0-9]*)_(\d+)$")
_ENDS = ("nncf_model_input", "nncf_model_output")


def nncf_scope(model: nn.Module, layer: str) -> str:
    """Returns a module's name in NNCF's spelling, e.g. `Net/Sequential[blocks]/Conv2d[0]`."""
    scope, module = type(model).__name__, model
    for part in layer.split(".") if layer else ():
        module = module.get_submodule(part)
        scope += f"/{type(module).__name__}[{part}]"
    return scope


def nncf_layer(scope: str) -> str:
    """Returns a layer's scope as NNCF prints it, e.g. `Net/NNCFConv2d[conv1]`."""
    head, slash, last = scope.rpartition("/")
    return f"{head}{slash}NNCF{last}"


def nncf_operation(scope: str) -> str:
    """Returns a layer's scope as NNCF prints it, with the operation, e.g. `Net/NNCFConv2d[conv1]/conv2d_0`."""
    kind = scope.rpartition("/")[2].partition("[")[0]
    operation = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
    return f"{nncf_layer(scope)}/{operation}_0"


def split_operation(scope: str) -> tuple[str, str]:
    """Returns the module of a scope in NNCF's spelling, and the operation after it.

    `Net/NNCFConv2d[conv1]/conv2d_0` is (`Net/Conv2d[conv1]`, `conv2d`); the operation is empty if there is none.
    """
    found = _OPERATION.search(scope)
    module = scope[: found.start()] if found else scope
    return re.sub(r"\bNNCF(?=[A-Z])", "", module), found[1] if found else ""


def is_leaf(module: nn.Module) -> bool:
    """Whether an operation in a module is that of its own weights: it contains no other module, or torch wrote it."""
    return type(module).__module__.startswith("torch.nn.") or next(module.children(), None) is None


def names_operation(model: nn.Module, scope: str) -> bool:
    """Whether a scope in NNCF's spelling names what may be an operation of a module of the model.

    The model isn't run. So an operation is any function of torch, whether or not the module calls it.

    Args:
        model: The model.
        scope: A name with an operation at its end, or `{re}` and an expression.
    """
    modules = [nncf_scope(model, name) for name, _ in model.named_modules()]
    if EXPRESSION not in scope:
        module, operation = split_operation(scope)
        return operation in _ENDS if not module else module in modules and operation in _FUNCTIONS
    expression = scope.replace(EXPRESSION, "")
    number = re.search(r"_(\d+)\$?$", expression)
    pattern = re.compile(expression)
    return any(pattern.search(name) for name in _operations(modules, number[1] if number else "0"))


def _operations(modules: list[str], number: str) -> Iterator[str]:
    """Names of all operations that there may be, with one number."""
    yield from (f"/{name}_{number}" for name in _ENDS)
    for module in modules:
        head, slash, last = module.rpartition("/")
        for spelling in (module, f"{head}{slash}NNCF{last}"):  # of a module with weights
            yield from (f"{spelling}/{name}_{number}" for name in _FUNCTIONS)
