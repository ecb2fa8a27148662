"""The contract of every checkpoint store, as a test suite to inherit.

    @pytest.mark.parametrize("store_type", [MyStore])
    class TestMyStore(StoreContract):
        pass

`MyStore` is a class that other processes can import; it is called with a folder.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kedro_aat.errors import CheckpointError
from kedro_aat.testing.store_damage import DamageContract
from kedro_aat.testing.store_saving import IDENTITY, checkpoint
from kedro_aat.training.checkpoints import CheckpointStore

HOLDER = """
import sys
from importlib import import_module
from kedro_aat.testing.store_saving import IDENTITY, checkpoint
root, module, name = sys.argv[1:]
run = getattr(import_module(module), name)(root).open(IDENTITY)
run.save(checkpoint(1))
print(run.folder, flush=True)
sys.stdin.read()
"""


@contextmanager
def process_with_run(store_type: type[CheckpointStore], root: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that holds the run `IDENTITY` until the context ends, and the folder of that run."""
    command = [sys.executable, "-c", HOLDER, str(root), store_type.__module__, store_type.__qualname__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            if process.poll() is None:
                process.communicate("", timeout=60)


class StoreContract(DamageContract):
    """What the training loops rely on. A test class inherits it and parametrizes it with `store_type`."""

<<<<<<< HEAD
=======
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

    # --- damage ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_checkpoint_is_skipped(
        self, store: CheckpointStore, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            run.save(checkpoint(1))
            num_files = len(files_of(run, 1))
            for index in range(num_files):
                run.save(checkpoint(1))
                path = files_of(run, 1)[index]
                DAMAGES[damage](path)
                with pytest.raises(CheckpointError):
                    run.load(1)
                with caplog.at_level(logging.WARNING):
                    latest = run.latest()
                assert latest is not None, path.name
                assert latest.number == 0, path.name
                assert str(path.parent) in caplog.messages[-1]

    def test_every_byte_of_a_checkpoint_counts(self, store: CheckpointStore) -> None:
        """Including the manifest, which has no checksum of its own."""
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            for path in files_of(run, 0):
                contents = path.read_bytes()
                for position in range(0, len(contents), max(1, len(contents) // 100)):
                    flipped = bytearray(contents)
                    flipped[position] ^= 1
                    path.write_bytes(flipped)
                    with pytest.raises(CheckpointError):
                        run.load(0)
                path.write_bytes(contents)
            assert run.load(0).number == 0

    def test_latest_skips_all_damaged_checkpoints(
        self, store: CheckpointStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        with store.open(IDENTITY) as run:
            for number in range(4):
                run.save(checkpoint(number))
            for number in (1, 2, 3):
                truncate(files_of(run, number)[0])
            latest = run.latest()
            assert latest is not None
            assert latest.number == 0
            assert len(caplog.messages) == 3
            truncate(files_of(run, 0)[0])
            assert run.latest() is None

    def test_run_replaces_a_damaged_checkpoint(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            run.save(checkpoint(1))
            truncate(files_of(run, 1)[-1])
        with store.open(IDENTITY) as run:
            run.save(checkpoint(1))
            latest = run.latest()
            assert latest is not None
            assert latest.number == 1

    def test_what_a_killed_process_was_writing_is_no_checkpoint(self, store: CheckpointStore) -> None:
        def killed_while_writing(folder: Path) -> None:
            (folder / "mine.bin").write_bytes(b"1")
            raise KeyboardInterrupt

        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            with pytest.raises(KeyboardInterrupt):
                run.save(checkpoint(1), killed_while_writing)
            assert run.numbers == [0]
        with store.open(IDENTITY) as run:
            assert not list(run.folder.rglob("mine.bin"))  # its file is removed
            assert run.numbers == [0]
            latest = run.latest()
            assert latest is not None
            assert latest.number == 0
            run.save(checkpoint(1))
            assert run.numbers == [0, 1]

    def test_failed_save_can_be_repeated(self, store: CheckpointStore) -> None:
        def fail(folder: Path) -> None:
            raise RuntimeError("no space left")

        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            with pytest.raises(RuntimeError, match="no space left"):
                run.save(checkpoint(1), fail)
            run.save(checkpoint(1))
            assert run.load(1).number == 1

>>>>>>> less
    # --- safety ----------------------------------------------------------------------------------------------

    def test_objects_that_cannot_be_read_back_safely_are_refused(self, store: CheckpointStore) -> None:
        unsafe = checkpoint(0)
        unsafe.training["scheduler"] = {"path": Path("/tmp"), "function": print}
        with store.open(IDENTITY) as run:
            with pytest.raises(CheckpointError, match=r"get_state\(\) and state_dict\(\) return tensors"):
                run.save(unsafe)
            assert run.latest() is None
            run.save(checkpoint(0))  # the corrected state is saved
            assert run.load(0).number == 0

    def test_unsafe_objects_are_refused_at_any_checkpoint(self, store: CheckpointStore) -> None:
        """A scheduler may hold no such object until it has stepped."""
        unsafe = checkpoint(1)
        unsafe.training["scheduler"] = {"best": Path("/tmp")}
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            with pytest.raises(CheckpointError, match=r"get_state\(\) and state_dict\(\) return tensors"):
                run.save(unsafe)
            latest = run.latest()
            assert latest is not None
            assert latest.number == 0

    # --- runs ------------------------------------------------------------------------------------------------

    def test_same_identity_finds_the_same_run(self, store: CheckpointStore, store_type: type[CheckpointStore]) -> None:
        with store.open({"a": 1, "b": {"c": [1, 2], "d": Path("x")}}) as run:
            run.save(checkpoint(3))
            folder = run.folder
        again = store_type(store.root)
        with again.open({"b": {"d": Path("x"), "c": [1, 2]}, "a": 1}) as run:
            assert run.folder == folder
            latest = run.latest()
            assert latest is not None
            assert latest.number == 3

    @pytest.mark.parametrize(
        "other",
        [{"config": {"rate": 0.51}, "seed": 0}, {"config": {"rate": 0.5}, "seed": 1}, {**IDENTITY, "more": None}, {}],
    )
    def test_another_identity_is_another_run(self, store: CheckpointStore, other: dict[str, Any]) -> None:
        with store.open(IDENTITY) as run, store.open(other) as another:
            run.save(checkpoint(3))
            assert another.folder != run.folder
            assert another.latest() is None

    def test_run_saves_its_identity(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            written = [json.loads(path.read_text()) for path in run.folder.glob("*.json")]
        assert written == [IDENTITY]

    def test_finished_run_is_reused_or_not_as_requested(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            assert not run.is_finished
            run.save(checkpoint(3))
            run.finish()
            finished = run.folder
        with store.open(IDENTITY) as run:
            assert run.folder == finished
            assert run.is_finished
            assert run.numbers == [3]
        with store.open(IDENTITY, reuse_finished=False) as run:
            assert run.folder != finished
            assert not run.is_finished
            assert run.latest() is None
            run.save(checkpoint(1))
            second = run.folder
        # The second run has not finished, so it continues.
        with store.open(IDENTITY, reuse_finished=False) as run:
            assert run.folder == second
            assert run.numbers == [1]

    def test_unfinished_run_continues(self, store: CheckpointStore) -> None:
        for reuse_finished in (True, False):
            with store.open(IDENTITY, reuse_finished=reuse_finished) as run:
                folder = run.folder
        with store.open(IDENTITY) as run:
            assert run.folder == folder

    def test_one_process_cannot_hold_a_run_twice(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            with pytest.raises(CheckpointError, match="holds the run"):
                store.open(IDENTITY)
            with store.open(IDENTITY, reuse_finished=False) as other:
                assert other.folder != run.folder
        with store.open(IDENTITY) as again:
            assert again.folder == run.folder

    def test_two_processes_cannot_hold_one_run(self, store: CheckpointStore, store_type: type[CheckpointStore]) -> None:
        with process_with_run(store_type, store.root) as (_, folder):
            with pytest.raises(CheckpointError, match="Another process holds the run") as caught:
                store.open(IDENTITY)
            assert str(folder) in str(caught.value)
            with store.open(IDENTITY, reuse_finished=False) as run:
                assert run.folder != folder
                assert run.latest() is None
        with store.open(IDENTITY) as run:
            assert run.folder == folder
            assert run.numbers == [1]

    def test_run_of_a_killed_process_is_free(self, store: CheckpointStore, store_type: type[CheckpointStore]) -> None:
        with process_with_run(store_type, store.root) as (process, folder):
            os.kill(process.pid, signal.SIGKILL)
            process.wait(timeout=60)
            with store.open(IDENTITY) as run:
                assert run.folder == folder
                assert run.numbers == [1]

    def test_store_is_a_handle_that_can_be_copied(self, store: CheckpointStore) -> None:
        with copy.deepcopy(store).open(IDENTITY) as run:
            run.save(checkpoint(3))
        with store.open(IDENTITY) as run:
            assert run.numbers == [3]
