"""The classes that outputs and targets stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def classes_of(metric: Any, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted and target classes, as the metric reads them.

    Args:
        metric: A metric of classes, or of segmentation.
        outputs: Numbers per class, (B, C, ...), or classes, (B, ...).
        targets: Classes, (B, ...), or for some segmentation metrics one-hot numbers, (B, C, ...).

    Returns:
        Both, (B, ...).
    """
    if getattr(metric, "input_format", "mixed") == "one-hot":
        return outputs.argmax(1), targets.argmax(1)
    if outputs.dim() == targets.dim():
        return outputs.long(), targets.long()
    if outputs.dim() < targets.dim():
        return outputs.long(), targets.argmax(1)
    predicted, targets = outputs.argmax(1), targets.long()
    top_k = getattr(metric, "top_k", 1)
    if top_k > 1:  # a target among the k largest outputs counts as predicted
        is_near = (outputs.topk(top_k, dim=1).indices == targets.unsqueeze(1)).any(1)
        predicted = torch.where(is_near, targets, predicted)
    return predicted, targets


def counts_of_pairs(predicted: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """How often each example has each pair of target (rows) and predicted class (columns), (B, C, C).

    Args:
        predicted: Predicted classes, (B, ...).
        targets: Target classes, (B, ...).
        num_classes: Number of classes, C.
    """
    cells = (targets * num_classes + predicted).reshape(len(targets), -1)
    cells = cells + num_classes**2 * torch.arange(len(cells), device=cells.device).unsqueeze(1)
    counts = torch.bincount(cells.flatten(), minlength=len(cells) * num_classes**2)
    return counts.reshape(-1, num_classes, num_classes)
