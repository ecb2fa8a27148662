"""Loads the `state_dict` of a checkpoint into a compressed model, as NNCF's scripts do to resume."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from kedro_aat.compression.masks import SHADOW

logger = logging.getLogger(__name__)

# What wrappers of torch, and NNCF up to 2.4, put before the names of a model's tensors.
_PREFIXES = ("module.", "_orig_mod.", "nncf_module.")


def load_state(
    model: nn.Module,
    state_dict_to_load: Mapping[str, Tensor],
    is_resume: bool = False,
    keys_to_ignore: Collection[str] | None = None,
) -> int:
    """Loads tensors into a model, whatever was put around the model that they were saved from.

    Args:
        model: The model, compressed or not.
        state_dict_to_load: Its `state_dict`, or that of the model before compression, or of a checkpoint of NNCF, of
            which the model's own tensors are taken.
        is_resume: Whether every tensor must be there, fit, and be known; otherwise the others are left out.
        keys_to_ignore: Names that are left out in any case.

    Returns:
        The number of tensors that were loaded.

    Raises:
        RuntimeError: If `is_resume` and tensors are missing, unknown or of another shape; torch lists them.
    """
    ignored = set(keys_to_ignore or ())
    given = {_without_prefixes(name): tensor for name, tensor in state_dict_to_load.items()}
    known = model.state_dict()
    given = {name: tensor for name, tensor in given.items() if name not in ignored}
    if not is_resume:
        given = {name: tensor for name, tensor in given.items() if name in known and _fits(name, tensor, known[name])}
    elif ignored:
        given |= {name: tensor for name, tensor in known.items() if name in ignored}
    num_loaded = sum(name in known and name not in ignored for name in given)
    model.load_state_dict(given, strict=is_resume)
    logger.info("%d of %d tensors were loaded into %s.", num_loaded, len(known), type(model).__name__)
    return num_loaded


def _fits(name: str, tensor: Tensor, own: Tensor) -> bool:
    return tensor.shape == own.shape or name.endswith(SHADOW)  # which is empty where no value is kept


def _without_prefixes(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
