"""An S3 server of moto in a thread, which answers over the network as S3 does."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import fsspec

KEYS = {"key": "an-access-key", "secret": "its-secret"}
_NUMBERS = itertools.count()


class Bucket(NamedTuple):
    """An empty bucket.

    Attributes:
        name: Its name.
        credentials: As they stand in `credentials.yml`.
        url: `s3://` and its name.
    """

    name: str
    credentials: dict[str, Any]
    url: str

    @property
    def keys(self) -> list[str]:
        """Names of all objects."""
        system = fsspec.filesystem("s3", **self.credentials)
        system.invalidate_cache()
        return sorted(path.removeprefix(f"{self.name}/") for path in system.find(self.name))


@contextmanager
def s3_server() -> Iterator[str]:
    """Starts the server, and yields its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def new_bucket(address: str) -> Bucket:
    """Makes a bucket on a server."""
    name = f"bucket-{next(_NUMBERS)}"
    credentials = {**KEYS, "client_kwargs": {"endpoint_url": address}}
    fsspec.filesystem("s3", **credentials).mkdir(name)
    return Bucket(name, credentials, f"s3://{name}")
