"""Names of the tensors that a file takes and returns, and how a call of a model becomes a call by these names.

A file knows no tuples and no dataclasses: it has one named input and one named output per tensor. A single tensor is
called `input` or `output`. In a structure, a tensor is called by its path, as `named_tensors` finds it: `input_ids`,
`state.0`, `logits`. The parts of a tuple that a model returns are `output.0`, `output.1`, ...
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kedro_aat.errors import ExportError
from kedro_aat.model_inputs import ModelInputs, arguments_of, named_tensors

INPUT, OUTPUT = "input", "output"


class NamedOutputs(dict[str, Any]):
    """What a file returns for a model that returns a mapping or a dataclass.

    As with the outputs of Hugging Face's models, a part is found by its key, as an attribute, or by its position.
    """

    def __getitem__(self, key: Any) -> Any:
        """The part with a key, or at a position."""
        if isinstance(key, int | slice):
            return tuple(self.values())[key]
        if key not in self.keys():
            raise KeyError(f"the file has no output {key!r}, but {', '.join(self)}")
        return super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        """The part with this key."""
        if name in self.keys():
            return super().__getitem__(name)
        raise AttributeError(f"the file has no output {name!r}, but {', '.join(self)}")


def input_tensors(model: nn.Module, inputs: ModelInputs) -> dict[str, Tensor]:
    """Name -> tensor for all tensors with which a model is called, in the order of its arguments.

    The names are those of the parameters of the model's `forward`, with the path inside an argument; if the only
    argument is a mapping or a dataclass, its keys.
    """
    args, kwargs = arguments_of(model, inputs)
    if len(args) == 1 and not kwargs:
        (only,) = args
        if isinstance(only, Tensor):
            return {INPUT: only}
        if _has_names(only):
            return dict(named_tensors(only))
    return dict(named_tensors({**_named_arguments(model, args), **kwargs}))


def output_tensors(outputs: Any, chosen: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Name -> tensor for all tensors that a model returned.

    Args:
        outputs: What the model returned; what is no tensor is left out.
        chosen: Names of those to return, or of the parts that hold them; None for all.

    Raises:
        ExportError: If there is no tensor, or none of a chosen name.
    """
    found = dict(named_tensors(outputs, "" if _has_names(outputs) else OUTPUT))
    if not found:
        raise ExportError(
            f"a model must return at least one tensor to be exported, but got a {type(outputs).__name__} without one."
        )
    if chosen is None:
        return found
    selected = {name: tensor for each in chosen for name, tensor in found.items() if _is_in(name, each)}
    if missing := [each for each in chosen if not any(_is_in(name, each) for name in found)]:
        raise ExportError(
            f"the model returns no {', '.join(missing)}: name some of its outputs under `export.outputs`, which are "
            f"{', '.join(found)}."
        )
    return selected


def select_arguments(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of a call in the order of a file's inputs.

    Tensors are found by name in keyword arguments and in mappings; the others by their order.

    Args:
        names: Names of the file's inputs.
        args: Positional arguments, with tensors in any structure.
        kwargs: Keyword arguments.

    Raises:
        ExportError: If the call has other tensors than the file.
    """
    wanted = {_plain(name): name for name in names}
    named: dict[str, Tensor] = {}
    others: list[Tensor] = []
    for part in (*args, kwargs):
        for path, tensor in named_tensors(part):
            if _has_names(part) and (name := wanted.get(_plain(path))) is not None:
                named[name] = tensor
            elif part is kwargs and len(names) > 1:
                raise ExportError(f"the file has no input {path!r}, but {', '.join(names)}.")
            else:
                others.append(tensor)
    rest = [name for name in names if name not in named]
    if len(rest) != len(others):
        raise ExportError(
            f"the file takes {len(names)} tensors ({', '.join(names)}), but got {len(named) + len(others)}."
        )
    named |= zip(rest, others, strict=True)
    return [named[name] for name in names]


def structured(named: Mapping[str, Any]) -> Any:
    """The structure of what a model returned, from names and tensors: the opposite of `output_tensors`.

    Mappings and dataclasses become `NamedOutputs`, lists become tuples, and what was left out of these is None. A named
    tuple, whose parts are called `output.NAME`, becomes another with the parts that are there.
    """
    if list(named) == [OUTPUT]:
        return named[OUTPUT]
    tree: dict[str, Any] = {}
    for name, tensor in named.items():
        *path, last = name.split(".")
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = tensor
    if list(tree) != [OUTPUT]:
        return NamedOutputs({key: _joined(part) for key, part in tree.items()})
    joined = _joined(tree[OUTPUT])
    if not isinstance(joined, NamedOutputs):
        return joined
    return namedtuple("Outputs", joined.keys(), rename=True)(*joined.values())


def unique_names(names: Iterable[str], taken: Iterable[str], suffix: str) -> list[str]:
    """Names of which none is taken: in a file, inputs, weights and outputs share one space of names.

    Args:
        names: The names that are wanted.
        taken: Names of others.
        suffix: Appended to a name until it is free.
    """
    unique: list[str] = []
    used = set(taken)
    for wanted in names:
        name = wanted
        while name in used:
            name += suffix
        used.add(name)
        unique.append(name)
    return unique


def _joined(branch: Any) -> Any:
    if not isinstance(branch, dict):
        return branch
    parts = {key: _joined(part) for key, part in branch.items()}
    if all(key.isdecimal() for key in parts):
        return tuple(parts.get(str(index)) for index in range(1 + max(map(int, parts))))
    return NamedOutputs(parts)


def _is_in(name: str, chosen: str) -> bool:
    """Whether an output has the chosen name, or is in the part of that name; `0` is `output.0`."""
    return any(name == each or name.startswith(f"{each}.") for each in (chosen, f"{OUTPUT}.{chosen}"))


def _plain(name: str) -> str:
    """A name as torch writes it in a program, where `state.0` is `state_0`."""
    return re.sub(r"\W", "_", name)


def _has_names(structure: Any) -> bool:
    return isinstance(structure, Mapping) or dataclasses.is_dataclass(structure)


def _named_arguments(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """The parameters of a model's `forward` that positional arguments fill; those of `*args` are one tuple."""
    try:
        return dict(inspect.signature(model.forward).bind_partial(*args).arguments)
    except (TypeError, ValueError):  # a scripted module tells no signature
        return {INPUT: args}
