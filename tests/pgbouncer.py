"""A real pgbouncer in transaction mode, in front of a PostgreSQL server of the tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.postgres import PostgresServer, free_port, missing_part, server_user

_START_S = 20


@contextmanager
def pgbouncer(server: PostgresServer, *, pool_size: int = 2) -> Iterator[str]:
    """
    Yields the address of the server's first database, by way of the pooler.

    Args:
        pool_size: how many sessions of PostgreSQL all its clients share.
    """
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        missing_part("pgbouncer")
    assert program is not None
    folder = Path(tempfile.mkdtemp(prefix="tocsin-pgbouncer-"))
    port = free_port()
    (folder / "users").write_text('"postgres" ""\n')
    settings = folder / "pgbouncer.ini"
    settings.write_text(f"""
[databases]
* = host=127.0.0.1 port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
""")
    user = server_user()
    if user is not None:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, settings], user=user, cwd=folder, stdout=log, stderr=log)
    try:
        _until_open(port, process, folder / "log")
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres?pgbouncer=true"
    finally:
        process.terminate()
        process.wait(_START_S)
        shutil.rmtree(folder, ignore_errors=True)


def _until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(log.read_text()) from None
            time.sleep(0.02)
        else:
            return
