"""What every checkpoint store returns of what it saved; a part of `stores.StoreContract`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kedro_aat.errors import CheckpointError
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore, RunCheckpoints

IDENTITY = {"config": {"rate": 0.5}, "seed": 0}


def checkpoint(number: int, **model: Tensor) -> Checkpoint:
    """A checkpoint whose contents depend on its number, or on the given tensors."""
    return Checkpoint(
        number=number,
        model=model or {"weight": torch.full((3, 4), float(number)), "bias": torch.arange(4)},
        training={"optimizer": {"state": {0: {"step": number, "momentum": torch.full((5,), -1.0 * number)}}}},
        state={"epoch": number, "history": [{"metric": 0.5, "loss": None}]},
    )


def truncate(path: Path) -> None:
    """Cuts a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    """Flips a bit in the middle of a file."""
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


def fill_with_zeros(path: Path) -> None:
    """Fills a file with zeros, as a file system may leave it that was not flushed."""
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "one bit flipped": flip_a_bit,
    "zeros": fill_with_zeros,
    "missing": Path.unlink,
}


def files_of(run: RunCheckpoints, number: int) -> list[Path]:
    """All files of a checkpoint, sorted."""
    folder = run.load(number).folder
    assert folder is not None
    return sorted(path for path in folder.rglob("*") if path.is_file())


class SavingContract:
    """Checkpoints come back as they were saved."""

    @pytest.fixture
    def store(self, store_type: type[CheckpointStore], tmp_path: Path) -> CheckpointStore:
        return store_type(tmp_path / "checkpoints")

    # --- saving and loading -----------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "dtype",
        [
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        ],
    )
    def test_tensors_of_every_type_come_back_bit_for_bit(self, store: CheckpointStore, dtype: torch.dtype) -> None:
        bits = torch.randint(256, (48,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        tensor = (bits % 2).view(torch.bool) if dtype == torch.bool else bits.view(dtype)
        model = {"tensor": tensor, "scalar": tensor[0].clone(), "one": tensor[:1].clone()}
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0, **model))
            assert_same_bits(run.load(0).model, model)

    def test_special_values_come_back(self, store: CheckpointStore) -> None:
        values = torch.tensor([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-45])
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0, values=values))
            assert_same_bits(run.load(0).model, {"values": values})

    def test_tensors_of_every_layout_come_back(self, store: CheckpointStore) -> None:
        whole = torch.arange(24.0).view(4, 6)
        model = {
            "transposed": whole.t(),
            "column": whole[:, 1],
            "strided": whole[::2, ::3],
            "expanded": torch.ones(1).expand(3, 2),
            "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
            "parameter": torch.nn.Parameter(torch.randn(3)),
            "empty": torch.empty(0),
            "also_empty": torch.empty(3, 0, 2),
            "empty_integers": torch.empty(0, dtype=torch.int64),
            "scalar": torch.tensor(3),
        }
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0, **model))
            assert_same_bits(run.load(0).model, model)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_views_of_one_storage_come_back(self, store: CheckpointStore, dtype: torch.dtype) -> None:
        storage = torch.arange(10.0).to(dtype)
        model = {"first": storage[:4], "second": storage[4:], "overlapping": storage[2:6], "all": storage}
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0, **model))
            assert_same_bits(run.load(0).model, model)

    def test_slice_of_a_large_storage_is_written_alone(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0, slice=torch.zeros(1_000_000)[:10]))
            assert sum(path.stat().st_size for path in files_of(run, 0)) < 100_000

    def test_tied_tensors_are_written_once(self, store: CheckpointStore) -> None:
        tied = torch.randn(1000)
        model = {"embedding": tied, "other": torch.randn(3), "output": tied, "head": tied.view(1000)}
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0, **model))
            assert_same_bits(run.load(0).model, model)
            assert sum(path.stat().st_size for path in files_of(run, 0)) < 2 * 4000

    def test_model_without_tensors_comes_back(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            run.save(Checkpoint(0, model={}, training={}, state={}))
            assert run.load(0).model == {}

    def test_all_parts_come_back(self, store: CheckpointStore) -> None:
        saved = checkpoint(7)
        saved.training |= {"rng": torch.get_rng_state(), "python": (3, (1, 2), None), "names": ["a"], "on": True}
        with store.open(IDENTITY) as run:
            run.save(saved)
            loaded = run.load(7)
        assert loaded.number == 7
        assert loaded.state == saved.state
        assert torch.equal(loaded.training.pop("rng"), saved.training.pop("rng"))
        momentum = loaded.training["optimizer"]["state"][0].pop("momentum")
        assert torch.equal(momentum, saved.training["optimizer"]["state"][0].pop("momentum"))
        assert loaded.training == saved.training

    def test_what_was_saved_does_not_change_with_the_model(self, store: CheckpointStore) -> None:
        weight = torch.zeros(3)
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0, weight=weight))
            weight.fill_(1.0)
            assert not run.load(0).model["weight"].any()

    def test_state_dict_that_holds_more_than_tensors_is_refused(self, store: CheckpointStore) -> None:
        refused = checkpoint(0)
        refused.model = {"layer._extra_state": {"counter": 1}}
        with store.open(IDENTITY) as run:
            with pytest.raises(CheckpointError, match=r"layer\._extra_state.*dict"):
                run.save(refused)
            assert run.latest() is None

    def test_the_users_own_files_are_kept_in_the_checkpoint(self, store: CheckpointStore) -> None:
        def dump(folder: Path) -> str:
            (folder / "mine").mkdir()
            (folder / "mine" / "weights.bin").write_bytes(b"12345")
            return str(folder / "mine" / "weights.bin")

        with store.open(IDENTITY) as run:
            run.save(checkpoint(0), dump)
            loaded = run.load(0)
            assert loaded.folder is not None
            assert (loaded.folder / loaded.state["dumped"]).read_bytes() == b"12345"
            (loaded.folder / loaded.state["dumped"]).write_bytes(b"1234")
            with pytest.raises(CheckpointError, match=r"weights\.bin"):
                run.load(0)

    def test_the_users_own_file_in_another_folder_is_found(self, store: CheckpointStore, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere.bin"
        elsewhere.write_bytes(b"12345")
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0), lambda folder: elsewhere)
            loaded = run.load(0)
            assert loaded.folder is not None
            assert (loaded.folder / loaded.state["dumped"]).read_bytes() == b"12345"

    # --- several checkpoints ---------------------------------------------------------------------------------

    def test_latest_is_the_highest_number(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            assert run.latest() is None
            assert run.numbers == []
            for number in (0, 1, 2, 10, 9):
                run.save(checkpoint(number))
            latest = run.latest()
            assert latest is not None
            assert latest.number == latest.state["epoch"] == 10
            assert run.numbers == [0, 1, 2, 9, 10]

    def test_numbers_may_be_long(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            for number in (999_999, 1_000_000):
                run.save(checkpoint(number))
            assert run.numbers == [999_999, 1_000_000]

    def test_saving_removes_all_checkpoints_but_those_to_keep(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            for number in range(5):
                run.save(checkpoint(number))
            run.save(checkpoint(5), keep={1, 4, 77})
            assert run.numbers == [1, 4, 5]
            assert run.load(1).state["epoch"] == 1
            with pytest.raises(CheckpointError):
                run.load(2)
            run.save(checkpoint(6), keep=set())
            assert run.numbers == [6]

    def test_number_that_is_saved_again_is_replaced(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0, weight=torch.zeros(3)))
            run.save(checkpoint(0, weight=torch.ones(3)))
            assert run.load(0).model["weight"].tolist() == [1.0, 1.0, 1.0]
