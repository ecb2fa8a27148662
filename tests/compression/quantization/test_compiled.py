"""Training passes in int8 that run as compiled graphs, and those that cannot."""

from __future__ import annotations

import copy
import functools
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.settings import Composite, FilterPruning, Quantization

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 4


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs, gradients and all, but no minutes of C++."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@dataclass
class Answer:
    """What some models return."""

    logits: Tensor
    features: Tensor


class Mixed(nn.Module):
    """Convolution, BatchNorm and attention; tied weights, in-place functions, buffers, a branch."""

    def __init__(self, *, has_branch: bool = False) -> None:
        super().__init__()
        self.has_branch = has_branch
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 4)
        self.register_buffer("num_calls", torch.zeros(()))
        self.scale = torch.tensor(0.5)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.get_buffer("num_calls").add_(1)
            offset = 1 - self.scale * 2
        y = F.relu(self.norm(self.conv(x)), inplace=True)
        y = y.flatten(2).mT + offset
        y = y + self.attention(y, y, y)[0]
        y = self.second(torch.tanh(self.first(y[:, ::2]))).mean(dim=1)
        features = y.max(dim=1).values if self.has_branch else y[:, 0]
        return {"answer": (self.head(y), features), "name": "mixed"}


class ReadsNumbers(nn.Module):
    """Its forward pass depends on a number in a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(1))
        return y * 2 if float(y.detach().sum()) > 0 else y


class DrawsNumbers(ReadsNumbers):
    """It skips a layer at random, by Python's generator."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(1))
        return y if random.random() < 0.5 else y + self.layer(x.flatten(1) * 0.5)


class Recurrent(ReadsNumbers):
    """It has a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(24, 192, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.gru(x.flatten(2).reshape(len(x), 8, 24))[0][:, -1])
        return y


class ReturnsObject(ReadsNumbers):
    """It returns an object that torch does not take apart."""

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x.flatten(1))
        return Answer(y, y * 2)


def logits_of(result: Any) -> Tensor:
    if isinstance(result, dict):
        result = result["answer"][0]
    return result.logits if isinstance(result, Answer) else result


@dataclass
class Trained:
    """A model after a few steps.

    Attributes:
        controller: Its controller.
        losses: Loss of each step.
        results: What its forward pass returned last.
    """

    controller: Any
    losses: list[float]
    results: Any


def trained(
    model: nn.Module, settings: Any, *, is_compiled: bool, between: Callable[[int, Any], None] | None = None
) -> Trained:
    torch.manual_seed(0)
    model = copy.deepcopy(model)
    controller: Any = build_controller(model, settings, example_input=IMAGES[:2], steps_per_epoch=6)
    controller.calibrate([IMAGES])
    controller.disable_scheduler()
    controller.compression_rate = 0.995 if isinstance(settings, Quantization) else 0.3
    forward = controller.compiled() if is_compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(6):
        model.train()
        if between is not None:
            between(step, controller)
        size = 8 if step != 4 else 3  # the last batch of an epoch is smaller
        optimizer.zero_grad()
        result = forward(IMAGES[:size])
        loss = F.cross_entropy(logits_of(result), LABELS[:size]) + controller.loss()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return Trained(controller, losses, result)


def assert_alike(eager: Trained, compiled: Trained) -> None:
    assert compiled.losses == pytest.approx(eager.losses, abs=1e-5)
    state = compiled.controller.model.state_dict()
    for name, expected in eager.controller.model.state_dict().items():
        torch.testing.assert_close(state[name], expected, rtol=0, atol=1e-4, msg=name)
    assert compiled.controller.get_state() == eager.controller.get_state()


def graphs_of(controller: Any) -> int:
    quantization: QuantizationController = getattr(controller, "quantization", controller)
    assert quantization._fake._compiled is not None
    return len(quantization._fake._compiled._known)


def test_compiled_passes_train_like_the_eager_ones() -> None:
    def switch(step: int, controller: Any) -> None:
        controller.model.has_branch = step >= 5  # what Python decides makes another graph

    model = Mixed()
    eager, compiled = (trained(model, Quantization(), is_compiled=each, between=switch) for each in (False, True))
    assert_alike(eager, compiled)
    assert graphs_of(compiled.controller) == 3
    assert compiled.results["name"] == "mixed"
    torch.testing.assert_close(compiled.results["answer"][1], eager.results["answer"][1], rtol=0, atol=1e-4)
    # A copy, such as that of `strip`, has no graphs of the model that it was copied from.
    assert copy.deepcopy(compiled.controller)._fake._compiled is None


def test_masks_and_rates_that_change_are_in_the_compiled_passes() -> None:
    def prune(step: int, controller: Any) -> None:
        controller.compression_rate = (0.0, 0.0, 0.3, 0.3, 0.5, 0.5)[step]

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8))
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)])
    settings = Composite(algorithms=(FilterPruning(), Quantization()))
    eager, compiled = (trained(model, settings, is_compiled=each, between=prune) for each in (False, True))
    assert compiled.controller.achieved_rate > 0.3
    assert_alike(eager, compiled)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ReadsNumbers(), "reads numbers out of a tensor"),
        (DrawsNumbers(), "random numbers outside of torch"),
        (Recurrent(), "does not compile recurrent layers"),
        (ReturnsObject(), "returns a Answer"),
    ],
)
def test_what_cannot_be_a_graph_says_so_and_trains_all_the_same(
    model: nn.Module, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    runs = []
    for is_compiled in (False, True):
        random.seed(0)
        runs.append(trained(model, Quantization(), is_compiled=is_compiled))
    assert_alike(*runs)
    said = [record.getMessage() for record in caplog.records if "without compilation" in record.getMessage()]
    assert len(said) == 1
    assert reason in said[0]
