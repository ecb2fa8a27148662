"""A pipeline that several processes were started with, as `torchrun -m kedro run` does.

Rank 0 runs it like a single process. The others run no node and save nothing: they wait until rank 0 begins a search,
for which they load the splits, take part in it, and end when the run has ended.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
from kedro.io import AbstractDataset, MemoryDataset
from kedro.io.core import DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kedro_aat.adoption.shared_files import our_nodes, stem
from kedro_aat.errors import ConfigurationError, RankError
from kedro_aat.messages import PACKAGE
from kedro_aat.ranks import group
from kedro_aat.reading import describe
from kedro_aat.training.ranks.waiting import StageCall, others_waiting

logger = logging.getLogger(__name__)

EVERY_RANK = "kedro_aat.every_rank"  # tag of users' nodes that all ranks run

_SEARCHES = ("finetune_adaptively", "finetune_later_stage")
_SPLITS = ("train_data", "validation_data")
_STARTUP = timedelta(minutes=10)
_COLLECTIVE = timedelta(minutes=30)
_SECONDS_FOR_A_FILE = 60.0  # a file system of several machines may show a new file late
_SECONDS_TO_LISTEN = 4.0  # whether rank 0 has met the same error
_SECONDS_TO_END = 2.0  # rank 0 ends first, so that a launcher names it as the one that failed


@dataclass(frozen=True)
class _Begin:
    """Rank 0 begins a node in which all ranks take part.

    Attributes:
        node: Name of the node.
        values: Those of the inputs that they need and only rank 0 has, by name.
    """

    node: str
    values: Mapping[str, Any]


class PipelineRanks:
    """The processes of one run of a pipeline.

    Args:
        pipeline: The nodes of the run.
        dataset_of: The dataset of a name; None if there is none.
    """

    def __init__(self, pipeline: Pipeline, dataset_of: Callable[[str], AbstractDataset[Any, Any] | None]) -> None:
        self._nodes = {node.name: node for node in pipeline.nodes}
        self._made = {stem(name) for name in pipeline.all_outputs()}
        self._dataset_of = dataset_of
        self._loaded: dict[str, Any] = {}
        self._splits: list[Any] = []  # of the search that has begun
        self._stack = ExitStack()
        self._has_joined = False

    @staticmethod
    def are_needed(pipeline: Pipeline) -> bool:
        """Whether a pipeline has nodes that must not run once for each process as they are."""
        return bool(our_nodes(pipeline)) or any(EVERY_RANK in node.tags for node in pipeline.nodes)

    def join(self) -> bool:
        """Waits for all processes, and returns whether this one is rank 0, which runs the pipeline.

        Raises:
            RankError: If some of them do not come.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._stack.enter_context(group.joined(device, timeout=_COLLECTIVE, startup=_STARTUP))
        self._has_joined = True
        if group.is_main():
            self._stack.enter_context(others_waiting())
        return group.is_main()

    @staticmethod
    def require_sequential(runner: str) -> None:
        """Makes sure that rank 0 runs one node after another, in the process that has joined.

        Args:
            runner: Name of Kedro's runner, or how it describes itself.

        Raises:
            ConfigurationError: If it may run several nodes at a time.
        """
        if "ParallelRunner" in runner or "ThreadRunner" in runner:
            raise ConfigurationError(
                "Before the run",
                [f"--runner: with {group.world_size()} ranks, nodes run one after another; use SequentialRunner"],
            )

    # --- rank 0 ----------------------------------------------------------------------------------------------

    def begin(self, node: Node, inputs: Mapping[str, Any]) -> None:
        """Has the other ranks begin a node, if they take part in it; rank 0 calls it before it does so itself.

        Args:
            node: The node.
            inputs: Its inputs by name.

        Raises:
            ConfigurationError: If an input that is only in memory cannot be sent.
            RankError: If another rank cannot load an input.
        """
        needed = _needed_everywhere(node)
        if needed is None:
            return
        values = {name: inputs[name] for name in needed if self._is_only_here(name)}
        try:
            group.told(_Begin(node.name, values))
        except (TypeError, AttributeError, ValueError, ModuleNotFoundError) as error:  # as pickle raises them
            listed = ", ".join(values)
            raise ConfigurationError(
                "Data",
                [
                    f"{listed}: only in the memory of rank 0, and cannot be sent to the other ranks ({error}); add "
                    f"{'it' if len(values) == 1 else 'them'} to the catalog with a dataset that writes files"
                ],
            ) from error
        _raise_faults(node, group.gathered(None))

    def end(self, *, failed: bool = False) -> None:
        """Lets the other ranks end; rank 0 calls it when the run has ended.

        Args:
            failed: Whether an error ended it. The others, which may be in the middle of a node, then find rank 0 gone.
        """
        with suppress(RuntimeError), self._stack:  # a rank may be lost, which matters no longer
            if not failed and self._has_joined:
                group.told(None)
        self._has_joined = False

    def _is_only_here(self, name: str) -> bool:
        return stem(name) in self._made and isinstance(self._dataset_of(name), MemoryDataset)

    # --- the others ------------------------------------------------------------------------------------------

    def follow(self) -> NoReturn:
        """Takes part in the nodes that all ranks run, until rank 0 says that the run has ended; then this process ends.

        Raises:
            SystemExit: In the end: 0, or 1 if the run has failed.
        """
        _keep_silent()
        # Ctrl-C reaches all processes of a terminal; what it means is rank 0's decision.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            told: _Begin | StageCall | None
            while (told := group.told()) is not None:
                if isinstance(told, StageCall):
                    self._search(told)
                else:
                    self._begin(told)
        except RuntimeError:  # as torch reports that rank 0 is gone
            time.sleep(_SECONDS_TO_END)
            raise SystemExit(1) from None
        self._stack.close()
        raise SystemExit(0)

    def _begin(self, begun: _Begin) -> None:
        node, fault = self._nodes[begun.node], None
        needed = _needed_everywhere(node) or []
        self._loaded |= begun.values
        try:
            for name in needed:
                if name not in self._loaded:
                    self._loaded[name] = self._load(name)
        except Exception as error:
            fault = describe(error)
        if any(group.gathered(fault)):
            return  # rank 0 ends the run
        if EVERY_RANK in node.tags:
            with _ending_after_errors():
                node.run({name: self._loaded[name] for name in needed})
        else:
            self._splits = [self._loaded[name] for name in needed]

    def _search(self, call: StageCall) -> None:
        with _ending_after_errors():
            call.follow(*self._splits)

    def _load(self, name: str) -> Any:
        dataset = self._dataset_of(name)
        if dataset is None:
            raise DatasetError(f"{name} is not in the catalog")
        last = time.monotonic() + _SECONDS_FOR_A_FILE
        while True:
            try:
                if stem(name) in self._made:
                    dataset.release()  # what it knows of its versions is older than rank 0's file
                return dataset.load()
            except DatasetError:
                if stem(name) not in self._made or time.monotonic() > last:
                    raise
                time.sleep(0.5)


def _needed_everywhere(node: Node) -> list[str] | None:
    """The inputs of a node that all ranks need; None if rank 0 alone runs it."""
    if EVERY_RANK in node.tags:
        return list(node.inputs)
    function = node.func
    if not function.__module__.startswith("kedro_aat.") or function.__name__ not in _SEARCHES:
        return None
    arguments = inspect.signature(function).bind(*node.inputs).arguments
    return [arguments[split] for split in _SPLITS]


def _raise_faults(node: Node, faults: list[str | None]) -> None:
    """Raises the errors of the ranks that could not load an input of a node."""
    listed = "".join(f"\n  - rank {number}: {fault}" for number, fault in enumerate(faults) if fault)
    if listed:
        raise RankError(
            f"{node.name}: {sum(map(bool, faults))} of {len(faults)} ranks cannot load their inputs. All machines need "
            f"the same project and data, and a file system that they share for what the run writes.{listed}"
        )


def _keep_silent() -> None:
    """Leaves what is logged and warned of to rank 0, which does the same."""
    for name in ("kedro", "py.warnings"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


@contextmanager
def _ending_after_errors() -> Iterator[None]:
    """Ends this process after an error; in silence if rank 0 ends as well, since it says why."""
    try:
        yield
    except Exception as error:
        has_ended = threading.Event()

        def listen() -> None:
            with suppress(RuntimeError):
                group.told()
            has_ended.set()

        threading.Thread(target=listen, daemon=True).start()
        if has_ended.wait(_SECONDS_TO_LISTEN):
            time.sleep(_SECONDS_TO_END)
        else:
            logger.error("Rank %d: %s: %s", group.rank(), type(error).__name__, error, exc_info=error)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # the thread above may still wait
