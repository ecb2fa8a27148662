"""Kills real `kedro run`s at random instants: `make torture`, or `make torture KILLS=20 SEED=1`.

A project is killed several times on its way from nothing to its summary. An instant is a random one in a random node,
so that short nodes have their turn as well. What such a project ends with is then compared with what an undisturbed one
ended with: weights, trajectories, results and summary, bit for bit but for measured times. Projects that differ stay in
build/torture.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from tests.forks import ROOT, Command, ForkServer
from tests.projects import Project

# The choice of the file must not depend on how busy the machine is.
PARAMETERS: dict[str, Any] = {"aat.export.objective": "bytes"}
# Keys of what is measured with a clock, depends on what else is in memory, tells of the last command alone, or is drawn
# at random.
MEASURED = re.compile(r"latency|seconds|peak_memory|_ms\b|^(claimed|minutes|passed_before|registration)$")
STARTED = re.compile(r"Running node: (\w+)")
KILLS_PER_PROJECT = 5


def nodes_of(command: Command) -> list[str]:
    """The nodes that the command has started."""
    return STARTED.findall(command.output)


def time_nodes(project: Project, **parameters: Any) -> dict[str, float]:
    """Runs the whole job, and returns how many seconds each node took, in the order of the nodes."""
    command = project.start(**parameters)
    starts: dict[str, float] = {}
    while command.poll(timeout=0.02) is None:
        for node in nodes_of(command):
            starts.setdefault(node, time.monotonic())
    assert command.wait() == 0, command.output
    ends = [*list(starts.values())[1:], time.monotonic()]
    return {node: end - start for (node, start), end in zip(starts.items(), ends, strict=True)}


def kill(project: Project, node: str, delay: float, **parameters: Any) -> Command:
    """Runs the job, and kills it with SIGKILL in a node.

    Args:
        project: The project, as a former kill may have left it.
        node: Name of the node.
        delay: Seconds after its start.
        **parameters: Parameters of the job.

    Returns:
        The command, which may have ended by itself before it was killed.
    """
    command = project.start(**parameters)
    while node not in nodes_of(command):
        if command.poll(timeout=0.01) is not None:
            raise AssertionError(f"ended before the node {node}:\n{command.output}")
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(command.pid, signal.SIGKILL)
    assert command.wait() in (0, -signal.SIGKILL), command.output
    return command


def differences(project: Project, reference: Project) -> list[str]:
    """What a project ended with that the reference did not, as paths below `data` and keys in files."""
    data, expected = project.folder / "data", reference.folder / "data"
    names = _result_files(expected)
    missing = [f"{name}: only one of both" for name in names ^ _result_files(data)]
    return missing + [
        f"{name}{where}"
        for name in sorted(names & _result_files(data))
        for where in _differences_of_files(data / name, expected / name)
    ]


def _result_files(data: Path) -> set[str]:
    suffixes = {".json", ".parquet", ".safetensors", ".onnx"}
    files = (
        path
        for folder in ("05_model_input", "06_models", "07_model_output", "08_reporting")
        for path in (data / folder).rglob("*")
    )
    names = {str(path.relative_to(data)) for path in files if path.suffix in suffixes}
    # The store holds times and versions of its own, and figures draw measured times.
    return {name for name in names if "/checkpoints/" not in name and name != "08_reporting/frontier.json"}


def _differences_of_files(path: Path, expected: Path) -> Iterator[str]:
    if path.suffix == ".json":
        yield from _differences_of_json(json.loads(path.read_text()), json.loads(expected.read_text()))
    elif path.suffix == ".parquet":
        table, other = (_without_times(pd.read_parquet(each)) for each in (path, expected))
        if not table.equals(other):
            yield ": table"
    elif path.read_bytes() != expected.read_bytes():
        yield ": bytes"


def _without_times(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=[column for column in table if MEASURED.search(str(column))])


def _differences_of_json(value: Any, expected: Any, where: str = "") -> Iterator[str]:
    if isinstance(value, dict) and isinstance(expected, dict):
        for key in value.keys() | expected.keys():
            if not MEASURED.search(key):
                yield from _differences_of_json(value.get(key), expected.get(key), f"{where}.{key}")
    elif isinstance(value, list) and isinstance(expected, list) and len(value) == len(expected):
        for index, (one, other) in enumerate(zip(value, expected, strict=True)):
            yield from _differences_of_json(one, other, f"{where}[{index}]")
    elif value != expected:
        yield f"{where}: {value!r} instead of {expected!r}"


def torture(num_kills: int, seed: int, folder: Path) -> int:
    """Kills, compares, and prints what happened.

    Args:
        num_kills: Number of kills.
        seed: Seed of the instants.
        folder: Folder for the projects.

    Returns:
        Number of kills whose project ended with something else.
    """
    generator = random.Random(seed)
    reference = Project.create(folder / "reference")
    seconds = time_nodes(reference, **PARAMETERS)
    print("seconds per node:", ", ".join(f"{node} {duration:.1f}" for node, duration in seconds.items()), flush=True)
    killed: Counter[str] = Counter()
    num_different = 0
    while killed.total() < num_kills:
        project = Project.create(folder / f"killed-{killed.total()}")
        num_here = min(KILLS_PER_PROJECT, num_kills - killed.total())
        instants: list[str] = []
        while len(instants) < num_here:
            node = generator.choice(list(seconds))
            delay = generator.uniform(0, seconds[node])
            if kill(project, node, delay, **PARAMETERS).wait() != 0:
                instants.append(f"{node} + {delay:.2f} s")
                killed[node] += 1
        project.run(**PARAMETERS)
        found = differences(project, reference)
        print(f"{killed.total():4d} kills: {'; '.join(instants)}: {'; '.join(found) or 'identical'}", flush=True)
        if found:
            num_different += num_here
        else:
            shutil.rmtree(project.folder)
    print("kills per node:", ", ".join(f"{node} {number}" for node, number in sorted(killed.items())))
    print(f"{num_kills - num_different} of {num_kills} kills ended identical")
    return num_different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    server = ForkServer()
    try:
        folder = ROOT / "build/torture"
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(torture(arguments.kills, arguments.seed, folder) > 0)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
