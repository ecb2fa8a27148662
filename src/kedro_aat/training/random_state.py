"""The random generators of torch, NumPy and Python: seeded, saved and restored together."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds the generators of torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def rng_state() -> dict[str, Any]:
    """State of the generators of torch (on every device in use), NumPy and Python."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        # As tensors, because weights_only loading refuses arrays, and is slow with 625 separate numbers.
        "python": (version, torch.tensor(words), gauss_next),
        "numpy": (
            kind,
            torch.from_numpy(np.asarray(keys).copy()),
            int(position),
            int(has_gauss),
            float(cached),
        ),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores what `rng_state` returned, except for devices that this machine does not have."""
    torch.set_rng_state(state["torch"])
    for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, index)
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss_next))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy(), position, has_gauss, cached))
