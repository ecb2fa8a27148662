"""Weights that are divided among ranks, and what each rank checks on them."""

from __future__ import annotations

import itertools
import random
from datetime import timedelta

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from kedro_aat.compression.settings import Importance
from kedro_aat.compression.sparsity.selection import keep_most_important
from kedro_aat.ranks import group
from kedro_aat.ranks.shards import local, part_of

KINDS: tuple[Importance, ...] = ("abs", "squared_abs", "normed_abs", "lamp")
RATES = (0.01, 0.3, 0.5, 0.9, 0.999)


def layers(seed: int) -> list[Tensor]:
    """Weights of a few layers: some with fewer rows than ranks, many ties, zeros, and one layer of zeros."""
    chosen, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    made = []
    for _ in range(chosen.randint(1, 5)):
        shape = (chosen.choice([1, 2, 3, 5, 7, 16, 33]), *chosen.choice([(), (4,), (3, 3, 3)]))
        weight = torch.randn(shape, generator=generator) * 10.0 ** chosen.randint(-3, 3)
        match chosen.choice(["plain", "plain", "ties", "masked", "zeros"]):
            case "ties":
                weight = (weight * 4).round() / 4
            case "masked":
                weight = torch.where(torch.rand(shape, generator=generator) < 0.8, 0, weight)
            case "zeros":
                weight = torch.zeros(shape)
        made.append(weight)
    return made


def compare_masks(num_cases: int) -> None:
    """Compares the masks of each rank's rows with those of a single process."""
    minute = timedelta(minutes=1)
    with group.joined(torch.device("cpu"), minute, minute):
        mesh = init_device_mesh("cpu", (group.world_size(),))
        for seed in range(num_cases):
            values = layers(seed)
            divided = [distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None) for value in values]
            for kind, rate in itertools.product(KINDS, RATES):
                number = round(rate * sum(value.numel() for value in values))
                expected = keep_most_important(values, kind, number)
                found = keep_most_important(divided, kind, number)
                for weight, mask, mask_of_rank in zip(divided, expected, found, strict=True):
                    assert mask_of_rank.shape == mask.shape
                    torch.testing.assert_close(local(mask_of_rank), local(part_of(mask, weight)))
    print("the same masks")
