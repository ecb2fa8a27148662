"""Checkpoints of a model whose weights are divided among ranks: each rank writes the rows that it holds.

    model-00000-of-00004.safetensors         the rows of the first of four ranks, by the tensor's name in the state_dict
    optimizers-00000-of-00004.safetensors    likewise of the optimizers, by number; removed as `optimizers.safetensors`

The rows of a tensor follow each other in the order of the files. So any number of ranks can read them, each its own
rows only, and a single process all of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kedro_aat.compression.masks import SHADOW
from kedro_aat.disk import sync
from kedro_aat.errors import DamagedCheckpointError
from kedro_aat.ranks import group
from kedro_aat.ranks.shards import is_divided, is_sharded, like, local, part_of, rows_of
from kedro_aat.training.checkpoints.numpy_values import mapped
from kedro_aat.training.checkpoints.tensor_files import TensorFile, write_tensors

_TAG = "kedro_aat.divided"
_NO_TENSOR = torch.zeros(0)
_NAME = re.compile(r"(model|optimizers)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class DividedTensor:
    """A tensor in the files of several ranks, which is read when it is asked for.

    Attributes:
        name: Its name in these files.
        files: The files, in the order of the rows.
    """

    name: str
    files: tuple[TensorFile, ...]

    @property
    def shape(self) -> torch.Size:
        """Shape of the whole tensor."""
        shapes = [file.shape(self.name) for file in self.files]
        return torch.Size([sum(shape[0] for shape in shapes), *shapes[0][1:]])

    def rows(self, rows: slice) -> Tensor:
        """Reads some rows, on the CPU.

        Args:
            rows: From the first one to before the last one, at least 0.
        """
        parts, begin = [], 0
        for file in self.files:
            number = file.shape(self.name)[0]
            first, last = max(rows.start - begin, 0), min(rows.stop - begin, number)
            if first < last:
                parts.append(file.read(self.name, slice(first, last)))
            begin += number
        return torch.cat(parts) if parts else self.files[0].read(self.name, slice(0, 0))

    def whole(self) -> Tensor:
        """Reads all rows, on the CPU."""
        return self.rows(slice(0, self.shape[0]))


def without_rows(state: Any, divided: dict[str, Tensor]) -> Any:
    """A nested state with a reference in place of each tensor that is divided among ranks.

    Args:
        state: The state.
        divided: Gets these tensors by name.
    """
    if isinstance(state, Tensor) and is_sharded(state):
        name = str(len(divided))
        divided[name] = state
        return (_TAG, name)
    return state if isinstance(state, Tensor) else mapped(lambda part: without_rows(part, divided), state)


def with_divided(state: Any, tensors: Mapping[str, DividedTensor]) -> Any:
    """The state that `without_rows` was given, with tensors that are yet to be read.

    Raises:
        KeyError: If a tensor is missing.
    """
    if type(state) is tuple and len(state) == 2 and state[0] == _TAG:
        return tensors[state[1]]
    return mapped(lambda part: with_divided(part, tensors), state)


def write_parts(folder: Path, model: nn.Module, optimizers: Collection[Any]) -> dict[str, str]:
    """Writes the rows that each rank holds, and flushes them to disk; all ranks must call it.

    Args:
        folder: A folder that all ranks see.
        model: The model.
        optimizers: Its optimizers.

    Returns:
        The checksums of the files of all ranks, by name.

    Raises:
        OSError: If the disk cannot be written, or a rank does not see the folder.
    """
    of_optimizers: dict[str, Tensor] = {}
    without_rows([optimizer.state_dict() for optimizer in optimizers], of_optimizers)
    of_model = {name: tensor for name, tensor in model.state_dict().items() if is_sharded(tensor)}
    written = {}
    for kind, tensors in (("model", of_model), ("optimizers", of_optimizers)):
        if tensors:
            path = folder / f"{kind}-{group.rank():05d}-of-{group.world_size():05d}.safetensors"
            written[path.name] = write_tensors({name: local(tensor) for name, tensor in tensors.items()}, path)
            sync(path)
    return {name: checksum for of_rank in group.gathered(written) for name, checksum in of_rank.items()}


def part_files(names: Collection[str], kind: str) -> list[str]:
    """The names of the files of all ranks, in their order.

    Args:
        names: Names of files of a checkpoint.
        kind: `model` or `optimizers`.

    Raises:
        DamagedCheckpointError: If that of a rank is missing.
    """
    found = [match for match in map(_NAME.fullmatch, sorted(names)) if match is not None and match[1] == kind]
    if found and [(int(match[2]), int(match[3])) for match in found] != [(n, len(found)) for n in range(len(found))]:
        raise DamagedCheckpointError(f"of {found[0][3]} files with rows of {kind}, there are {len(found)}")
    return [match[0] for match in found]


def open_parts(folder: Path, names: Collection[str], kind: str) -> dict[str, DividedTensor]:
    """The tensors in the files of all ranks, by name; nothing but the headers is read yet.

    Args:
        folder: Folder of the checkpoint.
        names: Names of its files.
        kind: `model` or `optimizers`.

    Raises:
        DamagedCheckpointError: If a file is missing.
        ValueError, LookupError, TypeError: If a file is damaged.
    """
    files = tuple(TensorFile(folder / name) for name in part_files(names, kind))
    return {name: DividedTensor(name, files) for name in files[0].names} if files else {}


def placed_as(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A model's state from a checkpoint, divided among ranks as the model is, for its `load_state_dict`.

    Args:
        state: Whole or divided tensors by name.
        model: The model.
    """
    if not is_divided(model) and not any(isinstance(value, DividedTensor) for value in state.values()):
        return dict(state)
    targets = model.state_dict()
    # A shadow may have to be divided like its weight, even if the model has an empty one now.
    weights = {name + SHADOW: weight for name, weight in model.named_parameters(remove_duplicate=False)}
    example = next(filter(is_sharded, model.parameters()), _NO_TENSOR)
    return {name: _placed(value, weights.get(name, targets.get(name, example))) for name, value in state.items()}


def optimizer_placed_as(state: Any, optimizer: Any) -> Any:
    """An optimizer's state from a checkpoint, divided among ranks as its parameters are, for its `load_state_dict`.

    Args:
        state: What its `state_dict` returned, with whole or divided tensors.
        optimizer: The optimizer.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    example = next(filter(is_sharded, parameters), _NO_TENSOR)
    if example is _NO_TENSOR and not any(isinstance(leaf, DividedTensor) for leaf in tree_leaves(state)):
        return state

    def placed(part: Any, target: Tensor) -> Any:
        if isinstance(part, Tensor | DividedTensor):
            return _placed(part, target)
        return mapped(lambda inner: placed(inner, target), part)

    if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
        return placed(state, example)
    of_parameters = {
        key: placed(part, parameters[key] if isinstance(key, int) and key < len(parameters) else example)
        for key, part in state["state"].items()
    }
    return state | {"state": of_parameters}


def _placed(value: Any, target: Tensor) -> Any:
    """A tensor, divided among ranks if the target is and has its shape; otherwise whole, on the CPU."""
    if isinstance(value, DividedTensor):
        if not is_sharded(target):
            return value.whole()
        rows = value.rows(rows_of(value.shape[0], group.rank(), group.world_size()))
        return like(target, rows.to(local(target).device), value.shape)
    if isinstance(value, Tensor) and is_sharded(target) and value.shape == target.shape:
        return part_of(value, target)
    return value
