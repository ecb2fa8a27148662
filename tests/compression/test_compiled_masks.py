"""Masks in graphs that run again when the rate changes: none is broken, none is made anew, and all hold the masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import (
    Composite,
    CompressionSettings,
    FilterPruning,
    MagnitudeSparsity,
    Quantization,
)
from tests.nets import SmallNet

RATES = (0.3, 0.5, 0.6, 0.2, 0.0, 0.7)  # six changes, after rate 0
ALGORITHMS: dict[str, CompressionSettings] = {"sparsity": MagnitudeSparsity(), "filters": FilterPruning()}
OTHERS: dict[str, CompressionSettings] = {
    "sparsity 2:4": MagnitudeSparsity(pattern="2:4"),
    "filters, taylor": FilterPruning(importance="taylor"),
}
INPUTS, TARGETS = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


def built(algorithm: CompressionSettings) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model: Any = SmallNet()
    controller = build_controller(model, algorithm, example_input=INPUTS)
    controller.disable_scheduler()
    return model, controller


def in_steps(controller: ModelController, step: Callable[[], Tensor], rates: tuple[float, ...] = RATES) -> list[float]:
    """Losses of steps at rate 0 and at each of the rates."""
    controller.model.train()
    optimizer = torch.optim.SGD(controller.model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for rate in (0.0, *rates):
        controller.compression_rate = min(rate, controller.maximal_compression_rate)
        for _ in range(2):
            optimizer.zero_grad()
            loss = step()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def loss_of(forward: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(forward(inputs), targets)


@pytest.mark.parametrize("whole_step", [False, True], ids=["model", "step"])
@pytest.mark.parametrize("name", [*ALGORITHMS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_six_changes_of_the_rate_break_and_recompile_nothing(name: str, whole_step: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    algorithm = (ALGORITHMS | OTHERS)[name]
    (model, controller), (plain, other) = built(algorithm), built(algorithm)
    backend = CompileCounterWithBackend("eager")
    if whole_step:
        compiled: Any = torch.compile(loss_of, backend=backend)
        losses = in_steps(controller, lambda: compiled(model, INPUTS, TARGETS))
    else:
        forward: Any = torch.compile(model, backend=backend)
        losses = in_steps(controller, lambda: loss_of(forward, INPUTS, TARGETS))
    assert not counters["graph_break"]
    # The hook before the model's forward pass is a graph of its own if the model alone is compiled.
    assert backend.frame_count == counters["stats"]["unique_graphs"] == (1 if whole_step else 2)
    assert losses == pytest.approx(in_steps(other, lambda: loss_of(plain, INPUTS, TARGETS)), abs=1e-5)
    assert controller.achieved_rate == other.achieved_rate
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


BOTH = Composite(algorithms=(FilterPruning(), MagnitudeSparsity()))


@pytest.mark.parametrize("algorithm", [*ALGORITHMS.values(), BOTH], ids=[*ALGORITHMS, "both"])
def test_masks_are_applied_before_the_graphs_of_a_controller(
    algorithm: CompressionSettings, compiled_by: CompileCounterWithBackend
) -> None:
    """So the graph is that of the model alone: without masks, and written weights, of its own."""
    (model, controller), (plain, other) = built(algorithm), built(algorithm)
    forward = controller.compiled()
    losses = in_steps(controller, lambda: loss_of(forward, INPUTS, TARGETS))
    assert not counters["graph_break"]
    assert compiled_by.frame_count == 1
    assert not any("mul" in node.name for graph in compiled_by.graphs for node in graph.graph.nodes)
    assert losses == pytest.approx(in_steps(other, lambda: loss_of(plain, INPUTS, TARGETS)), abs=1e-5)
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    model.train()
    with torch.no_grad():
        model.get_parameter("conv.weight").add_(1.0)
    model(INPUTS)  # a call of the model itself applies them, too
    assert (model.get_parameter("conv.weight") == 0).any()


class Failing(nn.Sequential):
    """Fails in its forward pass when it is told to."""

    error: BaseException | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's stubs lack it; a graph raises nothing
    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        result: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return result


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_masks_are_applied_after_a_compiled_call_has_failed(
    error: type[BaseException], compiled_by: CompileCounterWithBackend
) -> None:
    model = Failing(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    controller = build_controller(model, MagnitudeSparsity(), example_input=torch.ones(2, 8))
    controller.disable_scheduler()
    controller.compression_rate = 0.5
    forward = controller.compiled()
    model.error = error()
    with pytest.raises(error):
        forward(torch.ones(2, 8))
    model.error = None
    weight = model.get_parameter("0.weight")
    expected = weight != 0
    with torch.no_grad():
        weight.add_(1.0)
    model(torch.ones(2, 8))
    assert torch.equal(weight != 0, expected)


@pytest.fixture
def compiled_by(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """What compiles the graphs that quantization makes itself."""
    torch._dynamo.reset()
    counters.clear()
    original, backend = torch.compile, CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", lambda model, **options: original(model, backend=backend))
    return backend


def test_six_changes_of_masks_in_int8_break_and_recompile_nothing(compiled_by: CompileCounterWithBackend) -> None:
    settings = Composite(algorithms=(MagnitudeSparsity(), Quantization()))
    (model, controller), (plain, other) = built(settings), built(settings)
    forward = controller.compiled()
    losses = in_steps(controller, lambda: loss_of(forward, INPUTS, TARGETS))
    assert not counters["graph_break"]
    assert compiled_by.frame_count == 1
    assert losses == pytest.approx(in_steps(other, lambda: loss_of(plain, INPUTS, TARGETS)), abs=1e-5)
    torch.testing.assert_close(dict(model.named_parameters()), dict(plain.named_parameters()), rtol=0, atol=1e-5)


def test_a_rate_of_int8_that_returns_recompiles_nothing(compiled_by: CompileCounterWithBackend) -> None:
    """The rate says which layers are rounded; each such choice is a graph, which stays."""
    _, controller = built(Quantization())
    forward = controller.compiled()
    in_steps(controller, lambda: loss_of(forward, INPUTS, TARGETS))
    number = compiled_by.frame_count
    assert number < len(RATES)
    in_steps(controller, lambda: loss_of(forward, INPUTS, TARGETS), rates=RATES[::-1])
    assert compiled_by.frame_count == number
    assert not counters["graph_break"]


class Graph(TorchDispatchMode):
    """Notes the operations that change tensors in place, as a CUDA graph does, and runs them again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            self._noted.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def replay(self) -> None:
        for func, args, kwargs in self._noted:
            func(*args, **kwargs)


@pytest.mark.parametrize("part", [False, True], ids=["model", "module"])
@pytest.mark.parametrize("algorithm", [MagnitudeSparsity(), FilterPruning()], ids=["sparsity", "filters"])
def test_a_graph_that_is_captured_at_rate_0_holds_the_masks(
    algorithm: CompressionSettings, part: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The capture itself needs a GPU; whether one is going on is said here in its place."""
    model, controller = built(algorithm)
    model.eval()
    with monkeypatch.context() as patches, torch.no_grad(), Graph() as graph:
        patches.setattr(torch.cuda, "is_initialized", lambda: True)
        patches.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        (model.conv(torch.randn(8, 8, 8, 8)) if part else model(INPUTS))  # type: ignore[operator]
    for rate in (0.6, 0.3):
        controller.compression_rate = rate
        weight = model.get_parameter("conv.weight")
        expected = weight != 0
        with torch.no_grad():
            weight.add_(1.0)
            graph.replay()
        assert int((~expected).sum()) > 0
        assert torch.equal(weight != 0, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_cuda_graph_that_is_captured_at_rate_0_holds_the_masks() -> None:
    model, controller = built(MagnitudeSparsity())
    model.cuda().eval()
    inputs, stream = INPUTS.cuda(), torch.cuda.Stream()
    with torch.no_grad():
        with torch.cuda.stream(stream):
            model(inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(inputs)
        controller.compression_rate = 0.6
        weight = model.get_parameter("conv.weight")
        expected = weight != 0
        weight.add_(1.0)
        graph.replay()
    assert torch.equal(weight != 0, expected)
