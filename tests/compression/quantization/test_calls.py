"""int8 training of models that are called in parts, in other ways, or differently each time."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.settings import Quantization
from kedro_aat.errors import ModelError
from tests.compression.called_in_parts import WAYS, Parts
from tests.compression.quantization.quantized import quantized, run


def num_levels(tensor: Tensor) -> int:
    return len(tensor.unique())


@pytest.mark.parametrize("calibrated", [True, False])
def test_every_way_to_call_a_model_trains_the_same(calibrated: bool) -> None:
    torch.manual_seed(0)
    start, x = Parts(), torch.randn(16, 12)
    trained = {}
    for way, loss in WAYS.items():
        model: Any = copy.deepcopy(start)
        controller = QuantizationController(model, example_input=x)
        if calibrated:
            controller.calibrate([x])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()
        for _ in range(3):
            optimizer.zero_grad()
            loss(model, x).backward()
            optimizer.step()
        assert controller.get_state()["num_observed"] == 3, way
        small = controller.strip()
        torch.testing.assert_close(run(small, x), run(model, x), rtol=0, atol=5e-3)
        trained[way] = torch.cat([p.detach().flatten() for p in model.parameters()])
        # The stripped model, too, computes the same in whatever way it is called.
        with torch.no_grad():
            torch.testing.assert_close(small.loss(x), small(x).square().mean(), rtol=0, atol=0)  # type: ignore[operator]
    for way, parameters in trained.items():
        assert (parameters - trained["model(x)"]).abs().max() <= 1e-6, way


def test_part_that_is_called_first_needs_an_example() -> None:
    model = Parts()
    QuantizationController(model)
    with pytest.raises(ModelError, match=r"backbone is called before Parts itself.*calibrate\(batches\)"):
        model.backbone(torch.randn(2, 12))


class Changing(nn.Module):
    """Layers and functions that a call may leave out or repeat: (B, 6) -> (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.skipped: set[str] = set()
        self.repeated = 1

    def forward(self, x: Tensor) -> Tensor:
        for name in ("first", "second", "third"):
            if name not in self.skipped:
                for _ in range(self.repeated):
                    x = x + torch.tanh(self.get_submodule(name)(x))
        return x


SEEN: list[Tensor] = []  # the inputs of layers as their own code gets them


class Seen(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        SEEN.append(input.detach().clone())
        return super().forward(input)


@pytest.mark.parametrize("skipped", [(), ("first",), ("second",), ("first", "third")])
@pytest.mark.parametrize("repeated", [1, 3])
def test_layers_that_a_call_leaves_out_or_repeats_stay_quantized(skipped: tuple[str, ...], repeated: int) -> None:
    torch.manual_seed(0)
    model, x = Changing(), torch.randn(64, 6)
    controller = quantized(model, x)
    SEEN.clear()
    for name in ("first", "second", "third"):
        layer = model.get_submodule(name)
        layer.__class__ = Seen
    model.skipped, model.repeated = set(skipped), repeated
    expected = run(model, x)
    assert len(SEEN) == repeated * (3 - len(skipped))
    for inputs in SEEN:
        assert num_levels(inputs) <= 256
    small = controller.strip()
    assert (run(small, x) - expected).abs().mean() < 0.02 * expected.abs().mean()
    model.train()
    model(x).square().mean().backward()


class Recurring(nn.Module):
    """A cell in a loop over time: (B, T, 4) -> (B, 2), and the states."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        state = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            state = torch.tanh(self.inner(step) + self.outer(state))
        return self.head(state), {"state": state}


def test_loop_over_time_trains_and_strips_at_any_length() -> None:
    torch.manual_seed(0)
    model = Recurring()
    controller = QuantizationController(model)
    controller.calibrate([torch.randn(32, 5, 4)])
    model.train()
    for length in (5, 9, 2):
        model(torch.randn(32, length, 4))[0].square().mean().backward()
    small = controller.strip().eval()
    model.eval()
    for length in (5, 11, 3):
        x = torch.randn(32, length, 4)
        with torch.no_grad():
            (got, _), (expected, _) = small(x), model(x)
        torch.testing.assert_close(got, expected, rtol=0, atol=0.01 * float(expected.abs().max()))


class Checkpointed(nn.Module):
    """A block that is computed again in the backward pass, as a module or as a function."""

    def __init__(self, way: str, *, reentrant: bool) -> None:
        super().__init__()
        self.way, self.reentrant = way, reentrant
        self.stem = nn.Linear(8, 16)
        self.block = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.last = nn.Linear(16, 4)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.block(x) + x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        function = {"module": self.block, "function": self.body}.get(self.way)
        if function is not None and self.training:
            x = checkpoint(function, x, use_reentrant=self.reentrant)
        else:
            x = self.body(x) if self.way in ("function", "plain function") else self.block(x)
        logits: Tensor = self.last(x)
        return logits


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("way", ["module", "function"])
def test_gradient_checkpointing_has_the_gradients_of_training_without_it(way: str, reentrant: bool) -> None:
    torch.manual_seed(0)
    start, x = Checkpointed(way, reentrant=reentrant), torch.randn(32, 8)
    gradients = []
    for each in (way, {"module": "plain module", "function": "plain function"}[way]):
        model = copy.deepcopy(start)
        model.way = each
        quantized(model, x)
        model.train()
        for _ in range(2):
            model.zero_grad()
            model(x).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=0, atol=0.02 * float(gradients[1].abs().max()))


class Auxiliary(nn.Module):
    """A head that is used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        x = self.body(x).relu()
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


def test_head_of_training_alone_trains_and_strips() -> None:
    torch.manual_seed(0)
    model, x = Auxiliary(), torch.randn(16, 8)
    controller = build_controller(model, Quantization(), example_input=x)
    model.train()
    sum(out.square().mean() for out in model(x)).backward()
    small = controller.strip()
    torch.testing.assert_close(run(small, x), run(model, x), rtol=0, atol=1e-3)
    assert len(small.train()(x)) == 2


def test_copies_and_pickles_follow_their_own_model() -> None:
    torch.manual_seed(0)
    controller = quantized(Parts(), x := torch.randn(16, 12))
    for twin in (copy.deepcopy(controller), pickle.loads(pickle.dumps(controller))):
        assert torch.equal(run(twin.model, x), run(controller.model, x))
        small = twin.strip()
        for again in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            assert torch.equal(run(again, x), run(controller.strip(), x))
            assert isinstance(again.head, nn.Linear)
        with torch.no_grad():
            twin.model.get_parameter("head.weight").zero_()
        assert run(twin.model, x).std(0).max() == 0
        assert run(controller.model, x).std(0).max() > 0
