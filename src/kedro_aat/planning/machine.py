"""What the machine has: memory of the device and of the host, and space and speed of the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from kedro_aat.planning.job import Machine
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore
from kedro_aat.training.device import pick_device
from kedro_aat.training.guards.user_functions import peak_memory
from kedro_aat.training.settings import TrainingSettings

# Bytes of a checkpoint that are written to measure the speed.
WRITTEN = 1 << 28
# Limits of a container, of the two versions of control groups.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_STATUS = Path("/proc/self/statm")


def machine_of(training: TrainingSettings, store: Path | None = None) -> Machine:
    """The machine that settings train on.

    Args:
        training: Settings of the training.
        store: Folder of the checkpoints, which need not exist; None for the temporary folder.
    """
    device = pick_device(training.device)
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    folder = store or Path(tempfile.gettempdir())
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return Machine(
        "cpu" if device.type == "cpu" else "gpu",
        training.devices,
        training.sharding == "fully_shard",
        memory_bytes=memory,
        host_bytes=_host_bytes(),
        disk_bytes=shutil.disk_usage(there).free,
    )


def _host_bytes() -> float | None:
    """Memory of the host, or of the container; None if unknown."""
    known = []
    if hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= os.sysconf_names.keys():
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _LIMITS:
        try:
            known.append(int(path.read_text()))
        except (OSError, ValueError):  # there is none, or no limit
            continue
    return min(known, default=None)


def process_bytes() -> int:
    """Resident memory of this process; its peak where the system does not tell it; 0 if that is unknown, too."""
    if _STATUS.exists():
        return int(_STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory()


@contextmanager
def _folder_beside(store: Path | None) -> Iterator[Path]:
    """A temporary folder on the disk of the checkpoints, if there is one yet."""
    parent = next((each for each in (store, *store.parents) if each.exists()), None) if store else None
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=parent) as folder:
        yield Path(folder)


def written_bytes_per_second(model: nn.Module, store: Path | None, clock: Callable[[], float]) -> float:
    """Speed of a checkpoint: copied, checked and written.

    Args:
        model: The model, whose tensors are written up to 256 MB.
        store: Folder of the checkpoints, which need not exist; None for the temporary folder.
        clock: Returns seconds.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if state and sum(each.nbytes for each in state.values()) + tensor.nbytes > WRITTEN:
            break
        state[name] = tensor
    with _folder_beside(store) as folder, CheckpointStore(folder).open({"plan": True}) as run:

        def save() -> None:
            run.save(Checkpoint(0, state, {}, {}), wait=False)
            run.wait()

        started = clock()
        save()
        seconds = clock() - started
    return max(sum(each.nbytes for each in state.values()), 1) / max(seconds, 1e-9)
