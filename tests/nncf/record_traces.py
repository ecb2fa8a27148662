"""Runs NNCF's loops on the scenarios of `nncf_traces.json`; see `record.py`."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from tests import scripted


def trace(scenario: dict[str, Any]) -> dict[str, Any]:
    """What one of NNCF's loops did with a scripted model: each validation, the result and the statistics."""
    from nncf import NNCFConfig
    from nncf.api.compression import CompressionAlgorithmController, CompressionStage
    from nncf.common.accuracy_aware_training.training_loop import (
        ADAPTIVE_COMPRESSION_CONTROLLERS,
        AdaptiveCompressionTrainingLoop,
        EarlyExitCompressionTrainingLoop,
    )
    from nncf.common.statistics import NNCFStatistics

    class Controller(scripted.ScriptedController):
        def compression_stage(self) -> Any:
            return CompressionStage.PARTIALLY_COMPRESSED if self.is_partial else CompressionStage.FULLY_COMPRESSED

        def statistics(self, quickly_collected_only: bool = False) -> Any:
            return NNCFStatistics()

    CompressionAlgorithmController.register(Controller)
    ADAPTIVE_COMPRESSION_CONTROLLERS.registry_dict["pt_scripted"] = Controller
    model = scripted.ScriptedModel(scenario["initial_rate"])
    controller = Controller(
        model,
        maximal_rate=scenario.get("controller_maximal_rate", 1.0),
        increment=scenario.get("schedule_inc", 0.0),
        is_partial_until_search=scenario.get("partial_until_search", False),
    )
    section = {"mode": scenario["mode"], "params": scenario["params"]}
    config = NNCFConfig.from_dict({"input_info": {"sample_size": [1]}, "accuracy_aware_training": section})
    common = {"verbose": False, "dump_checkpoints": scenario.get("dump_checkpoints", True)}
    is_adaptive = scenario["mode"] == "adaptive_compression_level"
    if is_adaptive:
        limits = {
            key: scenario[key] for key in scenario if key in {"minimal_compression_rate", "maximal_compression_rate"}
        }
        loop = AdaptiveCompressionTrainingLoop(config, controller, scenario["uncompressed"], **common, **limits)
    else:
        loop = EarlyExitCompressionTrainingLoop(config, controller, scenario["uncompressed"], **common)
    rows: list[dict[str, Any]] = []

    def validate(model: scripted.ScriptedModel, epoch: int) -> float:
        runner = loop.runner
        rate, at_rate, trained = model.state.tolist()
        rows.append(
            {
                "epoch": epoch,
                "epochs_at_rate": runner.training_epoch_count,
                "target_rate": getattr(runner, "_compression_rate_target", None),
                "model_rate": rate,
                "e": at_rate,
                "c": trained,
                "step": getattr(runner, "compression_rate_step", None),
                "lr_factor": runner.base_lr_reduction_factor_during_search,
                "lr": runner.optimizer.param_groups[0]["lr"],
                "metric": model.accuracy(scenario["acc"]),
            }
        )
        return float(rows[-1]["metric"])

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            loop.run(
                model,
                scripted.train_epoch,
                validate,
                lambda: (torch.optim.SGD(model.parameters(), lr=1.0), None),
                early_stopping_fn=scripted.early_stopping(scenario.get("early_stopping")),
                log_dir=folder,
                update_learning_rate_fn=lambda *args: None,
            )
            found["statistics"] = vars(loop.statistics)
        except TypeError:  # a defect that `test_traces.py` names
            pass
    rate, at_rate, trained = model.state.tolist()
    metric = model.accuracy(scenario["acc"])
    return found | {
        "final_model": {"rate": rate, "e": at_rate, "c": trained, "metric": metric},
        "minimal_tolerable_accuracy": loop.runner.minimal_tolerable_accuracy,
        "total_epochs": loop.runner.cumulative_epoch_count,
        "per_validation": rows,
    }
