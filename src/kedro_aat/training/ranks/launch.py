"""Starts the ranks where nobody else has, and starts them again when one dies.

The process that starts them does not train. Signals reach it alone, since the ranks have a session of their own, and
it tells rank 0, which handles them as a single process does.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from kedro_aat.budget import Outcome
from kedro_aat.errors import InterruptedRunError, LostRankError, OutOfMemoryError, RankError
from kedro_aat.messages import PACKAGE
from kedro_aat.training.guards.interruption import interruptible
from kedro_aat.training.ranks.exchange import Exchange, Returned
from kedro_aat.training.ranks.leading import rank_error
from kedro_aat.training.ranks.stage_inputs import SearchStageResult, StageInputs
from kedro_aat.training.stopwatch import Stopwatch

if TYPE_CHECKING:
    from kedro_aat.training.stage import SearchStage

# Starts without a new checkpoint after which the run is given up.
MAXIMAL_FRUITLESS_STARTS = 3
# Seconds that rank 0 gets to end at once, before all ranks are killed; what is saved stays.
PATIENCE = 4.0
_INTERVAL = 0.1

logger = logging.getLogger(__name__)


def run_on_ranks(stage: SearchStage, inputs: StageInputs) -> SearchStageResult:
    """Runs a search stage on as many new processes as its settings say.

    Args:
        stage: The stage.
        inputs: What it works on; the controller and its model become what rank 0 found.

    Raises:
        ConfigurationError: If something cannot be passed to another process.
        InterruptedRunError: If the run was stopped; the same call continues it.
        RankError: If ranks die again and again.
        AatError: What a rank has raised.
    """
    with tempfile.TemporaryDirectory(prefix="kedro-aat-ranks-") as folder:
        exchange = Exchange(Path(folder))
        given = exchange.give(stage, inputs)
        returned = _until_it_ends(stage, inputs, exchange, (Path(folder), given))
    inputs.controller.model.load_state_dict(returned.model)
    inputs.controller.load_state(returned.controller)
    inputs.controller.disable_scheduler()
    return returned.result


def _until_it_ends(stage: SearchStage, inputs: StageInputs, exchange: Exchange, passed: tuple[Path, bytes]) -> Returned:
    size, num_fruitless, num_halvings, stopwatch = stage.training.devices, 0, 0, inputs.stopwatch
    with interruptible(tells=False) as interruption:
        while True:
            before = _last_progress(inputs)
            ranks = _Ranks(size, exchange, (*passed, stopwatch, num_halvings), stage.training.startup_timeout_seconds)
            is_stopped, is_told = False, False
            try:
                while ranks.are_alive(_INTERVAL):
                    if interruption.is_requested and not is_told:
                        is_told = ranks.signal_first(signal.SIGINT)
            except KeyboardInterrupt:
                is_stopped = True
            finally:
                ranks.stop()
            if (returned := exchange.returned()) is not None:
                return returned
            if is_stopped or interruption.is_requested:
                raise _interrupted(exchange)
            if _lacked_memory(exchange, stage, num_halvings):
                num_halvings += 1
            else:
                num_fruitless = 0 if _last_progress(inputs) > before else num_fruitless + 1
                _begin_again_or_raise(ranks, exchange, num_fruitless)
            exchange.begin_again()
            stopwatch = Stopwatch()


def _interrupted(exchange: Exchange) -> InterruptedRunError:
    for failure in exchange.failures():
        if isinstance(failure.error, InterruptedRunError):
            return failure.error
    return InterruptedRunError(f"The run was stopped. {Outcome.INTERRUPTED.advice}")


def _lacked_memory(exchange: Exchange, stage: SearchStage, num_halvings: int) -> bool:
    """Whether a rank had too little memory, and batches can be halved once more."""
    wants = stage.training.on_out_of_memory == "halve_batch" and 2 ** (num_halvings + 1) <= stage.training.batch_size
    return wants and any(isinstance(failure.error, OutOfMemoryError) for failure in exchange.failures())


def _begin_again_or_raise(ranks: _Ranks, exchange: Exchange, num_fruitless: int) -> None:
    """Says that a rank was lost; raises what a rank has raised, or an error if it makes no sense to go on."""
    for failure in exchange.failures():
        # Whoever ends the ranks after one has died sends SIGTERM to rank 0, which takes it for an interruption.
        if not isinstance(failure.error, LostRankError | InterruptedRunError):
            raise failure.error
    known = {failure.rank for failure in exchange.failures()}
    dead = [str(rank) for rank in range(ranks.size) if rank not in known]
    what = f"Rank {' and '.join(dead) or '0'} of {ranks.size} ended without a word"
    if any(exchange.process_of(rank) is None for rank in range(ranks.size)) and not known:
        raise RankError(
            f"{what} before it began: see its output above. A script that trains on several devices must do so under "
            'if __name__ == "__main__":, since the processes that it starts import it.'
        ) from ranks.error
    if num_fruitless >= MAXIMAL_FRUITLESS_STARTS:
        raise RankError(
            f"{what}, the {num_fruitless}th time without an epoch between. If the system ended it for lack of memory, "
            "lower training.batch_size or training.devices; the same command continues the run."
        ) from ranks.error
    logger.warning("%s. All ranks start again from the last checkpoint.", what)


def _last_progress(inputs: StageInputs) -> float:
    """When the last checkpoint of the store was written."""
    times = [0.0]
    for path in inputs.store.root.glob("*/checkpoint-*"):
        with contextlib.suppress(OSError):  # it was removed meanwhile
            times.append(path.stat().st_mtime)
    return max(times)


class _Ranks:
    """The processes of one start, each start with a rendezvous of its own.

    Attributes:
        size: Number of ranks.
        error: Why the start has ended; None if it has not, or well.
    """

    def __init__(
        self, size: int, exchange: Exchange, given: tuple[Path, bytes, Stopwatch, int], startup_seconds: float
    ) -> None:
        self.size, self._exchange = size, exchange
        self.error: BaseException | None = None
        # Not the thread itself: Ctrl-C while Python 3.11 waits for one makes it look as if it had ended.
        self._ended = threading.Event()
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=size,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # any free port
            rdzv_configs={"timeout": int(startup_seconds) + 1},
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=_INTERVAL,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=str(given[0])),
        )
        level = logging.getLogger(PACKAGE).getEffectiveLevel()
        # Within a thread, torch leaves the handling of signals to us.
        threading.Thread(target=self._run, args=(config, (*given, level)), daemon=True).start()

    def _run(self, config: LaunchConfig, given: tuple[object, ...]) -> None:
        try:
            with _quiet_agent():
                elastic_launch(config, _compute_rank)(*given)
        except BaseException as error:
            self.error = error
        finally:
            self._ended.set()

    def are_alive(self, seconds: float) -> bool:
        """Whether they have not ended after so many seconds."""
        return not self._ended.wait(seconds)

    def signal_first(self, number: int) -> bool:
        """Sends a signal to rank 0; False if it has not begun."""
        process = self._exchange.process_of(0)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        return process is not None

    def stop(self) -> None:
        """Ends those that are left: rank 0 is asked to, and after a while all are killed."""
        if self.are_alive(0) and self.signal_first(signal.SIGTERM):
            self.are_alive(PATIENCE)
        while self.are_alive(_INTERVAL):
            for rank in range(self.size):
                if (process := self._exchange.process_of(rank)) is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)


@contextlib.contextmanager
def _quiet_agent() -> Iterator[None]:
    """Lets torch's agent log nothing: what it says of a lost rank, we say."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _compute_rank(folder: Path, given: bytes, stopwatch: Stopwatch, num_halvings: int, level: int) -> None:
    """Is one rank, in a process of its own."""
    rank, exchange = int(os.environ["RANK"]), Exchange(folder)
    os.setsid()  # a terminal sends Ctrl-C to its session
    _end_with_parent()
    exchange.begin(rank)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger(PACKAGE).setLevel(level if rank == 0 else logging.ERROR)
    if sys.platform == "linux":  # which needs no name of this machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if rank > 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 says what it means
    try:
        stage, inputs = exchange.take(given)
        inputs.stopwatch, inputs.num_halvings = stopwatch, num_halvings
        if stage.training.num_threads is None:
            torch.set_num_threads(max(1, torch.get_num_threads() // stage.training.devices))
        result = stage.run_on(inputs)
        if rank == 0:
            controller = inputs.controller
            exchange.finish(Returned(result, controller.model.state_dict(), controller.get_state()))
    except KeyboardInterrupt:
        _fail(exchange, rank, InterruptedRunError(f"The run was stopped. {Outcome.INTERRUPTED.advice}"))
    except Exception as error:
        _fail(exchange, rank, error)


def _fail(exchange: Exchange, rank: int, error: Exception) -> NoReturn:
    lost = rank_error(error)
    exchange.fail(rank, lost if isinstance(lost, LostRankError) else error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # a group whose ranks are lost may wait for them at exit


def _end_with_parent() -> None:
    """Ends this process when the one that started it ends, whatever ends that."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # it is spawned

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
