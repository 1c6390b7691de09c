"""What operators were found to cost, on disk: a SQLite file that processes share, and that a kill leaves whole.

Three tables, each by a hash of all that decides its rows (``decides.py``): *traces* of samples, compressed; what each
*sample* costs with the rates of a chip; and *surfaces*. A chip with another rate finds the traces and times them
again. What nothing decides any more is never found; traces that were not used for longest go when the file grows too
large.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trnsim.errors import InputError
from trnsim.machine.trace import SavedTrace, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FILE = "operators.db"
_VERSION = 2
_TABLES = """
CREATE TABLE IF NOT EXISTS traces (key TEXT PRIMARY KEY, used INTEGER NOT NULL, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS samples (trace TEXT, time TEXT, used INTEGER NOT NULL, value BLOB NOT NULL,
  PRIMARY KEY (trace, time)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS surfaces (key TEXT, part TEXT, used INTEGER NOT NULL, value BLOB NOT NULL,
  PRIMARY KEY (key, part)) WITHOUT ROWID;
"""
# Seconds that a process waits for another's transaction, which takes milliseconds.
_PATIENCE = 60.0
# A row that is found is marked as used once a day, so that reading rarely writes.
_DAY = 86_400
LIMIT_BYTES = 2 << 30


class SavedSample(msgspec.Struct):
    """The traces of all cores of one use of a kernel, and the release of NKI that it is written for."""

    release: str
    traces: list[SavedTrace]


class Store:
    """Rows in the file ``path``, which is made if need be; where it cannot be written, what it holds is read.

    A store may be used by several threads, and by processes that open it themselves; after a fork it opens anew.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.read_only = False
        self._lock = threading.Lock()
        self._process = 0
        self._database: sqlite3.Connection | None = None
        with self._lock:
            self._open()

    def trace(self, key: str) -> tuple[tuple[Trace, ...], str] | None:
        """The traces under ``key`` and the release of NKI, if they are there and whole."""
        data = self._find("traces", ("key",), (key,))
        if data is None:
            return None
        try:
            saved = msgspec.msgpack.decode(zlib.decompress(data), type=SavedSample)
            return tuple(Trace.unpacked(trace) for trace in saved.traces), saved.release
        except (zlib.error, msgspec.DecodeError, InputError):
            return None

    def add_trace(self, key: str, traces: Sequence[Trace], release: str) -> None:
        saved = SavedSample(release, [trace.packed() for trace in traces])
        self._add("traces", ("key",), (key,), zlib.compress(msgspec.msgpack.encode(saved), 6))

    def sample(self, trace: str, time: str) -> bytes | None:
        """What was kept of a sample, by the keys of its trace and of its time."""
        return self._find("samples", ("trace", "time"), (trace, time))

    def add_sample(self, trace: str, time: str, value: bytes) -> None:
        self._add("samples", ("trace", "time"), (trace, time), value)

    def surfaces(self, key: str) -> list[bytes]:
        """All surfaces under ``key``."""
        rows = self._run(lambda d: d.execute("SELECT part, used, value FROM surfaces WHERE key = ?", (key,)).fetchall())
        for part, used, _ in rows:
            self._touch("surfaces", ("key", "part"), (key, part), used)
        return [value for _, _, value in rows]

    def add_surface(self, key: str, part: str, value: bytes) -> None:
        """Keep a surface; ``part`` says for which of the uses under ``key`` it is."""
        self._add("surfaces", ("key", "part"), (key, part), value)

    def counts(self) -> dict[str, int]:
        """How many rows each table has."""
        return {
            table: self._run(lambda d, t=table: int(d.execute(f"SELECT count(*) FROM {t}").fetchone()[0]))  # type: ignore[misc]  # noqa: S608
            for table in ("traces", "samples", "surfaces")
        }

    def trim(self, limit: int = LIMIT_BYTES) -> int:
        """Remove the traces that were not used for longest until the file would be below ``limit`` bytes; how many."""
        removed = 0
        oldest = "DELETE FROM traces WHERE key IN (SELECT key FROM traces ORDER BY used LIMIT 100)"
        while not self.read_only and self._bytes() > limit:
            count = self._run(lambda d: d.execute(oldest).rowcount)
            removed += count
            if not count:
                break
        return removed

    def close(self) -> None:
        with self._lock:
            if self._database is not None and self._process == os.getpid():
                self._database.close()
            self._database = None

    def _bytes(self) -> int:
        """Of pages in use: those of removed rows are used again, and need not leave the file."""

        def count(database: sqlite3.Connection) -> int:
            pages, free, size = (
                int(database.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
            return (pages - free) * size

        return int(self._run(count))

    def _find(self, table: str, names: tuple[str, ...], key: tuple[str, ...]) -> bytes | None:
        where = " AND ".join(f"{name} = ?" for name in names)
        row = self._run(lambda d: d.execute(f"SELECT used, value FROM {table} WHERE {where}", key).fetchone())  # noqa: S608
        if row is None:
            return None
        self._touch(table, names, key, row[0])
        return bytes(row[1])

    def _touch(self, table: str, names: tuple[str, ...], key: tuple[str, ...], used: int) -> None:
        now = int(time.time())
        if now - used > _DAY and not self.read_only:
            where = " AND ".join(f"{name} = ?" for name in names)
            self._run(lambda d: d.execute(f"UPDATE {table} SET used = ? WHERE {where}", (now, *key)))  # noqa: S608

    def _add(self, table: str, names: tuple[str, ...], key: tuple[str, ...], value: bytes) -> None:
        if self.read_only:
            return
        columns = ", ".join((*names, "used", "value"))
        places = ", ".join("?" * (len(names) + 2))
        statement = f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({places})"  # noqa: S608
        self._run(lambda d: d.execute(statement, (*key, int(time.time()), value)))

    def _run(self, action: Callable[[sqlite3.Connection], Any]) -> Any:
        with self._lock:
            if self._database is None or self._process != os.getpid():
                self._open()
            assert self._database is not None
            try:
                return action(self._database)
            except sqlite3.Error as error:
                raise InputError(f"{self.path} cannot be used: {error}", value=str(self.path)) from error

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._prepared()
        except (sqlite3.Error, OSError) as error:
            if not self.path.is_file() or not _not_writable(error):
                raise InputError(f"{self.path} is no store of operator costs: {error}", value=str(self.path)) from error
            self._database = self._as_it_is()
            self.read_only = True
        self._process = os.getpid()

    def _prepared(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                # Changing the mode needs the file for itself and does not wait for it.
                if database.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                _check_version(database)
                return database
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    database.close()
                    raise
                time.sleep(0.02)

    def _as_it_is(self) -> sqlite3.Connection:
        """The file where nothing can be written beside it, as nobody else can either."""
        try:
            database = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?immutable=1", uri=True, isolation_level=None, check_same_thread=False
            )
            _check_version(database, make=False)
        except sqlite3.Error as error:
            raise InputError(f"{self.path} is no store of operator costs: {error}", value=str(self.path)) from error
        return database


def _check_version(database: sqlite3.Connection, *, make: bool = True) -> None:
    """Make the tables; those of another version hold nothing that is found any more, and go."""
    found = int(database.execute("PRAGMA user_version").fetchone()[0])
    if found == _VERSION:
        return
    if not make:
        raise sqlite3.DatabaseError(f"its version is {found}, not {_VERSION}")
    database.execute("BEGIN IMMEDIATE")
    try:
        if int(database.execute("PRAGMA user_version").fetchone()[0]) != _VERSION:
            for table in ("traces", "samples", "surfaces"):
                database.execute(f"DROP TABLE IF EXISTS {table}")
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_VERSION}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise


def _not_writable(error: Exception) -> bool:
    return isinstance(error, PermissionError) or any(
        text in str(error) for text in ("readonly", "read-only", "unable to open", "Read-only")
    )


def cache_folder() -> Path:
    """Where caches go: ``TRNSIM_CACHE``, else the user's folder for caches on this system."""
    named = os.environ.get("TRNSIM_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("trnsim", appauthor=False))


def default_store() -> tuple[Store | None, str]:
    """The user's store, and what is to be said of it: nothing where it works."""
    path = cache_folder() / FILE
    try:
        store = Store(path)
    except InputError as error:
        return None, f"what is simulated is not kept: {error}; TRNSIM_CACHE names another folder"
    return store, f"what is simulated is not kept: {path} cannot be written" if store.read_only else ""
