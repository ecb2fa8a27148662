"""Tiny models and data in every form that users have them in."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, default_collate

NUM_CLASSES = 3


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, high: int = NUM_CLASSES, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


X, Y = numbers(32, 6), labels(32)
IDS = labels(32, 5, high=20)
MASK = (torch.arange(5) < 1 + labels(32, 1, high=5)).long()


class Examples(Dataset[Any]):
    """Examples made by a function of their number."""

    def __init__(self, make: Any, number: int = 32) -> None:
        self.make, self.number = make, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Any:
        if index >= self.number:
            raise IndexError(index)
        return self.make(index)


class Stream(IterableDataset[Any]):
    """Yields pairs, in an order of its own if it is told the epoch."""

    def __iter__(self) -> Iterator[Any]:
        yield from zip(X, Y, strict=True)


class SizedStream(Stream):
    def __len__(self) -> int:
        return len(X)


class EpochStream(SizedStream):
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        for index in torch.randperm(len(X), generator=torch.Generator().manual_seed(self.epoch)).tolist():
            yield X[index], Y[index]


class ShuffledStream(SizedStream):
    def __iter__(self) -> Iterator[Any]:
        for index in torch.randperm(len(X)).tolist():
            yield X[index], Y[index]


class EndlessStream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from zip(X, Y, strict=True)


class BatchStream(IterableDataset[Any]):
    """Yields whole batches."""

    def __iter__(self) -> Iterator[Any]:
        yield from zip(X.split(8), Y.split(8), strict=True)


class OwnSampler(Sampler[int]):
    """A sampler whose order nobody can set."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(len(X)).tolist())

    def __len__(self) -> int:
        return len(X)


Point = namedtuple("Point", ["label", "x"])


class Outcome(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Record:
    image: Tensor
    label: Tensor


def collate_records(examples: list[Any]) -> Record:
    return Record(*default_collate(examples))


def collate_padded(examples: list[Any]) -> dict[str, Tensor]:
    """Pads sequences of different lengths with 0, and says how long they are."""
    sequences, targets = zip(*examples, strict=True)
    lengths = torch.tensor([len(each) for each in sequences])
    return {"x": pad_sequence(list(sequences), batch_first=True), "lengths": lengths, "y": torch.stack(targets)}


class PadTo:
    """Pads sequences to one length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, examples: list[Any]) -> tuple[Tensor, Tensor]:
        padded = torch.stack([nn.functional.pad(x, (0, 0, 0, self.length - len(x))) for x, _ in examples])
        return padded, torch.stack([y for _, y in examples])


def init_worker(worker: int) -> None:
    torch.set_num_threads(1)


RAGGED = Examples(lambda index: (numbers(1 + index % 5, 4, seed=index), Y[index]))


class Plain(nn.Module):
    def __init__(self, num_inputs: int = 6, num_outputs: int = NUM_CLASSES) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(num_inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class OneOutput(Plain):
    def __init__(self) -> None:
        super().__init__(6, 1)


class FiveOutputs(Plain):
    def __init__(self) -> None:
        super().__init__(6, 5)


class TwoInputs(Plain):
    """Takes two tensors."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.net(torch.cat([left, right], 1))
        return out


class TakesDict(Plain):
    """Takes one dictionary of two tensors."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        out: Tensor = self.net(torch.cat([inputs["left"], inputs["right"]], 1))
        return out


@dataclass
class Answer:
    """As the outputs of Hugging Face's models."""

    loss: Tensor | None
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


class Words(nn.Module):
    """Called as Hugging Face's models are."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, NUM_CLASSES)

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Answer:
        hidden = self.table(input_ids)
        mask = attention_mask[..., None].float()
        logits = self.head((hidden * mask).sum(1) / mask.sum(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return Answer(loss, logits, (hidden,))


class Recurrent(nn.Module):
    """Takes padded sequences with their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        states, last = self.gru(x)
        if lengths is not None:
            last = states[torch.arange(len(x)), lengths - 1]
        out: Tensor = self.head(last.reshape(len(x), -1))
        return out


class TwoHeads(Plain):
    """Returns classes and a number."""

    def __init__(self) -> None:
        super().__init__(6, NUM_CLASSES + 1)

    def forward(self, x: Tensor) -> Any:
        out = self.net(x)
        return {"kind": out[:, :-1], "size": out[:, -1]}


class TwoLosses(nn.Module):
    """Sums the losses of both heads."""

    def forward(self, outputs: list[Tensor], targets: dict[str, Tensor]) -> Tensor:
        kind = nn.functional.cross_entropy(outputs[0], targets["kind"])
        return kind + nn.functional.mse_loss(outputs[1], targets["size"])


class Auxiliary(Plain):
    """Returns a second answer in training mode alone, as Inception does."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(6, NUM_CLASSES)

    def forward(self, x: Tensor) -> Any:
        out = self.net(x)
        return (out, self.aux(x)) if self.training else out


class Pair(Plain):
    """Returns classes and features, always."""

    def forward(self, x: Tensor) -> Any:
        return self.net(x), x


class Segmenter(nn.Module):
    def __init__(self, num_outputs: int = NUM_CLASSES) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, num_outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


PIXELS, MAP = numbers(32, 2, 5, 7), labels(32, 5, 7)
TENSORS = TensorDataset(X, Y)


def loader(dataset: Any = TENSORS, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, **({"batch_size": 8} | options))
