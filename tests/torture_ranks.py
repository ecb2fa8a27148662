"""Kills ranks of real searches at random instants: `python -m tests.torture_ranks`, or with `--kills 20 --seed 1`.

A search on several ranks loses one, with SIGKILL, at a random instant, and perhaps another one later. It must end by
itself with the trajectory, the masks and the rate of an undisturbed one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.training.ranks.commands import ended_as, process_of, start

KILLS_PER_SEARCH = 4
EPOCHS = "20"


def kill_ranks(
    folder: Path, instants: list[tuple[int, float]], devices: int, sharding: str = "none"
) -> tuple[dict[str, Any], list[str]]:
    """Runs a search, and kills ranks.

    Args:
        folder: An empty folder.
        instants: Rank, and seconds after it has begun, or begun again.
        devices: Number of ranks.
        sharding: How the model is divided among them.

    Returns:
        What the search ended with, and what was killed.
    """
    command = start(folder, "--devices", str(devices), "--epochs", EPOCHS, "--sharding", sharding)
    killed: list[str] = []
    last = -1
    for rank, delay in instants:
        while command.poll() is None and process_of(folder, rank) in (None, last):
            time.sleep(0.05)
        time.sleep(delay)
        process = process_of(folder, rank)
        if command.poll() is not None or process is None:
            break
        with contextlib.suppress(ProcessLookupError):
            num_saved = len(list(folder.glob("store/*/checkpoint-*")))
            os.kill(process, signal.SIGKILL)
            killed.append(f"rank {rank} after {delay:.1f} s, {num_saved} checkpoints")
        last = process
    return ended_as(command), killed


def torture(num_kills: int, seed: int, devices: int, sharding: str) -> int:
    """Kills, compares, and prints what happened; returns the number of kills whose search ended otherwise."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        options = ("--devices", str(devices), "--epochs", EPOCHS, "--sharding", sharding)
        command = start(root / "reference", *options)
        while command.poll() is None and process_of(root / "reference", 0) is None:
            time.sleep(0.05)
        begin = time.monotonic()
        reference = ended_as(command)
        seconds = time.monotonic() - begin
        print(f"undisturbed: ranks for {seconds:.0f} s, {len(reference['rows'])} rows", flush=True)
        num_killed, num_different = 0, 0
        while num_killed < num_kills:
            number = min(KILLS_PER_SEARCH, num_kills - num_killed)
            instants = [(generator.randrange(devices), generator.uniform(0, seconds / 2)) for _ in range(number)]
            found, killed = kill_ranks(root / f"killed-{num_killed}-{time.monotonic_ns()}", instants, devices, sharding)
            is_same = found == reference
            num_different += 0 if is_same else len(killed)
            num_killed += len(killed)
            print(f"{num_killed:3d} kills: {'; '.join(killed)}: {'same' if is_same else 'DIFFERENT'}", flush=True)
            if not is_same:
                print(json.dumps(found)[:3000], flush=True)
    print(f"{num_killed - num_different} of {num_killed} kills ended with the same trajectory, masks and rate")
    return num_different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--sharding", choices=["none", "fully_shard"], default="none")
    options = parser.parse_args()
    sys.exit(torture(options.kills, options.seed, options.devices, options.sharding) > 0)


if __name__ == "__main__":
    main()
