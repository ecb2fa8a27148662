"""An hour by hand: bisection of one-shot cuts, by Torch-Pruning or, for single weights, by global magnitude."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from benchmarks.tasks.rivals.compressed import Compressed, compress, losses, num_parameters
from benchmarks.tasks.rivals.training import bisect, train
from benchmarks.tasks.task import Found, Problem
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.training.data import synthetic_input

NUM_TRIALS = 4
NUM_CUTS = 10  # Torch-Pruning counts channels, so the share of channels is found by bisection
IMPORTANCES = {
    "taylor": tp.importance.GroupTaylorImportance,
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "batch_norm": tp.importance.BNScaleImportance,
}


def by_hand(problem: Problem, num_epochs: int, *, importance: str = "taylor") -> Found:
    """Cuts the baseline at once and trains it for a quarter of the epochs, at four sizes."""

    def trial(ratio: float, epochs: int, first_epoch: int) -> tuple[Compressed, float | None]:
        if problem.algorithm == "filters":
            compressed = Compressed(cut(problem, ratio, importance))
        else:
            compressed = compress(problem, problem.baseline, ratio, MagnitudeSparsity(importance="abs"))
        return compressed, train(problem, compressed, epochs, first_epoch)

    return bisect(problem, num_epochs, NUM_TRIALS, trial)


by_hand_magnitude = partial(by_hand, importance="magnitude")
by_hand_batch_norm = partial(by_hand, importance="batch_norm")


def cut(problem: Problem, ratio: float, importance: str) -> nn.Module:
    """The baseline, cut by Torch-Pruning with global ranking to about a size ratio."""
    baseline, example = copy.deepcopy(problem.baseline), synthetic_input(problem.splits.train)
    if importance == "taylor":
        for loss in losses(problem, baseline):
            loss.backward()
    # Torch-Pruning cuts the width of torch's own attention, which must stay divisible by its number of heads.
    attentions = [module for module in baseline.modules() if isinstance(module, nn.MultiheadAttention)]
    round_to = math.lcm(*(attention.num_heads for attention in attentions))
    kept = layers_to_keep(baseline, example, round_to)
    heads = {  # in attention that the model computes by itself
        name: parent.num_heads
        for name in kept
        if hasattr(parent := _parent(baseline, name), "num_heads") and parent not in attentions
    }
    low, high, best, nearest = 0.0, 1.0, problem.baseline, math.inf
    for _ in range(NUM_CUTS):
        share = (low + high) / 2
        model = copy.deepcopy(baseline)
        for new, old in zip(model.parameters(), baseline.parameters(), strict=True):
            new.grad = None if old.grad is None else old.grad.clone()
        tp.pruner.BasePruner(
            model,
            example,
            IMPORTANCES[importance](),
            global_pruning=True,
            round_to=round_to,
            pruning_ratio=share,
            num_heads={model.get_submodule(name): number for name, number in heads.items()},
            ignored_layers=[model.get_submodule(name) for name in kept if name not in heads],
        ).step()
        model.zero_grad()
        missing = math.log(ratio * num_parameters(model) / num_parameters(baseline))
        if abs(missing) < nearest:
            best, nearest = model, abs(missing)
        low, high = (share, high) if missing > 0 else (low, share)
    return best


def layers_to_keep(model: nn.Module, example: Tensor, num_channels: int) -> list[str]:
    """The layers that cannot lose this number of channels, because the outputs lose them or the model fails."""
    expected, kept = _shapes(model, example), []
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            continue
        tried = copy.deepcopy(model)
        graph = tp.DependencyGraph().build_dependency(tried, example)
        same = tried.get_submodule(name)
        try:
            cut_outputs = graph.get_pruner_of_module(same).prune_out_channels
            graph.get_pruning_group(same, cut_outputs, idxs=list(range(num_channels))).prune()
            is_changed = _shapes(tried, example) != expected
        except Exception:  # whatever the library or the model raises
            is_changed = True
        if is_changed:
            kept.append(name)
    return kept


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _shapes(model: nn.Module, example: Tensor) -> Any:
    with torch.no_grad():
        return model(example).shape
