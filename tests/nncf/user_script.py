"""A script as users of NNCF 2.x wrote it for accuracy-aware sparsity. Only these imports were changed:

from nncf import NNCFConfig
from nncf.torch import create_compressed_model, register_default_init_args
from nncf.torch import AdaptiveCompressionTrainingLoop, EarlyExitCompressionTrainingLoop
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kedro_aat import (
    AdaptiveCompressionTrainingLoop,
    EarlyExitCompressionTrainingLoop,
    NNCFConfig,
    create_compressed_model,
    register_default_init_args,
)
from tests.nets import SmallNet, images


def create_data_loaders(config: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
    train, validation = images(config["num_examples"], seed=0), images(100, seed=1)
    train_loader = DataLoader(
        TensorDataset(train["inputs"], train["targets"]), batch_size=config["batch_size"], shuffle=True
    )
    val_loader = DataLoader(TensorDataset(validation["inputs"], validation["targets"]), batch_size=50)
    return train_loader, val_loader


def validate(model: nn.Module, val_loader: DataLoader[Any]) -> float:
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for inputs, targets in val_loader:
            correct += int((model(inputs).argmax(1) == targets).sum())
            total += len(targets)
    return 100.0 * correct / total


def pretrain(model: nn.Module, train_loader: DataLoader[Any]) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    criterion = nn.CrossEntropyLoss()
    model.train()
    for _ in range(5):
        for inputs, targets in train_loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()


def main(config_path: str, onnx_path: str) -> tuple[Any, Any, Any]:
    # Load a configuration file to specify all compression parameters
    nncf_config = NNCFConfig.from_json(config_path)

    # Provide data loaders for compression algorithm initialization, if necessary
    torch.manual_seed(nncf_config.get("seed", 0))
    train_loader, val_loader = create_data_loaders(nncf_config)
    nncf_config = register_default_init_args(nncf_config, train_loader)

    # The model to be compressed, with its weights
    model: nn.Module = SmallNet(num_classes=4, width=nncf_config["model_params"]["width"])
    pretrain(model, train_loader)
    uncompressed_model_accuracy = validate(model, val_loader)

    # Apply the specified compression algorithms to the model
    compression_ctrl, model = create_compressed_model(model, nncf_config)

    criterion = nn.CrossEntropyLoss()

    def train_epoch_fn(
        compression_ctrl: Any, model: nn.Module, epoch: int, optimizer: Any, lr_scheduler: Any, **kwargs: Any
    ) -> float:
        model.train()
        total = 0.0
        for inputs, targets in train_loader:
            compression_ctrl.scheduler.step()
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, targets)
            compression_loss = compression_ctrl.loss()
            loss += compression_loss
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / len(train_loader)

    def validate_fn(model: nn.Module, epoch: int = 0, **kwargs: Any) -> float:
        return validate(model, val_loader)

    def configure_optimizers_fn() -> tuple[Any, Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=nncf_config["base_lr"], momentum=0.9, weight_decay=1e-4)
        lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
        return optimizer, lr_scheduler

    early_exit = nncf_config["accuracy_aware_training"]["mode"] == "early_exit"
    loop_class = EarlyExitCompressionTrainingLoop if early_exit else AdaptiveCompressionTrainingLoop
    acc_aware_training_loop = loop_class(
        nncf_config, compression_ctrl, uncompressed_model_accuracy=uncompressed_model_accuracy
    )
    model = acc_aware_training_loop.run(
        model,
        train_epoch_fn=train_epoch_fn,
        validate_fn=validate_fn,
        configure_optimizers_fn=configure_optimizers_fn,
        log_dir=nncf_config["log_dir"],
    )

    print(acc_aware_training_loop.statistics.to_str())
    print(compression_ctrl.statistics().to_str())

    # Export to ONNX or .pth when done fine-tuning
    compression_ctrl.export_model(onnx_path)
    torch.save(
        {"state_dict": model.state_dict(), "compression_state": compression_ctrl.get_compression_state()},
        onnx_path.replace(".onnx", ".pth"),
    )
    return acc_aware_training_loop, compression_ctrl, validate(model, val_loader)


if __name__ == "__main__":
    main(*sys.argv[1:])
