"""Real servers for tests: an object store that speaks S3, and PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import fsspec


class ObjectStore(NamedTuple):
    """An S3 server.

    Attributes:
        endpoint: Its URL.
    """

    endpoint: str

    @property
    def options(self) -> dict[str, Any]:
        """Arguments with which fsspec reaches it, as Kedro's `credentials` have them."""
        return {"key": "key", "secret": "secret", "client_kwargs": {"endpoint_url": self.endpoint}}

    def bucket(self, name: str) -> str:
        """URL of a new bucket."""
        self.files.mkdir(name)
        return f"s3://{name}"

    @property
    def files(self) -> Any:
        return fsspec.filesystem("s3", **self.options)


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Starts moto's S3 server on a free port; it serves one request at a time, so that conditional puts are atomic."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield ObjectStore(f"http://127.0.0.1:{server.port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


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
