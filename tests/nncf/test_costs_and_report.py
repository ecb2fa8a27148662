"""After `run`, a script measures its files, checks limits and writes the report, each in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from kedro_aat import (
    BaseEarlyExitCompressionTrainingLoop,
    Evaluation,
    Outcome,
    create_accuracy_aware_training_loop,
    create_compressed_model,
)
from kedro_aat.compression.controller import ModelController
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.nncf.costs import FileCosts, original_of
from tests.nncf.scripts import QUANTIZATION

PRUNING = {"algorithm": "filter_pruning", "params": {"prune_first_conv": True}}


class Script(NamedTuple):
    loop: BaseEarlyExitCompressionTrainingLoop
    controller: ModelController
    costs: FileCosts
    folder: Path


def train(controller: Any, model: nn.Module, **more: Any) -> float:
    controller.scheduler.step()
    return 0.5


def configured(compression: Any) -> dict[str, Any]:
    params = {
        "maximal_absolute_accuracy_degradation": 0.1,
        "maximal_total_epochs": 4,
        "search": {"kind": "frontier"},
    }
    return {
        "input_info": {"sample_size": [1, 16]},
        "compression": compression,
        "accuracy_aware_training": {"mode": "adaptive_compression_level", "params": params},
    }


def created(compression: Any, **more: Any) -> tuple[BaseEarlyExitCompressionTrainingLoop, ModelController, nn.Module]:
    model: nn.Module = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    controller, model = create_compressed_model(model, configured(compression) | more)
    return create_accuracy_aware_training_loop(configured(compression), controller, 0.9), controller, model


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    """A script that has measured its files; what it keeps of the accuracy depends on the rate alone."""
    folder = tmp_path_factory.mktemp("script")
    loop, controller, model = created(PRUNING)

    def validate(model: nn.Module) -> float:
        return 0.9 - 0.3 * (controller.compression_rate > 0.8)

    loop.run(model, train, validate, log_dir=folder)
    return Script(loop, controller, loop.measure(batch_sizes=[1, 8], seconds=0.01), folder)


def test_costs_are_those_of_the_exported_files(script: Script) -> None:
    costs = script.costs
    assert costs.original.parameters == 16 * 64 + 64 + 64 * 32 + 32 + 32 * 2 + 2
    assert costs.compressed.parameters == sum(each.numel() for each in script.controller.strip().parameters())
    assert costs.compressed.parameters < costs.original.parameters
    script.controller.export_model(script.folder / "model.onnx")
    assert costs.compressed.onnx_bytes == (script.folder / "model.onnx").stat().st_size < costs.original.onnx_bytes
    assert set(costs.compressed.latency_ms or {}) == {1, 8}
    table = str(costs).splitlines()
    assert f"{costs.original.onnx_bytes:,}" in table[3]
    assert f"{costs.compressed.onnx_bytes:,}" in table[3]
    assert "latency, batch 8, ms" in table[5]


def test_limits_are_those_of_the_pipeline(script: Script) -> None:
    assert script.loop.exceeded_limits(onnx_bytes=10**9, latency_ms={8: 1000.0}) == []
    exceeded = script.loop.exceeded_limits(onnx_bytes=10, parameters=10**9, macs=1)
    assert [words.split()[0] for words in exceeded] == ["onnx_bytes", "macs"]
    assert "above the limit of 10" in exceeded[0]
    (slow,) = script.loop.exceeded_limits(latency_ms={8: 1e-9})
    assert "at batch 8" in slow
    with pytest.raises(ConfigurationError, match="onnx_byte"):
        script.loop.exceeded_limits(onnx_byte=10)


def test_report_shows_the_run(script: Script) -> None:
    path = script.loop.write_report(script.folder / "report.html")
    page = path.read_text(encoding="utf-8")
    assert "Within budget on the validation data; not certified" in page
    assert "`certify` of the loop was not called" in page
    assert "validate, validation" in page
    assert "maximal_absolute_accuracy_degradation" in page
    costs = script.costs
    assert f"{costs.original.onnx_bytes:,} → {costs.compressed.onnx_bytes:,} bytes" in page
    figure = page.split('id="figure-frontier"', 1)[-1]
    assert json.dumps(script.loop.history[1].metric) in figure


@pytest.mark.slow
def test_limits_of_other_batch_sizes_are_measured(script: Script) -> None:
    (slow,) = script.loop.exceeded_limits(latency_ms={4: 1e-9})
    assert "at batch 4" in slow


@pytest.mark.slow
def test_certified_report_says_so(tmp_path: Path) -> None:
    loop, _, model = created(PRUNING)
    loop.run(model, train, lambda model: 0.9, log_dir=tmp_path)
    scores = torch.ones(500)
    loop.certify(Evaluation(1.0, scores), Evaluation(1.0, scores))
    assert loop.outcome is Outcome.CERTIFIED
    assert "Certified: the compressed model keeps" in loop.write_report(tmp_path / "report.html").read_text("utf-8")


def test_original_of_several_algorithms_is_neither_cut_nor_quantized() -> None:
    _, controller, model = created([PRUNING, QUANTIZATION])
    controller.disable_scheduler()
    controller.compression_rate = 0.5
    before = {name: value.clone() for name, value in model.state_dict().items()}
    original = original_of(controller)
    assert isinstance(original, nn.Sequential)
    assert [type(layer) for layer in original] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert original[0].weight.shape == (64, 16)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    loop, controller, model = created({"algorithm": "magnitude_sparsity"}, input_info=None)
    for call in (loop.measure, loop.exceeded_limits, lambda: loop.write_report(tmp_path / "report.html")):
        with pytest.raises(RuntimeError, match=r"before run\(\) has ended"):
            call()
    loop.run(model, train, lambda model: 0.9, log_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="latency_seconds"):
        loop.measure(seconds=0)
    controller.example_input = None
    with pytest.raises(ModelError, match="example_input"):
        loop.measure()
