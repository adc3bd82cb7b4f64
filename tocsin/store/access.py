"""
Who may look: on PostgreSQL nobody but who owns the tables.

Some hosters open whatever stands in ``public`` to roles whose key every browser has. So every table of
tocsin's has row level security without a policy, which does not hinder its owner, and no rights for those
roles, nor for everybody.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from tocsin.store.schema import SCHEMA

PUBLIC_ROLES = ("anon", "authenticated")
"""Supabase's names for who comes with the public key, and for who has logged in with it."""

_OURS = f"(n.nspname = '{SCHEMA}' OR c.oid = to_regclass('error_logs')) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
_ROLES = ", ".join(f"'{role}'" for role in PUBLIC_ROLES)

_TABLES = text(f"""
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE {_OURS} AND c.relkind IN ('r', 'p') AND NOT c.relrowsecurity ORDER BY 1
""")  # noqa: S608


def close_to_the_public(connection: Connection) -> None:
    """Close all tables that there are; a schema that nobody else may use also holds back roles to come."""
    for table in connection.scalars(_TABLES).all():
        connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    found = connection.scalars(text(f"SELECT rolname FROM pg_roles WHERE rolname IN ({_ROLES})"))  # noqa: S608
    for role in ("PUBLIC", *found):
        connection.exec_driver_sql(f"REVOKE ALL ON error_logs FROM {role}")
        for what in ("ALL TABLES IN SCHEMA", "ALL SEQUENCES IN SCHEMA", "SCHEMA"):
            connection.exec_driver_sql(f"REVOKE ALL ON {what} {SCHEMA} FROM {role}")


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A table that others could read or write, and the SQL that closes it."""

    name: str
    why: str
    mend: str


# A table is open where its rows are not guarded, or where a policy lets somebody in who has rights on it.
_OPEN = text(f"""
    SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relrowsecurity AS guarded, c.relkind AS kind,
      (SELECT array_agg(format('%I', p.polname) ORDER BY p.polname) FROM pg_policy p WHERE p.polrelid = c.oid)
        AS policies,
      (SELECT array_agg(who ORDER BY who) FROM (
         SELECT format('%I', r.rolname) AS who FROM pg_roles r
         WHERE r.rolname IN ({_ROLES})
           AND has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
         UNION
         SELECT 'PUBLIC' FROM aclexplode(c.relacl) a WHERE a.grantee = 0) g) AS granted
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE {_OURS} ORDER BY 1
""")  # noqa: S608


def open_tables(connection: Connection) -> list[OpenTable]:
    """Tables that somebody has opened by hand, or that a step of theirs has made."""
    found = []
    for row in connection.execute(_OPEN):
        policies, granted = row.policies or [], row.granted or []
        is_table = row.kind in ("r", "p", b"r", b"p")
        why, mend = [], []
        if is_table and not row.guarded:
            why.append("no row level security")
            mend.append(f"ALTER TABLE {row.name} ENABLE ROW LEVEL SECURITY;")
        if granted:
            why.append(f"rights for {', '.join(granted)}")
            mend.append(f"REVOKE ALL ON {row.name} FROM {', '.join(granted)};")
        if granted and policies:
            why.append(f"policies {', '.join(policies)}")
            mend += [f"DROP POLICY {policy} ON {row.name};" for policy in policies]
        if why:
            found.append(OpenTable(row.name, ", ".join(why), " ".join(mend)))
    return found
