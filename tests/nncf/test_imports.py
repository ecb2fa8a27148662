"""The loops run without the packages that only a Kedro project needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

UNUSED = (
    *("kedro", "kedro_datasets", "kedro_datasets_experimental", "omegaconf", "pandas", "plotly"),
    *("tensorboard", "torch.utils.tensorboard"),
)

SCRIPT = """
import sys

log_dir, *unused = sys.argv[1:]
sys.modules.update(dict.fromkeys(unused))  # from here on, importing any of these raises ModuleNotFoundError

import torch
from kedro_aat import AdaptiveCompressionTrainingLoop, create_compressed_model
from torch import nn

torch.manual_seed(0)
inputs = torch.randn(64, 8)
targets = (inputs[:, 0] > 0).long()
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
config = {
    "input_info": {"sample_size": [1, 8]},
    "accuracy_aware_training": {
        "mode": "adaptive_compression_level",
        "params": {
            "maximal_absolute_accuracy_degradation": 0.1,
            "initial_training_phase_epochs": 1,
            "patience_epochs": 1,
            "maximal_total_epochs": 3,
        },
    },
    "compression": {"algorithm": "magnitude_sparsity"},
}


def train_epoch(controller, model, epoch, optimizer, lr_scheduler):
    for _ in range(20):
        controller.scheduler.step()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets) + controller.loss()
        loss.backward()
        optimizer.step()
    return loss.item()


def validate(model):
    return (model(inputs).argmax(1) == targets).float().mean().item()


controller, model = create_compressed_model(model, config)
loop = AdaptiveCompressionTrainingLoop(config, controller, validate(model))
loop.run(model, train_epoch, validate, lambda: (torch.optim.Adam(model.parameters(), lr=0.02), None), log_dir=log_dir)
print(loop.outcome, len([record for record in loop.history if record.trained]))
"""


def test_the_loops_import_no_package_of_a_kedro_project(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), *UNUSED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["within_budget", "3"], done.stderr
