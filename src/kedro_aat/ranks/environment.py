"""Which process this is, as whoever started it says in its environment. Nothing here imports torch."""

from __future__ import annotations

import os


def launched_rank() -> int:
    """Number of this process, from 0, as torchrun and others set it in `RANK`; 0 where nobody has."""
    return int(os.environ.get("RANK", "0"))


def launched_world_size() -> int:
    """Number of processes of the run, as `WORLD_SIZE` says; 1 where nobody has set it, or no `RANK` beside it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def local_rank() -> int:
    """Number of this process among those on this machine, as `LOCAL_RANK` says; 0 where nobody has set it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def start_number() -> int:
    """How often torchrun has started the processes again; their store then still holds what the last ones wrote."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
