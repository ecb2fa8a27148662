"""What identifies a run besides its settings and data: models, the source that is called, the baseline's evaluation."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import itertools
import textwrap
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kedro_aat.compression.frozen import frozen_parameters
from kedro_aat.compression.own_buffers import state_with_shadows
from kedro_aat.tensors import hash_tensors
from kedro_aat.training.fingerprints.contents import ContentHash
from kedro_aat.training.fingerprints.sources import sources_of

_OWN = "kedro_aat.training."


def fingerprint(model: nn.Module) -> str:
    """A hash of all parameters and buffers, and of which parameters are frozen, if any."""
    tensors = ((name, tensor) for name, tensor in state_with_shadows(model) if isinstance(tensor, torch.Tensor))
    frozen = ((f"{name} is frozen", torch.zeros(0)) for name in frozen_parameters(model))
    return hash_tensors(itertools.chain(tensors, frozen))


def ingredients_of(
    objects: Iterable[Any], models: Iterable[nn.Module], baseline: nn.Module, baseline_metric: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """What a run depends on besides its settings and data, as JSON data.

    The baseline's metric counts with three digits, because its last digits differ from processor to processor.

    Args:
        objects: The user's functions, and the classes of loss, metric, optimizer and scheduler.
        models: The models, whose classes count.
        baseline: The uncompressed model, which counts with its weights and the plain attributes of its modules.
        baseline_metric: Its metric.

    Returns:
        What identifies the run, and the versions of the packages whose objects it uses.
    """
    content = ContentHash()
    content.add(baseline)
    classes = {type(module) for model in (baseline, *models) for module in model.modules()}
    found = sources_of([*objects, *sorted(classes, key=str), *content.code])
    identity: dict[str, Any] = {"baseline": {"model": content.hexdigest(), "metric": f"{baseline_metric:.3g}"}}
    return identity | ({"sources": found.hashes} if found.hashes else {}), found.packages


def hash_sources(objects: Iterable[Any]) -> str:
    """Hash of the source of functions and classes, which changes if one of them is edited.

    Comments, docstrings and layout do not count. The functions of kedro-aat's own training count by name: with another
    version of kedro-aat, the user chooses whether a run continues. Plain numbers and strings among the defaults, and
    the arguments of a partial, count too. Closures do not count, because they may change while a function runs.
    """
    digest = hashlib.blake2b(digest_size=8)
    for thing in objects:
        values: list[Any] = []
        if isinstance(thing, functools.partial):
            values += [*thing.args, *thing.keywords.values()]
            thing = thing.func  # noqa: PLW2901  # what it stands for is hashed instead
        thing = inspect.unwrap(thing)  # noqa: PLW2901  # likewise
        source = _source(thing)
        if inspect.isfunction(thing):
            values += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        plain = [value for value in values if isinstance(value, bool | int | float | str | None)]
        digest.update(f"{source} {plain}".encode())
    return digest.hexdigest()


def _source(thing: Any) -> str:
    name = str(getattr(thing, "__qualname__", type(thing).__qualname__))
    module = str(getattr(thing, "__module__", ""))
    if module.startswith(_OWN):
        return f"{module}.{name}"
    try:
        source = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):  # written in C, typed into a console, or an object that can be called
        return name
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a lambda in the middle of a statement
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
