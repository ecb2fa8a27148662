"""Measures what compression costs with large models, and prints each number beside its bar.

Each measurement runs in a process of its own, with one thread. A size below 1 is for a quick look; the bars are for 1.

    python -m benchmarks.scale [refresh ddp_step divided training_step checkpoints stage_memory policy_cost kept
        plan gpu] [--size 1]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.scale.bars import Row, measures, send


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(measures()), metavar="name", help=", ".join(measures()))
    parser.add_argument("--size", type=float, default=1.0, help="factor on the size of the models")
    arguments = parser.parse_args()
    if unknown := sorted({*arguments.names} - {*measures()}):
        parser.error(f"there is no {', '.join(unknown)}; choose from {', '.join(measures())}")
    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.set_start_method("spawn")
    table = Table("measured", "number", "to reach", "", box=None, title=f"{_processor()}, size {arguments.size}")
    for name in arguments.names:
        for row in _measured(name, arguments.size):
            verdict = "" if row.to_reach is None else "yes" if row.value <= row.to_reach else "no"
            bar = "" if row.to_reach is None else f"{row.to_reach:g} {row.unit}"
            table.add_row(row.what, f"{row.value:.3f} {row.unit}", bar, verdict)
    Console(width=140).print(table)


def _measured(name: str, size: float) -> list[Row]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=send, args=(name, size, sender))
    process.start()
    sender.close()
    try:
        rows: list[Row] = receiver.recv()
    except EOFError:
        raise SystemExit(f"{name} failed, see above.") from None
    process.join()
    return rows


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
