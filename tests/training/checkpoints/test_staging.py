"""Copies of a state that is saved while training goes on."""

from __future__ import annotations

from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore
from kedro_aat.training.checkpoints.staging import Staging

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def state_on(device: str) -> dict[str, Any]:
    weight = torch.arange(24.0, device=device).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    counter: Counter[str] = Counter()
    counter["total"] = torch.ones(2, device=device)  # type: ignore[assignment]  # checkpoints may hold such
    return {
        "weight": weight,
        "tied": weight,
        "transposed": torch.arange(6, device=device).view(2, 3).T,
        "part": torch.arange(10, device=device)[2:7:2],
        "columns": torch.arange(24, device=device).view(4, 6)[:, ::2].T,
        "complex": (waves := torch.tensor([1 + 2j, 3 - 1j], device=device)),
        "conjugate": waves.conj(),
        "imaginary": waves.conj().imag,
        "empty": torch.empty(0, device=device),
        "counter": counter,
        "more": OrderedDict(step=torch.tensor(3.0), betas=(0.9, 0.999), name="adam"),
    }


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_stays_when_the_state_changes(device: str) -> None:
    state, copies = state_on(device), Staging()
    copied = copies.copied(state)
    copies.finish()
    state["weight"].zero_()  # the next optimizer step
    state["transposed"].zero_()
    state["complex"].zero_()
    state["counter"]["total"].zero_()
    state["more"]["step"] += 1
    copies.wait()
    expected = state_on("cpu")
    for key in ("weight", "tied", "transposed", "part", "columns", "complex", "conjugate", "imaginary", "empty"):
        assert torch.equal(copied[key], expected[key])
        assert copied[key].device.type == "cpu"
    assert copied["weight"] is copied["tied"]
    assert copied["weight"].is_contiguous(memory_format=torch.channels_last)
    assert copied["more"] == expected["more"]
    assert torch.equal(copied["counter"]["total"], torch.ones(2))


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_on_disk_is_the_state_at_the_call(device: str, tmp_path: Path) -> None:
    weight = torch.randn(512, 512, device=device)
    saved = []
    with CheckpointStore(tmp_path).open({}) as run:
        for number in range(4):
            saved.append(weight.cpu().clone())
            run.save(Checkpoint(number, {"w": weight}, {"optimizers": [{"m": weight}]}, {}), wait=False)
            weight.mul_(-2.0)
        for number, expected in enumerate(saved):
            read = run.load(number)
            assert torch.equal(read.model["w"], expected)
            assert torch.equal(read.training["optimizers"][0]["m"], expected)
