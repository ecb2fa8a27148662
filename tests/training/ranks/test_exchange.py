"""What a process and the ranks that it starts pass to each other, without unpickling a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.budget import Budget
from kedro_aat.errors import (
    AatError,
    ConfigurationError,
    InterruptedRunError,
    LostRankError,
    OutOfMemoryError,
    RankError,
    UserFunctionError,
)
from kedro_aat.training.ranks.exchange import Exchange, Returned, _packed, _Unpacker
from kedro_aat.training.ranks.stage_inputs import SearchStageResult
from tests.training.ranks.shared_search import search


def test_tensors_come_from_files_and_share_what_they_shared(tmp_path: Path) -> None:
    convolution = nn.Conv2d(2, 3, 3)
    convolution.weight = nn.Parameter(convolution.weight.detach().to(memory_format=torch.channels_last))
    model = nn.Sequential(convolution, nn.BatchNorm2d(3))
    table = torch.arange(12.0).view(3, 4)
    given: dict[str, Any] = {
        "model": model,
        "table": table,
        "column": table[:, 1],
        "empty": torch.empty(0),
        "half": table.half(),
    }
    packed = _packed(given, tmp_path)
    made = _Unpacker(packed, tmp_path).load()
    assert made["model"].state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in made["model"].state_dict().items())
    assert made["model"][0].weight.requires_grad
    assert made["model"][0].weight.stride() == convolution.weight.stride()
    for name in ("table", "column", "empty", "half"):
        assert torch.equal(made[name], given[name])
        assert made[name].dtype == given[name].dtype
    made["table"][:, 1] = -1
    assert (made["column"] == -1).all()
    again = _Unpacker(packed, tmp_path).load()  # as another rank makes it
    assert torch.equal(again["table"], table)
    assert packed.find(table.numpy().tobytes()) < 0


def test_numbers_do_not_go_through_the_pipe(tmp_path: Path) -> None:
    assert len(_packed({"inputs": torch.zeros(100_000)}, tmp_path)) < 1000


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("training", ["loss: is wrong", "metric: too"]),
        InterruptedRunError("stopped"),
        LostRankError("gone"),
        UserFunctionError("Epoch 1: train_epoch (mine) failed"),
    ],
)
def test_errors_of_ours_come_back_as_they_were(error: AatError, tmp_path: Path) -> None:
    error.__cause__ = ValueError("of the user's function")
    exchange = Exchange(tmp_path)
    exchange.fail(1, error)
    (found,) = exchange.failures()
    assert (found.rank, type(found.error), str(found.error)) == (1, type(error), str(error))
    assert "of the user's function" in found.error.__notes__[0]


def test_other_errors_are_named_and_memory_keeps_its_role(tmp_path: Path) -> None:
    exchange = Exchange(tmp_path)
    lacking = OutOfMemoryError("too little memory")
    lacking.role = "validate"
    exchange.fail(0, LostRankError("gone"))
    exchange.fail(1, lacking)
    exchange.fail(2, KeyError("name"))
    first, second, last = (failure.error for failure in exchange.failures())
    assert isinstance(first, OutOfMemoryError)
    assert first.role == "validate"
    assert isinstance(second, RankError)
    assert str(second) == "KeyError on rank 2: 'name'"
    assert isinstance(last, LostRankError)


def test_what_rank_0_found_comes_back_whole(tmp_path: Path) -> None:
    ended = search(tmp_path / "store", epochs=1)
    result = SearchStageResult(ended.result, Budget(baseline=0.9, drop=0.1), "run", "cpu", 1.5)
    model: dict[str, Tensor] = {"weight": torch.arange(3.0), "mask": torch.tensor([True, False])}
    exchange = Exchange(tmp_path)
    assert exchange.returned() is None
    exchange.finish(Returned(result, model, {"rate": 0.5, "names": ["a"]}))
    found = exchange.returned()
    assert found is not None
    assert found.result == result
    assert found.controller == {"rate": 0.5, "names": ["a"]}
    assert all(torch.equal(found.model[name], tensor) for name, tensor in model.items())
