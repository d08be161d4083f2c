"""connect(path): a connection that has sqlite-vec, on the one SQLite library of this process.

Two SQLite libraries in a process lose each other's file locks, so everything takes the module that Datasette and
sqlite-utils take: pysqlite3 where it is installed, else Python's own, which many builds compile without extension
loading.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from . import config
from .driver import sqlite3
from .errors import DatabaseUnavailable, ExtensionUnavailable, InvalidSetting
from .functions import Functions
from .gate import Gate
from .store.reading import has_function, has_vec
from .store.transactions import mapped_errors

BUSY_SECONDS = 10.0
MMAP_BYTES = 1 << 30


def connect(
    path: str | os.PathLike[str], *, read_only: bool = False, create: bool = False, require_vec: bool = True
) -> sqlite3.Connection:
    """Open a SQLite file with sqlite-vec loaded and our SQL functions registered. Opening writes nothing.

    The file must exist unless `create`. Text that is not valid UTF-8 is read with replacement characters, as Datasette
    reads it. Without `require_vec` a machine that cannot load extensions gets a connection all the same, in which
    search scans the truth. Raises DatabaseUnavailable, ExtensionUnavailable.
    """
    if str(path) == ":memory:":
        return _opened(":memory:", require_vec=require_vec)
    file = Path(path)
    if file.is_dir():  # as the empty path is
        raise DatabaseUnavailable(f"{file.name or '.'!r} is a directory: name the database file")
    if not create and not file.exists():
        raise DatabaseUnavailable(f"there is no file {file.name!r} at that path: check it")
    uri = f"file:{quote(os.fsencode(file.absolute()))}?mode={'ro' if read_only else 'rwc' if create else 'rw'}"
    try:
        return _opened(uri, require_vec=require_vec)
    except DatabaseUnavailable:
        # A file in WAL mode needs its -shm, which nobody can make in a directory that is read-only; where no -wal waits
        # to be read the file is all there is.
        wal = file.with_name(f"{file.name}-wal")
        if not read_only or (wal.exists() and wal.stat().st_size):
            raise
        return _opened(f"{uri}&immutable=1", require_vec=require_vec)


def _opened(uri: str, *, require_vec: bool) -> sqlite3.Connection:
    with mapped_errors():
        conn = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)
        try:
            conn.text_factory = lambda raw: raw.decode("utf-8", "replace")
            conn.execute("select count(*) from sqlite_master").fetchone()
            prepare(conn, require_vec=require_vec)
        except BaseException:
            conn.close()
            raise
    return conn


def prepare(conn: sqlite3.Connection, *, require_vec: bool = True, functions: Functions | None = None) -> bool:
    """Give a connection of this process's SQLite library sqlite-vec and our functions; tells whether it got the first.

    Extension loading is switched off again afterwards. A sqlite-vec that the connection has already is left as it is:
    two versions of it in one process crash. Raises ExtensionUnavailable.
    """
    conn.execute(f"pragma mmap_size = {MMAP_BYTES}").fetchone()
    (functions or Functions(_gate())).register(conn)
    return load_vec(conn, required=require_vec)


def prepare_lightly(conn: sqlite3.Connection) -> None:
    """Give a connection of somebody else's sqlite-vec, where that can be, and `embed_gemini`; it is not kept alive.

    One that has the function keeps it: Datasette 1.0 makes sqlite-utils' `Database` of its own connections, on which
    the function asks who the visitor is.
    """
    if not has_function(conn, "embed_gemini"):
        Functions(_gate()).register_embed_gemini(conn)
    load_vec(conn, required=False)


@lru_cache(maxsize=1)
def _gate() -> Gate:
    """The gate of everything in this process that is no Datasette; shut where the environment's settings are wrong."""
    try:
        return config.gate({})
    except InvalidSetting as error:
        closed = Gate(mode="off")
        closed.note(error)
        return closed


def load_vec(conn: sqlite3.Connection, *, required: bool = True) -> bool:
    """Load sqlite-vec; tells whether the connection has it."""
    if has_vec(conn):
        return True
    try:
        _load_vec(conn)
    except ExtensionUnavailable:
        if required:
            raise
        return False
    return True


def _load_vec(conn: sqlite3.Connection) -> None:
    try:
        import sqlite_vec
    except ImportError as error:
        raise ExtensionUnavailable("sqlite-vec is not installed: pip install sqlite-vec") from error
    if not hasattr(conn, "enable_load_extension"):
        raise ExtensionUnavailable(f"the SQLite of this Python cannot load extensions ({_library()}): {_REMEDY}")
    try:
        conn.enable_load_extension(True)
        try:
            sqlite_vec.load(conn)
        finally:
            conn.enable_load_extension(False)
    except sqlite3.Error as error:
        # SQLite's message begins with the path of the file.
        reason = str(error).replace(sqlite_vec.loadable_path(), "vec0").replace(": ", ", ")
        raise ExtensionUnavailable(f"sqlite-vec could not be loaded into {_library()} ({reason}): {_REMEDY}") from error


_REMEDY = (
    "run `pip install 'pysqlite3>=0.6.1'` (Linux x86_64, macOS arm64, Windows), or use a Python whose sqlite3 module "
    "can load extensions, such as Debian's, Homebrew's or conda's"
)


def _library() -> str:
    return f"{sqlite3.__name__} {sqlite3.sqlite_version}"
