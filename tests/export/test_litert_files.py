"""What of LiteRT needs no extra: the message without it, ranges that are completed, and the plan of memory."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.fx import Node

from kedro_aat.errors import ExportError
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.subject import Subject
from kedro_aat.export.targets.litert_file import plan_arena
from kedro_aat.export.targets.litert_integers import complete
from kedro_aat.export.targets.registry import target_of
from tests.compression.quantization.quantized import Branching, quantized, run, settled


def test_a_missing_extra_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ExportError, match=r"install it with `pip install 'kedro-aat\[litert\]'`"):
        target_of("litert")


def test_the_arena_holds_tensors_that_live_at_the_same_time() -> None:
    # The second and the third overlap in time; the first is not needed when the third is.
    assert plan_arena({0: (100, 0, 1), 1: (50, 1, 2), 2: (100, 2, 3)}) == 112 + 64
    assert plan_arena({0: (16, 0, 1), 1: (16, 2, 3)}) == 16
    assert plan_arena({}) == 0


def test_every_result_of_a_layer_is_rounded() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 3, 16, 16)
    model = quantized(settled(Branching(), inputs), inputs).strip().eval()
    module = Subject(model, inputs, ExportSettings()).trace_batch(1, "decomposed").module(check_guards=False)
    complete(module, [(each[None],) for each in inputs])

    def is_rounded(node: Node) -> bool:
        return all("quantize_per_tensor" in str(user.target) or "relu" in str(user.target) for user in node.users)

    layers = [node for node in module.graph.nodes if "conv2d" in str(node.target)]
    assert len(layers) == 5
    assert all(map(is_rounded, layers))
    with torch.no_grad():
        got = torch.cat([module(each[None]) for each in inputs])
    expected = run(model, inputs)
    # The output has 255 steps over its range and a tenth of it on both sides.
    assert (got - expected).abs().max() <= 4 * 1.2 * (expected.max() - expected.min()) / 255


def test_scales_that_xnnpack_refuses_are_widened() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 6)
    first, second = nn.Linear(6, 8), nn.Linear(8, 4)
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        first.weight[0].zero_()  # a channel of zeros
        second.weight.abs_().neg_()  # and a ReLU that gives nothing but zeros
        second.bias.fill_(-1.0)
    model = quantized(net.eval(), inputs).strip().eval()
    module = Subject(model, inputs, ExportSettings()).trace_batch(1, "decomposed").module(check_guards=False)
    complete(module, [(each[None],) for each in inputs])
    modules = dict(module.named_buffers()) | dict(module.named_parameters())
    ratios = []
    for node in module.graph.nodes:
        if "aten.linear" in str(node.target):
            (user,) = node.users
            user = next(iter(user.users)) if "relu" in str(user.target) else user
            products = node.args[0].args[1] * modules[node.args[1].args[1].target]
            ratios += (products / user.args[1]).tolist()
    assert len(ratios) == 15
    assert all(2**-32 < ratio < 256 for ratio in ratios)
    with torch.no_grad():
        assert (module(inputs[:1]) - run(model, inputs[:1])).abs().max() < 0.02
