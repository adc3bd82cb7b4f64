"""PostgreSQL's address as hosters print it: read right, and never weaker than it asks for."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from asyncpg import connect_utils
from sqlalchemy import text

from tests.postgres import PostgresServer, free_port
from tocsin.failures import BadInput, StoreAway
from tocsin.store import open_store
from tocsin.store.address import Address, parse


def driver_reads(address: Address) -> tuple[list[Any], Any]:
    """Hosts and parameters, as the driver understands what it is given."""
    arguments = address.arguments()
    arguments.pop("timeout")
    names = ("host", "port", "passfile", "ssl", "direct_tls", "target_session_attrs", "krbsrvname", "gsslib")
    nothing = dict.fromkeys((*names, "service", "servicefile"))
    return connect_utils._parse_connect_dsn_and_args(**{**nothing, **arguments})  # type: ignore[no-any-return]


LOGIN = ("u", "p", "x")


@pytest.mark.parametrize(
    ("url", "hosts", "login", "mode"),
    [
        # Supabase: direct, its poolers, and what it prints for Prisma.
        (
            "postgresql://postgres:p@db.abc.supabase.co:5432/postgres",
            [("db.abc.supabase.co", 5432)],
            ("postgres", "p", "postgres"),
            "prefer",
        ),
        (
            "postgres://postgres.abc:p%40ss%2Fw%23d@aws-0-eu-central-1.pooler.supabase.com:6543/postgres"
            "?pgbouncer=true&connection_limit=1",
            [("aws-0-eu-central-1.pooler.supabase.com", 6543)],
            ("postgres.abc", "p@ss/w#d", "postgres"),
            "prefer",
        ),
        # Heroku, Render, Railway
        ("postgres://u:p@ec2.compute.amazonaws.com:5432/x?sslmode=require", None, LOGIN, "require"),
        ("postgres://u:p@dpg-abc-a.frankfurt-postgres.render.com/x", None, LOGIN, "prefer"),
        ("postgresql://u:p@containers-us-west-1.railway.app:7777/x", None, LOGIN, "prefer"),
        # Neon
        (
            "postgresql://u:p@ep-a-1.eu.aws.neon.tech/x?sslmode=require&options=endpoint%3Dep-a-1",
            None,
            LOGIN,
            "require",
        ),
        # Prisma, node, JDBC, SQLAlchemy
        ("postgresql://u:p@db/x?schema=public&connect_timeout=5&pool_timeout=0", [("db", 5432)], LOGIN, "prefer"),
        ("postgresql://u:p@db/x?sslmode=no-verify", [("db", 5432)], LOGIN, "require"),
        ("postgresql+asyncpg://u:p@db/x?ssl=true", [("db", 5432)], LOGIN, "require"),
        ("postgresql+psycopg2://u:p@db:1/x?ssl=disable", [("db", 1)], LOGIN, "disable"),
        ("postgresql://db/x?requiressl=1&user=u&password=p", [("db", 5432)], LOGIN, "require"),
        # Hosts of every kind; a password as it was pasted
        ("postgres://u:p@[2001:db8::1]:6000/x", [("2001:db8::1", 6000)], LOGIN, "prefer"),
        ("postgres://u:p@a:1,b:2/x?target_session_attrs=read-write", [("a", 1), ("b", 2)], LOGIN, "prefer"),
        ("postgresql://u:p@/x?host=/run/pg", ["/run/pg/.s.PGSQL.5432"], LOGIN, "disable"),
        ("postgres://u:p@ss@db/x", [("db", 5432)], ("u", "p@ss", "x"), "prefer"),
        ("postgres://u:a#b%20c%@db/x", [("db", 5432)], ("u", "a#b c%", "x"), "prefer"),
    ],
)
def test_addresses_are_read_as_hosters_print_them(
    url: str, hosts: list[Any] | None, login: tuple[str, ...], mode: str
) -> None:
    """Nobody should have to rewrite one for a driver."""
    found, parameters = driver_reads(parse(url))

    assert found == hosts or hosts is None
    assert (parameters.user, parameters.password, parameters.database) == login
    assert parameters.sslmode.name.replace("_", "-") == mode
    assert set(parameters.server_settings) <= {"application_name", "options"}


@pytest.mark.parametrize(
    "wish",
    [
        "sslmode=verify-full",
        "sslmode=verify-ca",
        "sslmode=verify-full&sslrootcert=system",
        "sslmode=require&sslrootcert=system",
        "sslmode=require&channel_binding=require",
        "sslmode=require&sslaccept=strict",
    ],
)
def test_who_wants_to_be_sure_is_checked_against_the_roots_of_the_system(wish: str) -> None:
    """Where no root is named; binding the channel, which the driver cannot do, guards against the same."""
    context = parse(f"postgres://u:p@db/x?{wish}").arguments()["ssl"]

    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert "sslmode" not in parse(f"postgres://u:p@db/x?{wish}").dsn


@pytest.mark.parametrize(
    ("mode", "checks_name"), [("verify-full", True), ("verify-ca", False), ("require&channel_binding=require", True)]
)
def test_a_root_certificate_that_is_named_is_the_one_that_counts(mode: str, checks_name: bool, tmp_path: Path) -> None:
    root = tmp_path / "root.crt"
    trustme.CA().cert_pem.write_to_path(str(root))

    _, parameters = driver_reads(parse(f"postgres://u:p@db/x?sslrootcert={root}&sslmode={mode}"))

    assert (parameters.ssl.verify_mode, parameters.ssl.check_hostname) == (ssl.CERT_REQUIRED, checks_name)
    assert len(parameters.ssl.get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgres://u:s3cret@db:x/y", "port"),
        ("postgres://u:s3cret@db:70000/y", "port"),
        ("postgres://u:s3/cret@db/y", "%2F"),
        ("postgres://u:s3cret@db/y?sslmode=paranoid", "sslmode"),
        ("postgres://u:s3cret@db/y?require_auth=scram-sha-256", "require_auth"),
        ("postgres://u:s3cret@db/y?gssencmode=require", "gssencmode"),
    ],
)
def test_what_cannot_be_kept_is_refused_without_a_word_of_the_password(url: str, says: str) -> None:
    """A weaker connection would look just the same."""
    with pytest.raises(BadInput, match=says) as refused:
        parse(url)

    assert "s3" not in str(refused.value)
    assert "s3cret" not in repr(parse("postgres://u:s3cret@db/y"))


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PostgresServer, Path, Path]]:
    """A server with TLS and passwords; the root of its certificate, and a stranger's."""
    folder = tmp_path_factory.mktemp("tls")
    ours, theirs = trustme.CA(), trustme.CA()
    for name, root in (("ours", ours), ("theirs", theirs)):
        root.cert_pem.write_to_path(str(folder / f"{name}.crt"))
    server = PostgresServer(certificate=ours.issue_cert("localhost"), password="right")
    yield server, folder / "ours.crt", folder / "theirs.crt"
    server.close()


def problem_with(url: str) -> str | None:
    """What a person is told, None when it works."""
    store = open_store(url)
    try:
        store.read_now(lambda connection: connection.execute(text("SELECT 1")).scalar())
    except StoreAway as away:
        assert "r1ght" not in str(away)
        return str(away)
    finally:
        store.close_now()
    return None


def test_the_right_certificate_is_taken_and_a_wrong_one_refused(
    tls_server: tuple[PostgresServer, Path, Path],
) -> None:
    server, ours, theirs = tls_server
    url = f"postgres://postgres:right@localhost:{server.port}/postgres"
    by_number = url.replace("localhost", "127.0.0.1")

    assert problem_with(f"{url}?sslmode=verify-full&sslrootcert={ours}") is None
    assert problem_with(f"{url}?sslmode=require") is None
    assert problem_with(f"{by_number}?sslmode=verify-ca&sslrootcert={ours}") is None
    wrong_name = problem_with(f"{by_number}?sslmode=verify-full&sslrootcert={ours}")
    for told in (
        problem_with(f"{url}?sslmode=verify-full&sslrootcert={theirs}"),
        problem_with(f"{url}?sslmode=verify-ca&sslrootcert={theirs}"),
        problem_with(f"{url}?sslmode=verify-full"),
        wrong_name,
    ):
        assert "certificate is not trusted" in str(told)
        assert "sslrootcert=" in str(told)
    assert "127.0.0.1" in str(wrong_name)
    assert "cannot be read" in str(problem_with(f"{url}?sslmode=verify-full&sslrootcert=/no/such.crt"))


def test_what_is_wrong_with_an_address_is_said(
    tls_server: tuple[PostgresServer, Path, Path], session_postgres: PostgresServer
) -> None:
    """With what to mend, never with the password."""
    server, _, _ = tls_server
    here = f"localhost:{server.port}"

    assert "password of user postgres" in str(problem_with(f"postgres://postgres:r1ght@{here}/postgres"))
    assert "no database 'lost'" in str(problem_with(f"postgres://postgres:right@{here}/lost"))
    assert "no address" in str(problem_with("postgres://postgres:r1ght@no-such-host.invalid/x"))
    assert "refused" in str(problem_with(f"postgres://postgres:r1ght@127.0.0.1:{free_port()}/x")).lower()
    without_tls = session_postgres.url + "?sslmode=require"
    assert "does no TLS" in str(problem_with(without_tls))


def test_a_server_without_a_free_place_is_away(postgres_server: PostgresServer) -> None:
    """It says so, and the next try goes through when there is one."""
    postgres_server.stop()
    postgres_server.start(max_connections=4, superuser_reserved_connections=0)

    async def take_all() -> None:
        import asyncpg

        taken = [await asyncpg.connect(postgres_server.url) for _ in range(4)]
        assert "no connection left" in str(await asyncio.to_thread(problem_with, postgres_server.url))
        for one in taken:
            await one.close()

    asyncio.run(take_all())
    assert problem_with(postgres_server.url) is None
