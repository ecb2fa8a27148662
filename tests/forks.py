"""Commands in forks of one process that has imported the slow libraries.

A small `kedro run` spends more time importing torch, pandas and the exporter than working. Therefore one server imports
them once for all workers of pytest, and forks for each command. Such a command is still a process with its own working
directory, environment, signals and exit code; only its seed of `hash` is that of all others.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tests.exports import collect_once, warm_up

ROOT = Path(__file__).parents[1]
ADDRESS = "KEDRO_AAT_FORK_SERVER"  # environment variable with the path of the server's socket

# What takes time to import in a run. Neither kedro_aat, since tests choose where it is installed, nor onnxruntime,
# whose import starts a thread that a fork would lose.
PRELOADED = (
    "kedro.framework.cli",
    "kedro.framework.session",
    "kedro_datasets.pandas",
    "kedro_datasets.plotly",
    "onnxscript",
    "plotly.graph_objects",
    "pydantic",
    "requests",  # by Kedro's telemetry
    "sklearn.model_selection",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
    "torchmetrics.classification",
)
GARBAGE_THRESHOLDS = (20_000, 10, 10)  # Python's own are (700, 10, 10)


class Request(NamedTuple):
    """What a forked process does.

    Attributes:
        function: Function of a module that the server can import.
        arguments: Its arguments.
        folder: Working directory.
        environment: All environment variables.
        output: File for standard output and standard error.
    """

    function: Callable[..., object]
    arguments: tuple[Any, ...]
    folder: Path
    environment: dict[str, str]
    output: Path


class Command:
    """A command in a process of its own, which leads a process group. It is killed if this object goes away first.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        request.output.touch()  # so that it can be read before the command has begun
        self._connection = Client(os.environ[ADDRESS])
        self._connection.send(request)
        self._exit_code: int | None = None
        self.pid: int = self._connection.recv()

    def poll(self, timeout: float = 0) -> int | None:
        """Returns the exit code (negative for a signal), or None if the command still runs after `timeout` seconds."""
        if self._exit_code is None and self._connection.poll(timeout):
            self._exit_code = self._connection.recv()
            self._connection.close()
        return self._exit_code

    def wait(self, timeout: float = 900) -> int:
        """Waits for the end, and returns the exit code."""
        code = self.poll(timeout)
        assert code is not None, f"no end after {timeout} seconds:\n{self.output}"
        return code

    @property
    def output(self) -> str:
        """What the command has printed."""
        return self._request.output.read_text()


class ForkServer:
    """The server, as a child process; it imports nothing slow until the first command is started."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        address = os.environ[ADDRESS] = os.path.join(self._folder.name, "socket")
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.forks import serve; serve({address!r})"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # a fork would lose the threads of OpenMP
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # whoever interrupts pytest does not interrupt the server
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # written when it listens

    def stop(self) -> None:
        """Ends the server and all its commands, and waits for it."""
        if self._process.poll() is None:
            with Client(os.environ[ADDRESS]) as connection:
                connection.send(None)
            self._process.wait()
        self._folder.cleanup()


def serve(address: str) -> None:
    """Forks for each request until it is told to stop."""
    with Listener(address) as listener:
        print("listening", flush=True)
        while (request := (connection := listener.accept()).recv()) is not None:
            _preload()
            if os.fork() == 0:
                _attend(connection, request)
            connection.close()
            while _reap(os.WNOHANG):
                pass
    while _reap():
        pass


def collect_garbage_rarely() -> None:
    """Keeps the collector from going through all objects of torch time and again: a tenth of the time of an export."""
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


@functools.cache  # only the first time
def _preload() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    collect_once()
    warm_up()
    assert "kedro_aat" not in sys.modules
    gc.collect()
    collect_garbage_rarely()  # a collection in a fork would copy the memory that it shares


def _reap(options: int = 0) -> bool:
    """Takes note that a fork has ended; False if none has."""
    try:
        return os.waitpid(-1, options)[0] != 0
    except ChildProcessError:
        return False


def _attend(connection: Connection, request: Request) -> NoReturn:
    """Runs the command in one more fork, sends its process id and exit code, and kills it if nobody listens."""
    command = get_context("fork").Process(target=_run, args=(request,))
    command.start()
    assert command.pid is not None
    with contextlib.suppress(OSError):  # nobody listens
        connection.send(command.pid)
        if connection in wait([command.sentinel, connection]):
            os.killpg(command.pid, signal.SIGKILL)
        command.join()
        connection.send(command.exitcode)
    os._exit(0)


def _run(request: Request) -> None:
    """Makes this process like one that was started for the request, and runs it."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(request.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    packages = request.environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [str(request.folder), *filter(None, packages)]
    request.function(*request.arguments)


def kedro(*arguments: str) -> None:
    """Runs `kedro` with arguments, as `python -m kedro` does."""
    import yaml
    from kedro.framework.cli import main
    from kedro.framework.project import configure_logging

    # Kedro configures logging when it is imported, which was in another folder.
    if (logging := Path("conf/logging.yml")).exists():
        configure_logging(yaml.safe_load(logging.read_text()))
    sys.argv = ["kedro", *arguments]
    main()


def script(name: str) -> None:
    """Runs a script, as `python NAME` does."""
    sys.argv = [name]
    runpy.run_path(name, run_name="__main__")


def module(name: str, *arguments: str) -> None:
    """Runs a module, as `python -m NAME` does."""
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def notebook(path: Path) -> None:
    """Runs the cells of a notebook in IPython, and formats what they return as Jupyter does."""
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    for cell in nbformat.read(path, as_version=4).cells:  # type: ignore[no-untyped-call]
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()  # type: ignore[no-untyped-call]
