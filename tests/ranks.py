"""Several processes of one run, started as `torchrun` and others start them: with a few environment variables."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.forks import ROOT, Command, Request


class Ranks:
    """A command in several processes.

    Attributes:
        commands: That of each rank.
        port: Port of their rendezvous.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: Any,
        folder: Path,
        size: int = 2,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = _free_port()
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        known = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | dict(environment or {})
        self.commands = [
            Command(
                Request(
                    function,
                    arguments,
                    folder,
                    known
                    | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                    | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), "GLOO_SOCKET_IFNAME": "lo"},
                    folder / f"output-{self.port}-{rank}.txt",
                )
            )
            for rank in range(size)
        ]

    def wait(self, timeout: float = 240) -> list[int]:
        """Waits for the end of all, and returns their exit codes."""
        return [command.wait(timeout) for command in self.commands]

    @property
    def outputs(self) -> list[str]:
        """What each has printed."""
        return [command.output for command in self.commands]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
