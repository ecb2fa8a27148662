"""Searches on several ranks as commands of their own, which can be stopped and killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import forks
from tests.forks import Command, Request

ROOT = Path(__file__).parents[3]


def start(folder: Path, *options: str, **env: str) -> subprocess.Popen[str]:
    """Starts a search; its ranks exchange files in `folder`."""
    temporary = folder / "temporary"
    temporary.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.ranks.shared_search", str(folder / "store"), *options],
        env=os.environ | {"PYTHONPATH": paths, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended_as(command: subprocess.Popen[str], timeout: float = 500) -> dict[str, Any]:
    """What a search printed at its end."""
    output, errors = command.communicate(timeout=timeout)
    if command.returncode:
        return {"error": errors}
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def start_group(folder: Path, size: int, **options: Any) -> list[Command]:
    """Starts a search on ranks as `torchrun` would, in forks of a process that has imported torch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "ranks.py"
    call = f"print_search(Path({str(folder / 'store')!r}), **{options!r})"
    script.write_text(
        f"from pathlib import Path\nfrom tests.training.ranks.shared_search import print_search\n{call}\n"
    )
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "PYTHONPATH": paths}
    return [
        Command(
            Request(
                forks.script,
                (str(script),),
                ROOT,
                dict(os.environ) | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                folder / f"rank-{rank}.out",
            )
        )
        for rank in range(size)
    ]


def found_by(command: Command) -> dict[str, Any]:
    """What a rank printed at its end."""
    assert command.wait() == 0, command.output
    found: dict[str, Any] = json.loads(command.output.strip().splitlines()[-1])
    return found


def process_of(folder: Path, rank: int) -> int | None:
    """Number of the process of a rank; None if it has not begun."""
    found = [path.read_text() for path in folder.glob(f"temporary/kedro-aat-ranks-*/process-{rank}")]
    return int(found[0]) if found and found[0] else None
