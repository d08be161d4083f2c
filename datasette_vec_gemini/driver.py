"""The one SQLite library of this process: the module that Datasette and sqlite-utils take.

Two libraries in one process lose each other's file locks (closing the file in one drops the other's POSIX locks), so
nothing else here imports `sqlite3`. It is pysqlite3 where that is installed, else the standard library's.
"""

from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # meant for use, but not declared as exported

__all__ = ["sqlite3"]
