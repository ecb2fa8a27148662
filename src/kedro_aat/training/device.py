"""Chooses the device of the training."""

from __future__ import annotations

import torch

from kedro_aat.ranks.environment import launched_world_size, local_rank


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU if there is one, and that of this process if there are several."""
    device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    named = str(device)  # without a number, whatever torch's type hints say
    if named == "cuda" and launched_world_size() > 1:
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return device
