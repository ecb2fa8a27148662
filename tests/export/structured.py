"""Models that take and return several tensors, in the structures in which users have them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


@dataclass
class ModelOutput(OrderedDict[str, Any]):
    """As in Hugging Face's library: a dataclass and a mapping at once, without what is None."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                self[field.name] = value

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


class Encoder(nn.Module):
    """Words and a mask -> logits, and a loss if there are labels; any number of words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> ModelOutput:
        first = self.embedding(input_ids)
        hidden = torch.relu(self.mix(first))
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        logits = self.head(hidden.sum(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ModelOutput(loss, logits, (first, hidden) if output_hidden_states else None)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, image: Tensor, numbers: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(torch.relu(self.left(image) + scale * self.right(numbers)))  # type: ignore[no-any-return]


class TakesMapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.head(batch["x"] * batch["weight"][:, None])
        return {"logits": logits, "label": logits.argmax(1), "weight": batch["weight"], "again": logits}


class Recurrence(nn.Module):
    """Returns what `nn.LSTM` does: outputs, and a pair of states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs, states = self.lstm(x)
        return self.head(outputs), states


class Pair(NamedTuple):
    main: Tensor
    other: Tensor


class NamedPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Pair:
        hidden = torch.relu(self.body(x))
        return Pair(self.head(hidden), hidden)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Answer:
        hidden = torch.relu(self.body(x))
        return Answer(self.first(hidden), self.second(hidden).squeeze(1))


def words(batch_size: int = 4, length: int = 6) -> Tensor:
    return torch.randint(1, 20, (batch_size, length), generator=torch.Generator().manual_seed(batch_size))


def mask(batch_size: int = 4, length: int = 6) -> Tensor:
    return torch.arange(length).expand(batch_size, -1).lt(torch.arange(2, 2 + batch_size)[:, None]).long()


def floats(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CASES: dict[str, tuple[type[nn.Module], Any, list[str], list[str]]] = {
    # model, what it is called with, names of the inputs, names of the outputs
    "positions": (TwoInputs, (floats(4, 6), floats(4, 4)), ["image", "numbers"], ["output"]),
    "names": (TwoInputs, {"numbers": floats(4, 4), "image": floats(4, 6)}, ["numbers", "image"], ["output"]),
    "mapping": (
        TakesMapping,
        {"x": floats(4, 6), "weight": floats(4).sigmoid()},
        ["x", "weight"],
        ["logits", "label", "weight_output", "again"],
    ),
    "ids": (Encoder, words(), ["input"], ["logits"]),
    "mask": (Encoder, {"input_ids": words(), "attention_mask": mask()}, ["input_ids", "attention_mask"], ["logits"]),
    "no mask": (Encoder, {"input_ids": words(), "attention_mask": None}, ["input_ids"], ["logits"]),
    "hidden": (
        Encoder,
        {"input_ids": words(), "output_hidden_states": True},
        ["input_ids"],
        ["logits", "hidden_states.0", "hidden_states.1"],
    ),
    "states": (Recurrence, floats(4, 3, 4), ["input"], ["output.0", "output.1.0", "output.1.1"]),
    "named tuple": (NamedPair, floats(4, 6), ["input"], ["output.main", "output.other"]),
    "heads": (Heads, floats(4, 6), ["input"], ["logits", "hidden"]),
}
