"""A pipeline that several processes were started with, as `torchrun -m kedro run` does.

Rank 0 runs it like a single process. The others run no node and save nothing: they wait until rank 0 begins a search,
for which they load the splits, take part in it, and end when the run has ended.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from kedro.io import AbstractDataset, MemoryDataset
from kedro.io.core import DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from torch import device as Device

from kedro_aat.adoption.shared_files import our_nodes, stem
from kedro_aat.errors import ConfigurationError, RankError
from kedro_aat.messages import PACKAGE
from kedro_aat.ranks import group
from kedro_aat.ranks.calls import Calls
from kedro_aat.ranks.environment import launched_rank, launched_world_size
from kedro_aat.reading import describe
from kedro_aat.training.device import pick_device
from kedro_aat.training.ranks.waiting import StageCall, others_waiting
from kedro_aat.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

EVERY_RANK = "kedro_aat.every_rank"  # tag of users' nodes that all ranks run

_SEARCHES = ("finetune_adaptively", "finetune_later_stage")
_SPLITS = ("train_data", "validation_data")
_LIMITS = timedelta(seconds=1800), timedelta(seconds=600)  # of collectives and of a startup, as the settings have them
_SECONDS_FOR_A_FILE = 60.0  # a file system of several machines may show a new file late
_TO_LISTEN = timedelta(seconds=4)  # whether rank 0 has met the same error
_SECONDS_TO_END = 30.0  # within which torchrun ends this process, since rank 0 has failed


@dataclass(frozen=True)
class _Begin:
    """Rank 0 begins a node, or a search within it, in which all ranks take part.

    Attributes:
        node: Name of the node.
        values: Those of the inputs that they need and only rank 0 has, by name.
        search: The search; None if all ranks run the node itself.
    """

    node: str
    values: Mapping[str, Any]
    search: StageCall | None = None


class PipelineRanks:
    """The processes of one run of a pipeline.

    Args:
        pipeline: The nodes of the run.
        dataset_of: The dataset of a name; None if there is none.

    Raises:
        RankError: If the other processes cannot be reached.
    """

    def __init__(self, pipeline: Pipeline, dataset_of: Callable[[str], AbstractDataset[Any, Any] | None]) -> None:
        self._nodes = {node.name: node for node in pipeline.nodes}
        self._made = {stem(name) for name in pipeline.all_outputs()}
        self._dataset_of = dataset_of
        self._calls = Calls(_LIMITS[1])
        self._loaded: dict[str, Any] = {}  # by the others
        self._running: tuple[Node, Mapping[str, Any]] | None = None  # by rank 0, with its inputs
        self._stack = ExitStack()
        if self.leads:
            self._stack.enter_context(others_waiting(self._tell_search))

    @staticmethod
    def are_needed(pipeline: Pipeline) -> bool:
        """Whether a pipeline has nodes that must not run once for each process as they are."""
        return bool(our_nodes(pipeline)) or any(EVERY_RANK in node.tags for node in pipeline.nodes)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which runs the pipeline."""
        return launched_rank() == 0

    # --- rank 0 ----------------------------------------------------------------------------------------------

    def begin(self, node: Node, inputs: Mapping[str, Any]) -> None:
        """Has the other ranks run a node, if all do so; rank 0 calls it before each node.

        Args:
            node: The node.
            inputs: Its inputs by name.

        Raises:
            ConfigurationError: If an input that is only in memory cannot be sent.
            RankError: If another rank cannot load an input.
        """
        self._running = node, inputs
        if EVERY_RANK in node.tags:
            with self._meeting(None, Device("cpu"), *_LIMITS):
                pass

    def end(self, *, failed: bool = False) -> None:
        """Lets the other ranks end; rank 0 calls it when the run has ended, and is a single process from then on.

        Args:
            failed: Whether an error ended it.
        """
        self._stack.close()
        self._calls.end("failed" if failed else "ended")
        os.environ["WORLD_SIZE"] = "1"  # for whatever runs next in this process

    def _tell_search(self, call: StageCall) -> contextlib.AbstractContextManager[None]:
        training: TrainingSettings = call.stage.training
        limits = training.collective_timeout_seconds, training.startup_timeout_seconds
        return self._meeting(call, pick_device(training.device), *(timedelta(seconds=limit) for limit in limits))

    @contextmanager
    def _meeting(
        self, search: StageCall | None, device: Device, timeout: timedelta, startup: timedelta
    ) -> Iterator[None]:
        """A process group of all ranks, who know what rank 0 has begun and have what they need for it."""
        assert self._running is not None  # a search is within a node
        node, inputs = self._running
        values = {name: inputs[name] for name in _needed_everywhere(node) if self._is_only_here(name)}
        with self._calls.meet(device, timeout, startup):
            try:
                group.told(_Begin(node.name, values, search))
            except (TypeError, AttributeError, ValueError, ImportError) as error:  # as pickle raises them
                raise ConfigurationError(node.name, [_cannot_be_sent(list(values), error)]) from error
            _raise_faults(node, group.gathered(None))
            yield

    def _is_only_here(self, name: str) -> bool:
        return stem(name) in self._made and isinstance(self._dataset_of(name), MemoryDataset)

    # --- the others ------------------------------------------------------------------------------------------

    def follow(self) -> NoReturn:
        """Takes part in what all ranks do, until rank 0 says that the run has ended; then this process ends.

        Raises:
            SystemExit: In the end: 0, or 1 if the run has failed.
        """
        _keep_silent()
        # Ctrl-C reaches all processes of a terminal; what it means is rank 0's decision.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while not isinstance(call := self._calls.wait(), str):
            assert call is not None  # it has waited for ever
            with self._ending_after_errors():
                self._take_part(call)
        if call == "failed":
            _let_rank_0_end_first()
        raise SystemExit(call == "failed")

    def _take_part(self, meeting: contextlib.AbstractContextManager[None]) -> None:
        with meeting:
            begun: _Begin = group.told()
            node, fault = self._nodes[begun.node], None
            needed = _needed_everywhere(node)
            self._loaded |= begun.values
            try:
                for name in needed:
                    if name not in self._loaded:
                        self._loaded[name] = self._load(name)
            except Exception as error:
                fault = describe(error)
            if any(group.gathered(fault)):
                return  # rank 0 ends the run
            if begun.search is not None:
                begun.search.follow(*(self._loaded[name] for name in needed))
        if begun.search is None:
            node.run({name: self._loaded[name] for name in needed})

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

    @contextmanager
    def _ending_after_errors(self) -> Iterator[None]:
        """Ends this process after an error; in silence if rank 0 ends as well, since it says why."""
        try:
            yield
        except Exception as error:
            if self._calls.wait(_TO_LISTEN) == "failed":
                _let_rank_0_end_first()
            else:
                logger.error("Rank %d: %s: %s", launched_rank(), type(error).__name__, error, exc_info=error)
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # a group whose ranks are lost may wait for them at exit


def _let_rank_0_end_first() -> None:
    """Waits where torchrun, which ends the others, would name the first process that ends as the one that failed."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(_SECONDS_TO_END)


@contextmanager
def led_by_rank_0(
    pipeline: Pipeline, dataset_of: Callable[[str], AbstractDataset[Any, Any] | None]
) -> Iterator[PipelineRanks | None]:
    """A run of a pipeline without Kedro's hooks, in rank 0; the other ranks follow, and do not come back.

    Args:
        pipeline: The nodes of the run.
        dataset_of: The dataset of a name; None if there is none.

    Yields:
        The ranks, to be told of each node; None in a single process.

    Raises:
        SystemExit: In all processes but rank 0, when the run has ended.
    """
    if launched_world_size() == 1:
        yield None
        return
    ranks = PipelineRanks(pipeline, dataset_of)
    if not ranks.leads:
        ranks.follow()
    try:
        yield ranks
    except BaseException:
        ranks.end(failed=True)
        raise
    ranks.end()


def require_sequential(runner: str) -> None:
    """Makes sure that rank 0 runs one node after another, in the process that the others wait for.

    Args:
        runner: Name of Kedro's runner, or how it describes itself.

    Raises:
        ConfigurationError: If it may run several nodes at a time.
    """
    if "ParallelRunner" in runner or "ThreadRunner" in runner:
        raise ConfigurationError(
            "Before the run",
            [f"--runner: with {launched_world_size()} ranks, nodes run one after another; use SequentialRunner"],
        )


def _needed_everywhere(node: Node) -> list[str]:
    """The inputs of a node that all ranks need: the splits of a search, or all those of a node that all ranks run."""
    if EVERY_RANK in node.tags:
        return list(node.inputs)
    arguments = inspect.signature(node.func).bind(*node.inputs).arguments
    return [arguments[split] for split in _SPLITS]


def _cannot_be_sent(names: list[str], error: Exception) -> str:
    in_memory = (
        f"{', '.join(names)}, which {'is' if len(names) == 1 else 'are'} only in its memory, or " if names else ""
    )
    return (
        f"rank 0 cannot send {in_memory}the model and the settings to the other ranks by pickle: {error}. Put data "
        "into the catalog with a dataset that writes files, and define classes and functions at the top of a module"
    )


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
