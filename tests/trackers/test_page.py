"""The trackers that the page about trackers shows, with the real packages; `make test-trackers` installs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kedro_aat.budget import Outcome
from kedro_aat.trackers import Delivered, FineTuned, TrackedSearch, Tracker
from tests.documents import ROOT, blocks
from tests.trackers.told import PARAMETERS, RUN, TAGS, record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
METRICS = {"compressed.latency_ms.1": 0.25, "compressed.onnx_bytes": 1000.0}


def tell_a_run(package: str) -> None:
    """Tells a tracker of the page, a new one in each node, of two searches and of what was delivered."""
    pytest.importorskip(package, reason="`make test-trackers` installs it")
    names: dict[str, Any] = {}
    (code,) = (
        text for title, text in blocks(ROOT / "docs/how-to/trackers.md", "python") if title == f"Needs {package}"
    )
    exec(code, names)
    (kind,) = (
        each for each in names.values() if isinstance(each, type) and issubclass(each, Tracker) and each is not Tracker
    )
    for stage in (1, 2):
        tracker = kind()
        tracker.start(TrackedSearch(RUN if stage == 1 else "another", RUN, stage, PARAMETERS))
        for epoch in range(3):
            tracker.epoch(record(epoch))
        tracker.finish(FineTuned(Outcome.WITHIN_BUDGET, "", record(2), 0.9, 0.6, [record(2)]))
    kind().deliver(Delivered(RUN, PARAMETERS, METRICS, TAGS, None))


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    tell_a_run("wandb")
    import wandb

    wandb.teardown()  # as at the end of a process: what is written waits until then
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert {file.name for file in files} == {f"run-{RUN}.wandb"}  # one run, which goes on
    logged = b"".join(file.read_bytes() for file in files)
    for name in ("stage_1/rate/achieved", "stage_2/rate/achieved", "compressed.onnx_bytes", "certificate", "seed"):
        assert name.encode() in logged


def test_aim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tell_a_run("aim")
    import aim

    # What `aim up` does by itself before it shows runs.
    index = "from aim.cli.cli import cli_entry_point; cli_entry_point()"
    subprocess.run([sys.executable, "-c", index, "storage", "reindex"], input="y\n", text=True, check=True)
    found = [aim.Run(name, read_only=True) for name in aim.Repo(".").list_all_runs()]
    assert len(found) == 3
    assert {run["first_run"] for run in found} == {RUN}
    assert {run.name for run in found} == {f"{RUN}, {part}" for part in ("stage 1", "stage 2", "delivered")}
    curves = {
        (metric.context["stage"], metric.name): list(metric.values.sparse_numpy()[1].round(6))
        for run in found
        for metric in run.metrics()
        if not metric.name.startswith("__")
    }
    assert curves[1, "rate/achieved"] == curves[2, "rate/achieved"] == [0.4, 0.5, 0.6]
    (last,) = (run["delivered"] for run in found if run.get("delivered"))
    assert last == {**METRICS, **TAGS}
    assert [run["parameters"]["training.optimizer.init_args.lr"] for run in found if run.get("parameters")] == [
        0.1,
        0.1,
    ]
