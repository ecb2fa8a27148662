"""A ledger in a database: a table with a row for each entry, whose hash is the primary key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kedro_aat.certificate.ledger_entry import Entry
from kedro_aat.errors import CheckpointError, DataError, StorageError
from kedro_aat.remote import explained, without_password

if TYPE_CHECKING:
    from sqlalchemy import Connection, RowMapping, Table

# The databases that SQLAlchemy brings along.
DATABASES = ("sqlite", "postgresql", "postgres", "mysql", "mariadb", "oracle", "mssql")
TABLE = "kedro_aat_ledger"
_SECONDS = 60  # that SQLite waits for another process


class DatabaseEntries:
    """Entries as rows. The table is created with the first entry.

    Args:
        url: URL of the database as SQLAlchemy has it, such as `postgresql://user@host/name`.
        options: Arguments of SQLAlchemy's `create_engine`.

    Raises:
        StorageError: If SQLAlchemy is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.url = _with_driver(url)
        self._options = dict(options)
        try:
            import sqlalchemy  # noqa: F401
        except ImportError:
            raise StorageError(
                f"{without_password(url)}: a ledger in a database needs SQLAlchemy and the driver of the database: "
                'pip install "kedro-aat[database]".'
            ) from None

    def claim(self, split: str, new: Entry, also_known_as: Iterable[str]) -> Entry:
        from sqlalchemy.exc import IntegrityError

        if (known := self.read(split)) is not None:
            return known
        former = (self.read(name) for name in also_known_as if name)
        entry = next((each for each in former if each is not None), new)
        with self._connected("claim a test split") as (connection, table):
            try:
                with connection.begin():
                    connection.execute(table.insert().values(split=split, **_row(entry)))
                return entry
            except IntegrityError:  # another process was faster
                pass
        claimed = self.read(split)
        assert claimed is not None  # nothing removes a row
        return claimed

    def record(self, split: str, result: Mapping[str, Any]) -> None:
        with self._connected("write the result of a certificate") as (connection, table), connection.begin():
            connection.execute(table.update().where(table.c.split == split).values(result=json.dumps(result)))

    def read(self, split: str) -> Entry | None:
        with self._connected("read the certificate ledger") as (connection, table), connection.begin():
            row = connection.execute(table.select().where(table.c.split == split)).mappings().first()
        return None if row is None else self._entry(row)

    def all(self) -> dict[str, Entry]:
        with self._connected("read the certificate ledger") as (connection, table), connection.begin():
            rows = connection.execute(table.select()).mappings().all()
        return {row["split"]: self._entry(row) for row in rows}

    def _entry(self, row: RowMapping) -> Entry:
        try:
            result = None if row["result"] is None else json.loads(row["result"])
            return Entry(subject=json.loads(row["subject"]), claimed=row["claimed"], result=result)
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{without_password(self.url)}: the row {row['split']} of {TABLE} is damaged: {error}. Restore it from "
                "a backup; if there is none, use test examples that no model was ever tested on."
            ) from None

    @contextmanager
    def _connected(self, what: str) -> Iterator[tuple[Connection, Table]]:
        """Yields a connection and the table, which is there then."""
        from sqlalchemy import Column, MetaData, String, Table, Text, create_engine, inspect
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError
        from sqlalchemy.pool import NullPool

        table = Table(
            TABLE,
            MetaData(),
            Column("split", String(200), primary_key=True),
            Column("subject", Text, nullable=False),
            Column("claimed", String(40), nullable=False),
            Column("result", Text),
        )
        options = {"connect_args": {"timeout": _SECONDS}} if self.url.startswith("sqlite") else {}
        try:
            engine = create_engine(self.url, **(options | self._options), poolclass=NullPool)
            if not inspect(engine).has_table(TABLE):
                try:
                    table.create(engine)
                except DBAPIError:  # another process was faster
                    if not inspect(engine).has_table(TABLE):
                        raise
            with engine.connect() as connection:
                yield connection, table
        except (SQLAlchemyError, ImportError, ValueError, TypeError) as error:
            missing = (
                ' Install its driver: pip install "kedro-aat[database]".' if isinstance(error, ImportError) else ""
            )
            raise CheckpointError(
                f"{without_password(self.url)}: cannot {what} ({explained(error)}).{missing} Check the URL, the "
                "database, and that this user may create the table and write to it. Then run the same command again."
            ) from error


def _row(entry: Entry) -> dict[str, str | None]:
    result = None if entry.result is None else json.dumps(entry.result)
    return {"subject": json.dumps(entry.subject), "claimed": entry.claimed, "result": result}


def _with_driver(url: str) -> str:
    """Names the driver that the extra installs, if the URL names none."""
    dialect, separator, rest = url.partition("://")
    return f"postgresql+psycopg{separator}{rest}" if dialect in ("postgres", "postgresql") else url


def is_database(url: str) -> bool:
    """Whether a text is the URL of a database."""
    dialect, separator, _ = url.partition("://")
    return bool(separator) and dialect.partition("+")[0].lower() in DATABASES
