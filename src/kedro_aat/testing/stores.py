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
from kedro_aat.testing.store_faults import FaultContract
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


class StoreContract(FaultContract):
    """What the training loops rely on. A test class inherits it and parametrizes it with `store_type`."""

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
            (written,) = (json.loads(path.read_text()) for path in run.folder.glob("*.json"))
        assert written.items() >= IDENTITY.items()

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
            with pytest.raises(CheckpointError, match="Another process is using"):
                store.open(IDENTITY)
            with store.open(IDENTITY, reuse_finished=False) as other:
                assert other.folder != run.folder
        with store.open(IDENTITY) as again:
            assert again.folder == run.folder

    def test_two_processes_cannot_hold_one_run(self, store: CheckpointStore, store_type: type[CheckpointStore]) -> None:
        with process_with_run(store_type, store.root) as (_, folder):
            with pytest.raises(CheckpointError, match="Another process is using") as caught:
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
