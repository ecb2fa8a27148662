"""Large tensors in checkpoints: how they are written, and which of the optimizers' are removed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kedro_aat.errors import CheckpointError
from kedro_aat.testing.store_saving import IDENTITY
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore, RunCheckpoints, large_tensors
from kedro_aat.training.checkpoints.checked import checksum_of
from kedro_aat.training.checkpoints.tensor_files import DTYPES, read_tensors, write_tensors
from tests.training.checkpoints import small_search


def every_type() -> dict[str, Tensor]:
    bits = torch.randint(2, (24,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {str(dtype): bits.view(torch.bool) if dtype == torch.bool else bits.view(dtype) for dtype in DTYPES.values()}


def test_files_are_those_of_safetensors(tmp_path: Path) -> None:
    tensors = every_type() | {"scalar": torch.tensor(3), "empty": torch.empty(0, 2), "rows": torch.randn(3, 5).t()}
    checksum = write_tensors(tensors, tmp_path / "ours")
    assert checksum == checksum_of(tmp_path / "ours")
    assert_same_bits(load_file(tmp_path / "ours"), tensors)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, tmp_path / "theirs")
    read, checksum = read_tensors(tmp_path / "theirs")
    assert_same_bits(read, tensors)
    assert checksum == checksum_of(tmp_path / "theirs")


@pytest.mark.parametrize("shape", [(1024,), (33, 37), (8, 3, 64, 1), (4096, 1)])
def test_large_masks_are_written_as_bits(tmp_path: Path, shape: tuple[int, ...]) -> None:
    mask = torch.randn(shape) > 0
    tensors = {
        "mask": mask,
        "same": mask,
        "transposed": mask.t() if mask.dim() == 2 else mask,
        "small": mask[:1] * 1 > 0,
    }
    write_tensors({"mask": mask}, tmp_path / "one")
    assert (tmp_path / "one").stat().st_size < mask.numel() / 8 + 300
    write_tensors(tensors, tmp_path / "all")
    assert_same_bits(read_tensors(tmp_path / "all")[0], tensors)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, 4),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 8),
        ({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, 4),
        ({"a": {"dtype": "F32", "shape": [0, 1 << 70], "data_offsets": [0, 0]}}, 0),
        ({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, 4),
        ({"a": {"dtype": "object", "shape": [1], "data_offsets": [0, 4]}}, 4),
        ({"a": {}}, 0),
        ({"__metadata__": {"b": "a"}}, 0),
        ([], 0),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: object, size: int) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        read_tensors(tmp_path / "file")


def test_tensors_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weight .*complex128"):
        write_tensors({"weight": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "file")


# --- optimizers ------------------------------------------------------------------------------------------------


def trained(run: RunCheckpoints, number: int, keep_optimizers: set[int] | None = None) -> torch.optim.Optimizer:
    """Saves a checkpoint of a network that was trained for a step, with large and small tensors in its optimizer."""
    net = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64, 300))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types leave it out
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(2, 64, 3, 3)).square().sum().backward()
    optimizer.step()
    training = {"optimizers": [optimizer.state_dict()], "rng": torch.get_rng_state()}
    run.save(Checkpoint(number, net.state_dict(), training, {}), keep_optimizers=keep_optimizers, wait=False)
    return optimizer


def test_optimizers_come_back_with_the_order_of_their_elements(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        saved = trained(run, 0).state_dict()["state"]
        (loaded,) = run.load(0).training["optimizers"]
        assert (run.folder / "checkpoint-000000" / "optimizers.safetensors").exists()
    for index, tensors in saved.items():
        assert_same_bits(loaded["state"][index], tensors)
        for name, tensor in tensors.items():
            assert loaded["state"][index][name].stride() == tensor.stride(), (index, name)


def test_optimizers_are_kept_where_they_are_needed(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path).open(IDENTITY) as run:
        for number in range(5):
            trained(run, number, {1, number - 1})
        assert run.numbers == [0, 1, 2, 3, 4]
        assert ["optimizers" in run.load(number).training for number in run.numbers] == [False, True, False, True, True]
        assert "optimizers" not in run.load(4, optimizers=False).training
        assert "rng" in run.load(0).training
        sizes = [sum(path.stat().st_size for path in (run.folder / f"checkpoint-00000{n}").iterdir()) for n in (0, 4)]
        assert sizes[0] < 1.1 * sizes[1] / 3


def test_lost_optimizers_are_told_of_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the newest two checkpoints are left as they were; both are damaged."""
    monkeypatch.setattr(large_tensors, "LARGE", 1)
    whole = small_search.search(tmp_path)
    kept = sorted(whole.folder.glob("checkpoint-*"))
    assert [(folder / "optimizers.safetensors").exists() for folder in kept[-2:]] == [True, True]
    for folder in kept[-2:]:
        (folder / "manifest.json").unlink()
    start = int(kept[-3].name[-6:])
    assert not (kept[-3] / "optimizers.safetensors").exists()
    with caplog.at_level(logging.WARNING):
        ended = small_search.search(tmp_path)
    assert ended.trained == list(range(start + 1, 9))
    assert f"Checkpoint {start} has no optimizers any more" in caplog.text
    assert ended.result.outcome is whole.result.outcome
