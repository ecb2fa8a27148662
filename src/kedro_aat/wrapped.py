"""Removes what is only put around a model: `DataParallel`, `DistributedDataParallel`, `torch.compile`, averaging.

They call the model inside and add a prefix to the names of its parameters. Compression, export and saved files are of
the model itself, so that they fit it with and without them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from torch import nn
from torch.jit import ScriptModule
from torch.optim.swa_utils import AveragedModel

from kedro_aat.errors import ModelError

logger = logging.getLogger(__name__)

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_COMPILED = "_orig_mod"  # by this name, because importing the class takes a second
_PREFIX = re.compile(rf"(?:^|(?<=\.))(?:module|{_COMPILED})\.")
_COUNTERS = {"n_averaged"}
V = TypeVar("V")


def unwrapped(model: nn.Module, *, inside: bool = False) -> nn.Module:
    """Returns a model without what is put around it.

    Args:
        model: Any module.
        inside: Whether to remove wrappers of its submodules, too, in place.

    Raises:
        ModelError: It is TorchScript, or has weights in TorchScript if `inside`.
    """
    found = model
    while (inner := _inner(found)) is not None:
        found = inner
    names = [type(model).__name__] if found is not model else []
    for parent in list(found.modules()) if inside else ():
        for name, child in list(parent.named_children()):
            bare = unwrapped(child) if _inner(child) is not None else child
            if bare is not child:
                setattr(parent, name, bare)
                names.append(f"{type(child).__name__} ({name})")
    for each in found.modules() if inside else [found]:
        if isinstance(each, ScriptModule) and any(True for _ in each.parameters()):
            raise ModelError(
                f"{each.original_name} is TorchScript, which cannot be compressed or exported: build the nn.Module "
                "that it was made from, and load its weights with model.load_state_dict(scripted.state_dict())."
            )
    if names:
        logger.info("%s is used without %s around it.", type(found).__name__, ", ".join(names))
    return found


def without_wrappers(state: Mapping[str, V], names: Collection[str]) -> dict[str, V]:
    """Returns a state dict whose names fit a bare model, if it was saved from a wrapped one; else as it is.

    Args:
        state: Name -> value.
        names: The names in the state dict of the bare model.
    """
    wanted = set(names)
    if wanted <= state.keys():
        return dict(state)
    bare = {_PREFIX.sub("", name): value for name, value in state.items() if name not in _COUNTERS}
    if len(wanted & bare.keys()) <= len(wanted & state.keys()):
        return dict(state)
    logger.info("The weights are of a wrapped model; %s was removed from their names.", "'module.' or '_orig_mod.'")
    return bare


def _inner(model: nn.Module) -> nn.Module | None:
    """The model that this one is put around; None if it is no wrapper."""
    if isinstance(model, _WRAPPERS):
        return model.module
    return None if isinstance(model, ScriptModule) else model._modules.get(_COMPILED)
