"""Functions and class methods that build models, as the users' own code and other libraries have them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tests.nets import SmallNet


class Config:
    """What many libraries pass instead of single arguments."""

    def __init__(self, width: int, activation: nn.Module | None = None) -> None:
        self.width, self.activation = width, activation or nn.ReLU()


class Pretrained(nn.Module):
    """(B, 4) -> (B, 2)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, config.width), config.activation, nn.Linear(config.width, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def from_instance(self, width: int) -> nn.Module:
        return Pretrained(Config(width))


class AutoModel:
    """No module itself, and without annotations, as in transformers."""

    @classmethod
    def from_config(cls, config, **kwargs):  # type: ignore[no-untyped-def]
        return Pretrained(config)

    @staticmethod
    def from_pretrained(name: str, *, width: int = 8):  # type: ignore[no-untyped-def]
        return Pretrained(Config(width))

    @classmethod
    def from_json(cls, path: str) -> Any:
        return {"path": path}

    class Nested:
        """A class in a class."""

        @classmethod
        def small(cls) -> nn.Module:
            return Pretrained(Config(3))


def in_parallel() -> nn.Module:
    return nn.DataParallel(SmallNet())


def with_frozen_backbone(width: int = 8) -> nn.Module:
    model = Pretrained(Config(width))
    model.net[0].requires_grad_(False)
    return model
