"""TensorBoard's table of runs shows the settings and final metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from kedro_aat.budget import Outcome
from kedro_aat.training.progress import write_hyperparameters
from kedro_aat.training.records import EpochRecord, FineTuned

BEST = EpochRecord(3, 3, True, None, 0.5, 0.51, 0.9, 0.02, 0.01, 0.1, 0.05, 1.0, True, 0.51, 2.0)


@pytest.mark.parametrize("best", [BEST, None])
def test_settings_and_final_metrics_are_in_the_runs_own_file(tmp_path: Path, best: EpochRecord | None) -> None:
    outcome = Outcome.WITHIN_BUDGET if best else Outcome.INFEASIBLE
    settings = {"seed": 3, "training": {"optimizer": {"lr": 0.1}, "scheduler": None}, "scopes": ["a", "b"]}
    writer = SummaryWriter(str(tmp_path))
    write_hyperparameters(writer, settings, FineTuned(outcome, "", best, 0.9, 0.51, [BEST]))
    writer.close()

    assert len(list(tmp_path.rglob("*"))) == 1
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    content = log.PluginTagToContent("hparams")
    started = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert started["seed"].number_value == 3
    assert started["training.optimizer.lr"].number_value == 0.1
    assert started["training.scheduler"].string_value == "None"
    assert started["outcome"].string_value == str(outcome)
    assert log.Scalars("final/metric")[0].value == pytest.approx(0.9)
    assert ("final/margin" in log.Tags()["scalars"]) == (best is not None)
