"""A script as users of NNCF 2.x wrote it for several processes; only its imports were changed.

torchrun --nproc-per-node 2 -m tests.nncf.ddp_script FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from kedro_aat import NNCFConfig, create_accuracy_aware_training_loop, create_compressed_model
from tests.nets import images

SETTINGS = {
    "adaptive": {
        "mode": "adaptive_compression_level",
        "params": {
            "maximal_absolute_accuracy_degradation": 10.0,
            "initial_training_phase_epochs": 1,
            "patience_epochs": 1,
            "initial_compression_rate_step": 0.2,
        },
    },
    "early_exit": {"mode": "early_exit", "params": {"maximal_absolute_accuracy_degradation": 10.0}},
}


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)),
    )


def correct(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(inputs).argmax(1)
        return found.eq(targets).double()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", choices=SETTINGS, default="adaptive")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--validation", choices=("whole", "sharded", "gathered"), default="whole")
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--sleep", type=float, default=0.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, size = dist.get_rank(), dist.get_world_size()

    train, validation = images(256, seed=0), images(100, seed=1)
    wrong = validation["targets"][::8]  # all of them are in the part of rank 0
    validation["targets"][::8] = (wrong + 1) % 4
    dataset = TensorDataset(train["inputs"], train["targets"])
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, num_replicas=size, rank=rank)
    loader = DataLoader(dataset, batch_size=16, sampler=sampler)

    model = build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train["inputs"]), train["targets"]).backward()
        optimizer.step()
    whole = validation["inputs"], validation["targets"]
    accuracy = 100.0 * float(correct(model, *whole).mean())

    section = SETTINGS[args.mode]
    config = NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": list(train["inputs"][:1].shape)},
            "compression": {
                "algorithm": "magnitude_sparsity",
                "sparsity_init": 0.3,
                "params": {"schedule": "multistep", "multistep_steps": [1], "multistep_sparsity_levels": [0.3, 0.5]},
            },
            "accuracy_aware_training": section | {"params": section["params"] | {"maximal_total_epochs": args.epochs}},  # type: ignore[operator]
        }
    )
    compression_ctrl, compressed = create_compressed_model(model, config)
    compression_ctrl.distributed()
    ddp = DistributedDataParallel(compressed)

    def train_epoch_fn(
        compression_ctrl: Any, model: nn.Module, epoch: int, optimizer: Any, lr_scheduler: Any, **kwargs: Any
    ) -> float:
        model.train()
        sampler.set_epoch(epoch)
        for inputs, targets in loader:
            compression_ctrl.scheduler.step()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets) + compression_ctrl.loss()
            loss.backward()
            optimizer.step()
        time.sleep(args.sleep)
        print(f"rank {rank} epoch {epoch}", flush=True)
        return float(loss.detach())

    def validate_fn(model: nn.Module, epoch: int = 0, **kwargs: Any) -> float:
        if args.validation == "whole":
            return 100.0 * float(correct(model, *whole).mean())
        own = correct(model, *(each[rank::size] for each in whole))
        counts = torch.stack([own.sum(), torch.tensor(float(len(own)), dtype=torch.float64)])
        if args.validation == "gathered":
            dist.all_reduce(counts)
        return 100.0 * float(counts[0] / counts[1])

    def configure_optimizers_fn() -> tuple[Any, Any]:
        return torch.optim.SGD(ddp.parameters(), lr=0.01, momentum=0.9), None

    loop = create_accuracy_aware_training_loop(config, compression_ctrl, accuracy, verbose=False)
    loop.run(ddp, train_epoch_fn, validate_fn, configure_optimizers_fn, log_dir=args.folder)
    if args.export:
        compression_ctrl.export_model(args.folder / "model.onnx")
    state = b"".join(value.numpy().tobytes() for value in ddp.state_dict().values())
    ended = {
        "outcome": str(loop.outcome),
        "rate": loop.statistics.compression_rate,
        "rows": [[row.epoch, row.achieved_rate, row.metric, row.loss] for row in loop.history],
        "model": hashlib.sha256(state).hexdigest(),
    }
    (args.folder / f"rank-{rank}.json").write_text(json.dumps(ended))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
