"""Scopes mean what they mean in NNCF: `nncf_scopes.json` says which layers NNCF 2.19 compressed in each situation."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat import create_compressed_model
from kedro_aat.compression.controller import ModelController
from kedro_aat.errors import ConfigurationError, ModelError
from tests.nncf.conformance.recorded import Res

SITUATIONS = json.loads((Path(__file__).parent / "nncf_scopes.json").read_text())["scopes"]


def created(contents: dict[str, Any], model: nn.Module | None = None) -> ModelController:
    described = {"input_info": {"sample_size": [1, 3, 8, 8]}} | contents
    return create_compressed_model(Res() if model is None else model, described)[0]


def compressed(contents: dict[str, Any]) -> list[str]:
    """Names of the layers that are compressed."""
    frame = created(contents).statistics().tables[0].as_frame()
    return sorted(name.removesuffix(".weight") for name in frame["layer"])


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation["situation"])
def test_the_layers_that_nncf_compresses(situation: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    expected = situation.get("here", situation["nncf"])
    if expected == "error":
        with pytest.raises((ConfigurationError, ModelError), match=r"matches no layer|select none"):
            compressed(situation["file"])
        return
    assert compressed(situation["file"]) == expected
    own = situation["file"]["compression"].get("ignored_scopes", [])
    if own and expected == SITUATIONS[0]["nncf"]:
        assert any(f"'{own[0]}' names no layer with weights" in record.getMessage() for record in caplog.records)


def test_scopes_that_are_not_checked_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    section = {"algorithm": "magnitude_sparsity", "ignored_scopes": ["head", "{re}fc"], "validate_scopes": False}
    controller = created({"ignored_scopes": ["Res/nothing"], "compression": section})
    assert controller.settings.ignored_scopes == ("{re}fc",)  # type: ignore[union-attr]  # of one algorithm
    logged = [record.getMessage() for record in caplog.records]
    assert "magnitude_sparsity: 1 scopes name nothing in the model: head" in logged
    assert "magnitude_sparsity: 1 scopes name nothing in the model: Res/nothing" in logged


def frozen() -> Res:
    model = Res()
    model.b1.requires_grad_(False)
    return model


@pytest.mark.parametrize("algorithm", ["magnitude_sparsity", "filter_pruning"])
def test_frozen_layers_are_refused_unless_they_are_ignored(algorithm: str) -> None:
    section: dict[str, Any] = {"algorithm": algorithm}
    with pytest.raises(ModelError, match=rf"2 of the layers that {algorithm} would compress are frozen .*: b1.p, b1.q"):
        created({"compression": section}, frozen())
    created({"compression": section | {"ignored_scopes": [r"{re}Block\[b1\]"]}}, frozen())
    created({"compression": section | {"target_scopes": [r"{re}Block\[b2\]"]}}, frozen())


def test_scopes_see_all_layers_when_the_frozen_ones_are_looked_for() -> None:
    """An expression that names layers in NNCF's spelling is not searched for in torch's, whatever is frozen."""
    model = Res()
    model.stem.requires_grad_(False)
    section = {"algorithm": "magnitude_sparsity", "ignored_scopes": [r"{re}^(?!.*conv2d)"]}
    with pytest.raises(ModelError, match=r"1 of the layers that magnitude_sparsity would compress are frozen .*: stem"):
        created({"compression": section}, model)


def test_layers_whose_weights_cannot_be_sparse_stand_in_no_scope() -> None:
    model = nn.Sequential(nn.Embedding(50, 1), nn.utils.parametrizations.weight_norm(nn.Linear(1, 8)), nn.Linear(8, 4))
    controller, _ = create_compressed_model(model, {"compression": {"algorithm": "magnitude_sparsity"}})
    controller.disable_scheduler()
    controller.compression_rate = 0.5
    assert (controller.strip().get_parameter("2.weight") == 0).sum() == 16


def test_frozen_layers_are_quantized_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    created({"compression": {"algorithm": "quantization"}}, frozen())
    warned = [record.getMessage() for record in caplog.records]
    assert "2 layers are frozen and are compressed without training: b1.p, b1.q" in warned


def test_the_name_of_an_operation_in_a_layer_of_ones_own_names_that_layer() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.other = Own(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.other(self.own(x))
            return result

    section = {"algorithm": "magnitude_sparsity", "ignored_scopes": ["Net/Own[own]/linear_0"]}
    controller, _ = create_compressed_model(Net(), {"compression": section})
    assert controller.weight_names == ["other.weight"]
