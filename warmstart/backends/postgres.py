"""PostgreSQL as an ordered map: ``postgresql://user@host/database?store=name``.

One table holds the pairs; keys are ``bytea``, which PostgreSQL orders by their bytes. A batch is
one call of a function that the library has created: conditions, deletes and puts in one
transaction, serialized by the lock of one row, so that numbers rise in the order in which batches
become visible. It is told an operation's id: one whose reply was lost is sent again and happens
once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from warmstart.backends import Batch, Durability, Item, check
from warmstart.errors import ArgumentError, StoreError, StoreFullError
from warmstart.locks import free_in_children

__all__ = ["PostgresBackend"]

_SCHEMA = 1
_DEADLINE = 2.0
"""Seconds for a connection and for any statement."""
_PAGE = 500
_MOST_IDLE = 4
"""Connections that are kept for the next call."""
_T = TypeVar("_T")

_CREATE = """
CREATE TABLE IF NOT EXISTS {t} (
    key bytea PRIMARY KEY, value bytea NOT NULL, seq bigint NOT NULL, size integer NOT NULL
);
ALTER TABLE {t} ALTER COLUMN value SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS {t}_state (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    schema integer NOT NULL, seq bigint NOT NULL, bytes bigint NOT NULL
);
INSERT INTO {t}_state (schema, seq, bytes) VALUES ({schema}, 0, 0) ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS {t}_done (
    op uuid PRIMARY KEY, seq bigint NOT NULL, at timestamptz NOT NULL DEFAULT now()
);
CREATE OR REPLACE FUNCTION {t}_apply(
    this uuid, held bytea[], numbers bigint[], gone bytea[],
    keys bytea[], vals bytea[], safe boolean
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    made bigint; freed bigint; used bigint;
BEGIN
    IF NOT safe THEN SET LOCAL synchronous_commit = off; END IF;
    UPDATE {t}_state SET seq = seq + 1 RETURNING seq INTO made;  -- its row lock serializes batches
    SELECT seq INTO used FROM {t}_done WHERE op = this;
    IF FOUND THEN
        UPDATE {t}_state SET seq = seq - 1;
        RETURN used;
    END IF;
    IF EXISTS (
        SELECT 1 FROM unnest(held, numbers) AS c(key, seq)
        LEFT JOIN {t} ON {t}.key = c.key WHERE coalesce({t}.seq, -1) <> c.seq
    ) THEN
        UPDATE {t}_state SET seq = seq - 1;
        INSERT INTO {t}_done VALUES (this, -1);
        RETURN -1;
    END IF;
    WITH removed AS (
        DELETE FROM {t} WHERE key = ANY(gone || keys) RETURNING octet_length(key) + size + 64 AS n
    ) SELECT coalesce(sum(n), 0) INTO freed FROM removed;
    WITH added AS (
        INSERT INTO {t} SELECT p.key, p.value, made, octet_length(p.value)
        FROM unnest(keys, vals) AS p(key, value)
        RETURNING octet_length(key) + size + 64 AS n
    ) SELECT coalesce(sum(n), 0) INTO used FROM added;
    UPDATE {t}_state SET bytes = bytes + used - freed;
    INSERT INTO {t}_done VALUES (this, made);
    IF made % 256 = 0 THEN DELETE FROM {t}_done WHERE at < now() - interval '5 minutes'; END IF;
    RETURN made;
END $$;
"""


class PostgresBackend:
    """The backend protocol over PostgreSQL 12 or later.

    Parameters
    ----------
    url : str
        As psycopg takes it; ``store=`` names one of several stores in a database.
    read_only : bool
        Refuse to write, and create nothing.

    Notes
    -----
    Connections are made when they are needed, four are kept; every call has two seconds. Commits
    of `Durability.PROCESS` do not wait for the disk (``synchronous_commit = off``: a crash of the
    server costs the last half second). Statements hold no session state, so that a pool in
    transaction mode may stand between; locks do, and need a session of their own.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        try:
            import psycopg  # noqa: PLC0415 (optional)
        except ImportError:
            raise ArgumentError(
                "postgresql:// needs psycopg: pip install 'psycopg[binary]'"
            ) from None
        self._psycopg = psycopg
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        name = query.pop("store", "warmstart")
        if not name.isidentifier() or not name.isascii() or len(name) > 40:
            raise ArgumentError(f"store= is letters, digits and _, up to 40, not {name!r:.60}")
        self._table = f"ws_{name.lower()}"
        self._dsn = urlunsplit(parts._replace(query=urlencode(query)))
        try:
            psycopg.conninfo.conninfo_to_dict(self._dsn)
            host, port = parts.hostname or query.get("host", ""), parts.port
        except (psycopg.Error, ValueError) as error:
            why = str(error).strip()
            raise ArgumentError(f"this is not an address of PostgreSQL: {why}") from None
        shown = f"{host}:{port}" if port else host
        self._shown = f"postgresql://{shown}{parts.path}?store={name}"
        self._read_only, self._found = read_only, False
        self._ready = False
        self._gate = threading.Lock()
        free_in_children(self, "_gate")
        self._idle: list[Any] = []
        self._owner = os.getpid()
        weakref.finalize(self, _hang_up, self._idle, self._owner)

    @property
    def address(self) -> str:
        """Where it is, without user and password."""
        return self._shown

    def _connect(self) -> Any:
        connection = self._psycopg.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=int(_DEADLINE),
            options=f"-c statement_timeout={int(_DEADLINE * 1000)} -c client_min_messages=error",
            prepare_threshold=None,
        )
        if not self._ready:
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._ready = True
        return connection

    def _prepare(self, connection: Any) -> None:
        """Create the tables, or see that they are of this version."""

        def is_there() -> bool:
            # Read from the catalog: to_regclass may answer from what the session saw before.
            asked = "SELECT 1 FROM pg_class WHERE relname = %s AND pg_table_is_visible(oid)"
            return connection.execute(asked, (f"{self._table}_state",)).fetchone() is not None

        if not is_there():
            if self._read_only:
                return
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (self._table,))
                # Made anew where somebody else has made them, they would be locked in an order
                # that is not that of the batches which are under way there.
                if not is_there():
                    connection.execute(_CREATE.format(t=self._table, schema=_SCHEMA))
        else:
            (schema,) = connection.execute(f"SELECT schema FROM {self._table}_state").fetchone()  # noqa: S608 (checked above)
            if schema > _SCHEMA:
                raise StoreError(
                    f"{self._shown} was written by a newer version of warmstart (schema {schema}): "
                    "update warmstart, or use another store="
                )

    def _do(self, operation: Callable[[Any], _T]) -> _T:
        """Do something on this thread's connection; once more if that was lost."""
        errors = self._psycopg.errors
        for attempt in (0, 1):
            connection, known = None, False
            try:
                connection, known = self._take()
                found = operation(connection)
            except (errors.DiskFull, errors.OutOfMemory) as error:
                raise StoreFullError(f"{self._shown} is full: {error}") from error
            except errors.QueryCanceled as error:
                raise StoreError(f"{self._shown} took more than {_DEADLINE:g} s") from error
            except self._psycopg.OperationalError as error:
                # One that has lain idle may have been cut; a new one tells how things are.
                if attempt or not known:
                    raise StoreError(f"{self._shown} cannot be reached: {error}") from error
            except self._psycopg.Error as error:
                raise StoreError(f"{self._shown} refuses: {error}") from error
            else:
                return found
            finally:
                if connection is not None:
                    self._give_back(connection)
        raise AssertionError

    def _take(self) -> tuple[Any, bool]:
        """Return a connection, and whether it was used before."""
        with self._gate:
            if self._owner != os.getpid():  # forked: these are the parent's
                _inherited.extend(self._idle)
                self._idle.clear()
                self._owner = os.getpid()
                weakref.finalize(self, _hang_up, self._idle, self._owner)
            if self._idle:
                return self._idle.pop(), True
        return self._connect(), False

    def _give_back(self, connection: Any) -> None:
        idle = connection.info.transaction_status == 0 and not connection.closed
        with self._gate:
            if idle and len(self._idle) < _MOST_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _rows(self, text: str, values: tuple[Any, ...] = ()) -> list[Any]:
        def fetch(connection: Any) -> list[Any]:
            return list(connection.execute(text, values, binary=True).fetchall())

        return self._do(fetch)

    def _missing(self) -> bool:
        """Whether a store that is only read was never made."""
        if self._read_only and not self._found:
            text = "SELECT 1 WHERE to_regclass(%s) IS NOT NULL"
            self._found = bool(self._rows(text, (self._table,)))
        return self._read_only and not self._found

    def get(self, key: bytes) -> Item | None:
        """Return the pair at `key`, or None. One round trip."""
        if self._missing():
            return None
        text = f"SELECT value, seq FROM {self._table} WHERE key = %s"  # noqa: S608 (checked)
        rows = self._rows(text, (key,))
        return Item(key, bytes(rows[0][0]), rows[0][1], len(rows[0][0])) if rows else None

    def scan(
        self,
        prefix: bytes,
        *,
        after: bytes = b"",
        limit: int | None = None,
        head: int | None = None,
    ) -> list[Item]:
        """Return the pairs whose keys begin with `prefix`, in order; one round trip for 500."""
        if self._missing():
            return []
        value = "value" if head is None else f"substring(value FROM 1 FOR {int(head)})"
        text = (
            f"SELECT key, {value}, seq, size FROM {self._table} "  # noqa: S608 (checked)
            "WHERE key >= %s AND key > %s AND (%s::bytea IS NULL OR key < %s) "
            "ORDER BY key LIMIT %s"
        )
        upper = _upper(prefix)
        found: list[Item] = []
        while limit is None or len(found) < limit:
            count = _PAGE if limit is None else min(_PAGE, limit - len(found))
            page = self._rows(text, (prefix, after, upper, upper, count))
            found += [Item(bytes(k), bytes(v), seq, size) for k, v, seq, size in page]
            if len(page) < count:
                break
            after = found[-1].key
        return found

    def apply(self, batch: Batch, durability: Durability = Durability.PROCESS) -> int | None:
        """Do the whole batch and return its number, or None if a condition failed."""
        check(batch, durability)
        if self._read_only:
            raise StoreError(f"{self._shown} was opened read only")
        text = (
            f"SELECT {self._table}_apply(%s, %s::bytea[], %s::bigint[], %s::bytea[], "
            "%s::bytea[], %s::bytea[], %s)"
        )
        values = (
            uuid.uuid4(),
            list(batch.conditions),
            [-1 if number is None else number for number in batch.conditions.values()],
            list(batch.deletes),
            list(batch.puts),
            [bytes(value) for value in batch.puts.values()],
            durability is Durability.POWER,
        )
        sequence = int(self._rows(text, values)[0][0])
        return None if sequence < 0 else sequence

    def _state(self, column: str) -> int:
        if self._missing():
            return 0
        return int(self._rows(f"SELECT {column} FROM {self._table}_state")[0][0])  # noqa: S608 (ours)

    def version(self) -> object:
        """Return the number of the last batch."""
        return self._state("seq")

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float = -1.0) -> Iterator[bool]:
        """Hold a named lock, which is free when its owner's session ends."""
        try:
            session = self._connect()
        except self._psycopg.Error as error:
            raise StoreError(f"{self._shown} cannot be reached: {error}") from error
        deadline = time.monotonic() + timeout
        with session:
            while True:
                row = session.execute(
                    "SELECT pg_try_advisory_lock(hashtext(%s), hashtext(%s))", (self._table, name)
                ).fetchone()
                if row[0] or (timeout >= 0.0 and time.monotonic() >= deadline):
                    break
                time.sleep(0.05)
            yield bool(row[0])

    def flush(self) -> None:
        """Return when everything applied before would survive a crash of the server."""
        if not self._read_only:
            # A commit that waits for the disk takes all before it along.
            self._rows(
                f"UPDATE {self._table}_state SET bytes = bytes RETURNING bytes"  # noqa: S608 (ours)
            )

    def size(self) -> int:
        """Return the bytes of keys and values, and 64 a pair."""
        return self._state("bytes")

    def now(self) -> float:
        """Return the server's time."""
        return float(self._rows("SELECT extract(epoch FROM clock_timestamp())")[0][0])

    def verify(self) -> list[str]:
        """Return whether the sizes agree with what is there."""
        if self._missing():
            return []
        t = self._table  # in one statement, since others write meanwhile
        size = "coalesce(sum(octet_length(key) + octet_length(value) + 64), 0)"
        rows = self._rows(f"SELECT (SELECT {size} FROM {t}), (SELECT bytes FROM {t}_state)")  # noqa: S608
        counted, told = map(int, rows[0])
        return [] if counted == told else [f"{self._shown} has {counted} bytes, and says {told}"]

    def clear(self) -> None:
        """Delete the whole store from the database."""
        t = self._table

        def drop(connection: Any) -> None:
            # The table that every batch locks first, first: else the two could wait for each other.
            for name in (f"{t}_state", f"{t}_done", t):
                connection.execute(f"DROP TABLE IF EXISTS {name}")
            connection.execute(f"DROP FUNCTION IF EXISTS {t}_apply")

        self._do(drop)
        self.close()

    def close(self) -> None:
        """Let go of the connections; they are made anew when they are needed."""
        with self._gate:
            _hang_up(self._idle, self._owner)
        self._ready = False


_inherited: list[Any] = []
"""Connections of a parent process, which a child must neither use nor close."""


def _hang_up(connections: list[Any], owner: int) -> None:
    if os.getpid() == owner:
        for connection in connections:
            connection.close()
    else:
        _inherited.extend(connections)
    connections.clear()


def _upper(prefix: bytes) -> bytes | None:
    """Return the first key beyond those that begin with a prefix; None if there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,)) if trimmed else None
