"""Chooses the device of the training."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU if there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
