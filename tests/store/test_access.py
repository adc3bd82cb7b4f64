"""Nobody but their owner gets at the tables, however open the schema is that some of them stand in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from tests.postgres import PostgresServer
from tests.store.test_migrate import make_early_table
from tocsin.checks import check_database
from tocsin.failures import StoreAway
from tocsin.settings import Settings
from tocsin.store import Store, access, migrate, open_store, queries

# As a hoster with a public key sets up its databases.
_SUPABASE = """
CREATE ROLE anon NOLOGIN;
CREATE ROLE authenticated NOLOGIN;
CREATE ROLE service_role NOLOGIN BYPASSRLS;
GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO anon, authenticated;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO anon, authenticated
"""
_TABLES = text("""
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1
""")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Of its own: roles are a server's, not a database's."""
    server = PostgresServer()
    store = open_store(server.url)
    store.write_now(run, _SUPABASE)
    store.close_now()
    yield server
    server.close()


@pytest.fixture(params=["new", "early"])
def hosted(request: pytest.FixtureRequest, server: PostgresServer) -> Iterator[Store]:
    """A migrated store there: in a database of which all is ours, and in one with an early table."""
    store = open_store(server.url)
    store.write_now(run, "DROP SCHEMA IF EXISTS tocsin CASCADE; DROP TABLE IF EXISTS error_logs")
    if request.param == "early":
        store.write_now(make_early_table)
    migrate.migrate_now(store)
    yield store
    store.close_now()


def run(connection: Connection, script: str) -> None:
    for statement in filter(str.strip, script.split(";")):
        connection.exec_driver_sql(statement)


def tables(store: Store) -> list[str]:
    return store.read_now(lambda connection: list(connection.scalars(_TABLES)))


def refusal(store: Store, role: str, statement: str) -> str:
    """What a role is told; fails when it gets through."""
    with pytest.raises(StoreAway) as refused:
        store.write_now(run, f"SET LOCAL ROLE {role}; {statement}")
    return str(refused.value)


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_the_public_roles_may_do_nothing(hosted: Store, role: str) -> None:
    """On every table that there is, the version's too."""
    found = tables(hosted)
    assert {"public.error_logs", "tocsin.tocsin_version", "tocsin.error_groups", "tocsin.received"} <= set(found)
    for table in found:
        for statement in (f"SELECT * FROM {table}", f"INSERT INTO {table} DEFAULT VALUES", f"TRUNCATE {table}"):
            assert "permission denied" in refusal(hosted, role, statement)
    unguarded = text("SELECT relname FROM pg_class WHERE oid = ANY(CAST(:all AS regclass[])) AND NOT relrowsecurity")
    assert hosted.read_now(lambda connection: connection.scalars(unguarded, {"all": found}).all()) == []


def test_a_role_that_comes_later_may_do_nothing_either(hosted: Store) -> None:
    """Also one that the hoster's defaults would have let in; with rights of its own it still sees no row."""
    hosted.write_now(run, "CREATE ROLE later NOLOGIN; GRANT USAGE ON SCHEMA public TO later")
    try:
        for table in tables(hosted):
            assert "permission denied" in refusal(hosted, "later", f"SELECT * FROM {table}")
        hosted.write_now(run, "GRANT ALL ON ALL TABLES IN SCHEMA public TO later")
        insert = "INSERT INTO error_logs (severity, category, message) VALUES ('low', 'api', '')"
        hosted.write_now(run, insert)

        assert "row-level security" in refusal(hosted, "later", insert)

        def count(connection: Connection) -> int:
            connection.exec_driver_sql("SET LOCAL ROLE later")
            return int(connection.scalar(text("SELECT count(*) FROM error_logs")) or 0)

        assert hosted.read_now(count) == 0
    finally:
        hosted.write_now(run, "DROP OWNED BY later; DROP ROLE later")


def test_who_owns_the_tables_is_not_hindered(hosted: Store) -> None:
    """As no superuser either: a hoster gives out none."""
    hosted.write_now(run, "CREATE ROLE owner NOLOGIN; GRANT ALL ON SCHEMA public TO owner")
    try:
        changes = "; ".join(f"ALTER TABLE {table} OWNER TO owner" for table in tables(hosted))
        hosted.write_now(run, f"ALTER SCHEMA tocsin OWNER TO owner; {changes}")

        def work(connection: Connection) -> int:
            run(connection, "SET LOCAL ROLE owner")
            run(connection, "INSERT INTO error_logs (severity, category, message) VALUES ('low', 'api', 'mine')")
            return int(connection.scalar(text("SELECT count(*) FROM error_logs WHERE message = 'mine'")) or 0)

        assert hosted.write_now(work) == 1
    finally:
        hosted.write_now(run, "DROP SCHEMA tocsin CASCADE; DROP TABLE error_logs; DROP OWNED BY owner; DROP ROLE owner")


@pytest.mark.parametrize(
    ("by_hand", "names"),
    [
        ("ALTER TABLE error_logs DISABLE ROW LEVEL SECURITY", "public.error_logs: no row level security"),
        ("ALTER TABLE tocsin.alerts DISABLE ROW LEVEL SECURITY", "tocsin.alerts: no row level security"),
        (
            "CREATE POLICY everybody ON error_logs FOR SELECT TO anon USING (true); GRANT SELECT ON error_logs TO anon",
            "public.error_logs: rights for anon, policies everybody",
        ),
        ("GRANT TRUNCATE ON error_logs TO PUBLIC", "public.error_logs: rights for PUBLIC"),
        ("CREATE TABLE tocsin.copy AS SELECT * FROM error_logs", "tocsin.copy: no row level security"),
    ],
)
def test_check_finds_a_table_that_was_opened_by_hand(
    hosted: Store, server: PostgresServer, by_hand: str, names: str
) -> None:
    """And gives the SQL that closes it, which does."""
    assert hosted.read_now(access.open_tables) == []
    hosted.write_now(run, by_hand)

    (found,) = [one for one in check_database(Settings(database_url=server.url)) if one.name == "access"]

    assert found.state == "FAIL"
    assert names in found.what
    hosted.write_now(run, found.mend)
    assert hosted.read_now(access.open_tables) == []


def test_the_public_key_that_another_service_writes_with_goes_on(hosted: Store) -> None:
    """A hoster's own role for services has rights in ``public`` and no guard; it is left as it was."""
    insert = "INSERT INTO error_logs (severity, category, message) VALUES ('low', 'api', 'from there')"
    hosted.write_now(run, "GRANT ALL ON error_logs TO service_role")  # as its default privileges had it

    hosted.write_now(run, f"SET LOCAL ROLE service_role; {insert}")

    rows, _ = hosted.read_now(queries.list_errors)
    assert rows[0]["message"] == "from there"
