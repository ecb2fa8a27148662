"""A model whose weights torch's `fully_shard` divides among the ranks, for models that one device cannot hold.

Each rank keeps some rows of every weight, with their gradients and the optimizer's state. A block of the model is
gathered on all ranks while it is computed, and let go afterwards.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

from kedro_aat.compression.controller import ModelController
from kedro_aat.errors import ConfigurationError
from kedro_aat.ranks import group
from kedro_aat.tensors import hash_tensors
from kedro_aat.training.divided_settings import refused


def divided_copy(controller: ModelController, device: torch.device) -> ModelController:
    """A copy of a controller whose model is divided among all ranks, which must call this together.

    Args:
        controller: The controller; its model stays whole, in the memory of the host, and gets rank 0's values.
        device: Device of this rank, which holds its part.

    Raises:
        ConfigurationError: If the compression or the model cannot be divided.
    """
    mistakes = refused(controller.settings)
    if controller.limit is not None:
        mistakes.append("goal: must be size with training.sharding: fully_shard, but got accuracy")
    if mistakes:
        raise ConfigurationError("aat", mistakes)
    _make_equal(controller.model)
    # Values are shared until `fully_shard` copies the rows that it keeps.
    shared = {id(weight): _sharing(weight) for weight in controller.model.parameters()}
    made = copy.deepcopy(controller, shared)
    divide(made.model, device)
    made.divide()
    return made


def _make_equal(model: nn.Module) -> None:
    """Gives all ranks rank 0's values, unless they have them: ranks of one machine share memory until one writes."""
    hashes = group.gathered(hash_tensors(model.state_dict().items()))
    if len(set(hashes)) > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            group.copied(tensor.detach())


def _sharing(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)


def divide(model: nn.Module, device: torch.device) -> nn.Module:
    """Divides a model's parameters among all ranks, in place; its buffers are moved to the device.

    Args:
        model: The model, equal on all ranks.
        device: Device of this rank.

    Raises:
        ConfigurationError: If it has a parameter without dimensions.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    scalars = [name for name, parameter in model.named_parameters() if not parameter.dim()]
    if scalars:
        raise ConfigurationError(
            "training",
            [
                f"sharding: fully_shard cannot divide a parameter without dimensions, such as {scalars[0]}: give it "
                "the shape (1,) in the model, or set sharding: none"
            ],
        )
    mesh = init_device_mesh(device.type, (group.world_size(),))
    # After each use, weights are let go also at the end of the model, so that masks always find the divided ones.
    for block in _blocks(model, _num_owners(model)):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


def _num_owners(model: nn.Module) -> Counter[int]:
    """In how many places of a model each parameter is, by its id."""
    return Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))


def _blocks(module: nn.Module, num_owners: Counter[int]) -> Iterator[nn.Module]:
    """The outermost parts of lists and sequences, which are called one after another; what is left is one block more.

    Weights that several parts share must be gathered together, so these parts are left.
    """
    is_called_in_order = isinstance(module, nn.ModuleList) or type(module) is nn.Sequential
    for child in module.children():
        if is_called_in_order and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            inside = _num_owners(child)
            if inside and all(num_owners[key] == number for key, number in inside.items()):
                yield child
        else:
            yield from _blocks(child, num_owners)
