"""SQLite's file and its log."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection

from tocsin.failures import StoreAway

LOG_BYTES = 64 * 2**20
"""SQLite's log is let grow to this; then a run waits for whoever reads in it."""


def prepare(connection: Connection) -> None:
    """Set what a transaction that removes rows needs."""
    # What is removed is overwritten with zeros, also where SQLite was built without that habit. An answer
    # left open would hold a place in the log, which then could not begin anew.
    for pragma in ("secure_delete = ON", f"journal_size_limit = {LOG_BYTES // 4}"):
        connection.exec_driver_sql(f"PRAGMA {pragma}").close()


def is_log_long(connection: Connection) -> bool:
    """Whether somebody reads for so long that SQLite's log could only grow."""
    log = Path(f"{connection.engine.url.database}-wal")
    return log.exists() and log.stat().st_size > LOG_BYTES


def compact(path: Path, *, wait_s: float = 60) -> None:
    """
    Write SQLite's file anew, without free space, and empty its log: nothing of what was removed is left in them.

    Whoever wants to write waits meanwhile; errors wait in the spool.

    Args:
        wait_s: how long others may hold the file, before it begins and before the log can be emptied.

    Raises:
        StoreAway: somebody holds the file, or the disk has no room for a second copy; all is as it was.
    """
    room, needed = shutil.disk_usage(path.parent).free, 2 * path.stat().st_size
    if room < needed:
        raise StoreAway(f"{path} needs {needed // 2**20} MB of free disk to be written anew, and has {room // 2**20}")
    try:
        with closing(sqlite3.connect(path, timeout=wait_s, isolation_level=None)) as connection:
            connection.execute("VACUUM")
            [is_busy, *_] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as problem:
        raise StoreAway(str(problem)) from problem
    if is_busy:
        raise StoreAway(f"{path} is written anew, but somebody reads in its log; try again")
