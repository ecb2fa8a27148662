"""What `export.measure_with` names: sends a file to the board of `board.py`, and returns what it answers."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path

from kedro_aat.export.device import Measured


class Board:
    """Measures files on a board at a TCP port.

    Args:
        port: Port of the board.
        host: Name or address of the board.
        timeout: Seconds after which a board that says nothing counts as unreachable.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", timeout: float = 60.0) -> None:
        self.address = host, port
        self.timeout = timeout

    def __call__(self, path: Path) -> Measured:
        """Measures a file.

        Args:
            path: The file.

        Raises:
            OSError: If the board cannot be reached, or is silent for too long.
            RuntimeError: If it cannot run the file.
        """
        contents = path.read_bytes()
        with socket.create_connection(self.address, self.timeout) as connection:
            connection.sendall(struct.pack(">Q", len(contents)) + contents)
            with connection.makefile() as lines:
                line = lines.readline()
        if not line:
            raise ConnectionError("the board closed the connection without an answer")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return Measured(**answer)
