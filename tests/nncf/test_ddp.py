"""Scripts for NNCF 2.x with DistributedDataParallel: one decision, whatever happens to a rank."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.forks import module
from tests.ranks import Ranks

SCRIPT = "tests.nncf.ddp_script"


def start(folder: Path, *options: str) -> Ranks:
    folder.mkdir(exist_ok=True)
    return Ranks(module, SCRIPT, str(folder), *options, folder=folder)


def ended(ranks: Ranks, folder: Path) -> list[dict[str, Any]]:
    assert ranks.wait() == [0, 0], ranks.outputs
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("mode", "validation"),
    [("adaptive", "gathered"), pytest.param("early_exit", "whole", marks=pytest.mark.slow)],
)
def test_all_ranks_get_the_decisions_and_the_model_of_rank_0(tmp_path: Path, mode: str, validation: str) -> None:
    options = "--mode", mode, "--validation", validation, "--epochs", "2"
    first, second = ended(start(tmp_path, *options), tmp_path)

    assert first["outcome"] == "within_budget"
    assert first["rate"] >= 0.3
    assert first == second  # trajectories, and hashes of all parameters and buffers
    runs = [path for path in tmp_path.iterdir() if (path / "run.json").exists()]
    assert len(runs) == 1


@pytest.mark.slow
def test_metrics_of_shards_are_refused(tmp_path: Path) -> None:
    ranks = start(tmp_path, "--validation", "sharded")

    assert ranks.wait() == [1, 1]
    for output in ranks.outputs:
        assert "MetricError: The 2 ranks got different metrics from validate_fn" in output
        assert "all_reduce" in output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return ended(start(folder, "--epochs", "6"), folder)[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_a_script_whose_rank_is_killed_goes_on_when_it_is_started_again(
    undisturbed: dict[str, Any], number: int, tmp_path: Path
) -> None:
    chance = random.Random(number)
    victim, epoch = chance.randrange(2), chance.randrange(5)
    ranks = start(tmp_path, "--epochs", "6", "--sleep", "0.2")
    while f"epoch {epoch}" not in ranks.outputs[victim]:
        assert ranks.commands[victim].poll() is None, ranks.outputs
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.3))
    os.kill(ranks.commands[victim].pid, signal.SIGKILL)
    codes = ranks.wait(90)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] != 0, ranks.outputs

    first, second = ended(start(tmp_path, "--epochs", "6"), tmp_path)

    assert first == second
    assert first == undisturbed
