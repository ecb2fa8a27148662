"""How rank 0 calls the ranks that wait for it.

They wait without a process group. So what rank 0 does alone is that of a single process to all libraries that look for
a group, such as torchmetrics, which would wait for the others in every metric.
"""

from __future__ import annotations

import contextlib
import json
import time
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from kedro_aat.errors import RankError
from kedro_aat.ranks.environment import launched_rank, launched_world_size, start_number
from kedro_aat.ranks.group import PATIENCE, joined

_SECONDS_TO_LEAVE = {"ended": 10.0, "failed": 2.0}  # then, some may be in the middle of something

Ending = Literal["ended", "failed"]


class Calls:
    """Calls of rank 0, which all ranks hear in the same order.

    Args:
        startup: Time to wait until all processes can be reached.

    Raises:
        RankError: If they cannot be reached.
    """

    def __init__(self, startup: timedelta) -> None:
        try:
            found, _, _ = next(rendezvous("env://", timeout=startup))
        except dist.DistError as error:
            raise RankError(
                f"Rank {launched_rank()} of {launched_world_size()} cannot reach the others. See whether MASTER_ADDR "
                f"and MASTER_PORT are right, and whether the network lets it reach them: {error}"
            ) from error
        prefix = f"kedro_aat/{start_number()}/calls"
        self._store: Any = dist.PrefixStore(prefix, found)  # type: ignore[attr-defined]  # exported by a star
        self._number = 0

    def meet(
        self, device: torch.device, timeout: timedelta, startup: timedelta
    ) -> contextlib.AbstractContextManager[None]:
        """Calls the others into a process group; rank 0 calls this.

        Args:
            device: Device of this process, whose kind all use.
            timeout: Time after which a collective operation fails.
            startup: Time to wait until all processes are there.

        Returns:
            The context of the group.
        """
        limits = [limit.total_seconds() for limit in (timeout, startup)]
        self._say(json.dumps({"device": device.type, "limits": limits}))
        return joined(device, timeout, startup)

    def end(self, how: Ending) -> None:
        """Says how it ends; rank 0 calls this, and waits for a while until the others have heard it.

        Args:
            how: Whether with an error.
        """
        self._say(how)
        last = time.monotonic() + _SECONDS_TO_LEAVE[how]
        for rank in range(1, launched_world_size()):
            try:
                self._store.wait([f"left/{rank}"], timedelta(seconds=max(last - time.monotonic(), 0.01)))
            except dist.DistError:  # it is lost, which matters no longer
                return

    def wait(self, patience: timedelta = PATIENCE) -> contextlib.AbstractContextManager[None] | Ending | None:
        """Waits for the next call; all ranks but rank 0 call this.

        Args:
            patience: How long.

        Returns:
            The context of the group into which rank 0 has called, or how it has ended; None if it did not call.
        """
        try:
            self._store.wait([str(self._number)], patience)
            word = self._store.get(str(self._number)).decode()
        except dist.DistStoreError:
            return None
        except dist.DistError:  # rank 0 is gone
            return "failed"
        self._number += 1
        if word in ("ended", "failed"):
            self._store.set(f"left/{launched_rank()}", "")
            return "ended" if word == "ended" else "failed"
        call = json.loads(word)
        return joined(torch.device(call["device"]), *(timedelta(seconds=limit) for limit in call["limits"]))

    def _say(self, word: str) -> None:
        self._store.set(str(self._number), word)
        self._number += 1
