"""The command that compresses published architectures: a dozen of them, and its own parts on networks of ours."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.zoo import __main__ as command
from benchmarks.zoo.measure import EXACT, PARTS, Facts, prepared
from benchmarks.zoo.models import Entry, all_entries
from benchmarks.zoo.results import Results, Row
from benchmarks.zoo.rival import last_layer, pruned_by_torch_pruning
from benchmarks.zoo.table import page
from tests.compression.architectures import ARCHITECTURES, make


def entry(name: str) -> Entry:
    """A network of the tests as an architecture of the zoo."""
    shape, is_text = make(name)[1].shape, name == "text_transformer"
    return Entry(
        name, "tests", lambda: make(name)[0], lambda: torch.randint(30, shape) if is_text else torch.randn(shape)
    )


def row(name: str, made: Entry, *parts: str) -> Row:
    return Row(name, made.family, made.package, {part: PARTS[part](made) for part in parts})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobile", "vision_transformer"])
def test_small_twins_are_cut_sparse_and_int8(name: str) -> None:
    # Torch-Pruning breaks the attention of the transformer, whose forward pass holds the width of a head.
    rival = ["torch_pruning"] if name == "mobile" else []
    found = row(name, entry(name), "filters", "sparse", "int8", *rival)
    assert found.cuts
    assert found.is_sparse
    assert found.is_near
    assert found.number("filters", "unnamed") == 0
    assert found.removes_as_much  # true where that does not run


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_of_a_prepared_model_is_zero(name: str) -> None:
    model, batch = prepared(entry(name))
    assert all((weight != 0).any() for weight in model.parameters())
    assert torch.isfinite(model(batch)).all()


def run(path: Path, seconds: float = 60, *, again: bool = False) -> None:
    arguments = argparse.Namespace(out=path / "results.json", page=path / "zoo.md", seconds=seconds, again=again)
    command.main(["quick", "slow", "failing"], ["sparse"], arguments)


def test_failures_are_results_and_a_stopped_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails() -> nn.Module:
        raise ValueError("no such\nmodel")

    def sleeps() -> nn.Module:
        time.sleep(60)
        return nn.Identity()

    def made(make: Callable[[], nn.Module]) -> Entry:
        return Entry("family", "tests", make, lambda: torch.randn(4, 7))

    entries = {"quick": made(lambda: make("mlp")[0]), "slow": made(sleeps), "failing": made(fails)}
    monkeypatch.setattr(command, "all_entries", lambda: entries)
    run(tmp_path, seconds=5)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["quick"]["parts"]["sparse"]["rate"] == pytest.approx(0.5, abs=0.01)
    assert saved["slow"]["parts"]["sparse"] == {"error": "not finished after 5 s"}
    assert saved["failing"]["parts"]["sparse"] == {"error": "ValueError: no such model"}
    text = (tmp_path / "zoo.md").read_text()
    assert "- sparse: 1 of 3 (33%)" in text
    assert "- failing, sparse: ValueError: no such model" in text

    called = []

    def instead(made: Entry, *_: object) -> Facts:
        called.append(made)
        return {"rate": 0.5, "difference": 0.0}

    monkeypatch.setattr(command, "measured", instead)
    run(tmp_path)
    assert not called  # all is known
    run(tmp_path, again=True)
    assert len(called) == 3
    assert "- sparse: 3 of 3 (100%)" in (tmp_path / "zoo.md").read_text()


@pytest.mark.parametrize(
    ("facts", "cuts"),
    [
        ({"difference": EXACT, "onnx": EXACT}, True),
        ({"difference": 2 * EXACT, "onnx": EXACT}, False),
        ({"difference": 2 * EXACT, "difference_in_double": 1e-12, "onnx": EXACT}, True),
        ({"difference": EXACT, "onnx": 2 * EXACT}, False),
        ({"difference": EXACT}, False),
        ({"difference": None, "onnx": 0.0}, False),
        ({"error": "no"}, False),
    ],
)
def test_a_cut_is_right_if_nothing_differs(facts: Facts, cuts: bool) -> None:
    assert Row("name", "family", "package", {"filters": facts}).cuts is cuts


def test_results_are_rounded_and_kept_by_others(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Results(path).add("name", entry("mlp"), "filters", {"difference": float("inf"), "removed": 0.123456})
    Results(path).add("name", entry("mlp"), "sparse", {"rate": 0.5})
    (found,) = Results(path).rows()
    assert found.parts == {"filters": {"difference": None, "removed": 0.123}, "sparse": {"rate": 0.5}}
    assert "| name | mlp | **no** | 12% |" in page([found])


def test_recipe_of_the_rival_spares_the_classifier() -> None:
    model, batch = make("residual")
    last = last_layer(model, batch)
    assert last is [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    _, cut = pruned_by_torch_pruning(model, batch, 0.5)
    assert cut(batch).shape[1] == 4


def test_names_of_architectures_are_complete() -> None:
    entries = all_entries()
    assert len(entries) >= 110
    assert len({made.family for made in entries.values()}) >= 30
    saved = Results(command.RESULTS).rows()
    assert {found.name for found in saved} <= set(entries)


SUBSET = [
    "resnet20_cifar10",
    "mobilenetv2_w1",
    "ghostnet",
    "shufflenetv2_w1",
    "squeezenet_v1_1",
    "cgnet_cityscapes",
    "ViTForImageClassification",
    "ConvNextForImageClassification",
    "MobileNetV2ForImageClassification",
    "DistilBertForSequenceClassification",
    "LlamaForCausalLM",
    "PatchTSTForPrediction",
]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pytorchcv") is None, reason="`make test-zoo` installs the architectures")
@pytest.mark.parametrize("name", SUBSET)
def test_published_architecture_is_cut_sparse_and_int8(name: str) -> None:
    found = row(name, all_entries()[name], "filters", "sparse", "int8")
    assert found.cuts, found.parts["filters"]
    assert found.number("filters", "unnamed") == 0
    assert found.is_sparse, found.parts["sparse"]
    assert found.is_int8, found.parts["int8"]
