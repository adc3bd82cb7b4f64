"""
PostgreSQL's address as hosters print it, made ready for the driver.

What an address asks for never gets weaker on the way: what the driver cannot do is replaced by
something at least as strong, or refused with a reason.
"""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from tocsin.failures import BadInput

SETTING = "TOCSIN_DATABASE_URL"

# What the driver reads by itself, as libpq does.
_DRIVER_READS = (
    *("host", "port", "passfile", "service", "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "sslnegotiation", "target_session_attrs"),
    *("krbsrvname", "gsslib"),
)
# What is for the server; a pooler may take the first alone.
_SERVER_READS = ("application_name", "options", "search_path")
# Promises that the driver cannot keep, with the value that would be no promise.
_REFUSED = {"require_auth": "", "gssencmode": "disable prefer", "sslcertmode": "disable allow"}

_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_OTHER_WORDS = {
    **dict.fromkeys(("true", "1", "on", "yes", "no-verify"), "require"),
    **dict.fromkeys(("false", "0", "off", "no"), "disable"),
}
_ROOTS_OF_USER = Path("~/.postgresql/root.crt")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database is, and how it wants to be reached."""

    dsn: str  #                hosts and what the driver reads: no login, so that no text of an error has one
    user: str | None
    password: str | None = field(repr=False)
    database: str | None
    timeout_s: float = 10.0
    verified: bool = False  #  the certificate is checked, name included, against the system's roots
    client_certificate: tuple[str, str | None, str | None] | None = field(default=None, repr=False)
    server_settings: dict[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """The arguments for ``asyncpg.connect``; may raise OSError for a certificate that cannot be read."""
        arguments: dict[str, Any] = {
            "dsn": self.dsn,
            "user": self.user,
            "password": self.password,
            "database": self.database,
            "timeout": self.timeout_s,
            "server_settings": self.server_settings,
        }
        if self.verified:
            context = ssl.create_default_context()
            if self.client_certificate is not None:
                certificate, key, password = self.client_certificate
                context.load_cert_chain(certificate, key, password)
            arguments["ssl"] = context
        return arguments


def parse(database_url: str) -> Address:
    """
    Read an address: ``postgres://``, ``postgresql://``, or with a driver's name as SQLAlchemy has it.

    Parameters of other drivers (``pgbouncer``, ``connection_limit``) are left out. ``channel_binding=require``,
    which the driver cannot do, becomes a certificate that is checked in full.

    Raises:
        BadInput: it cannot be read, or asks for something that would not be kept; no secret is quoted.
    """
    head, _, query = database_url.partition("://")[2].partition("?")
    authority, _, database = head.partition("/")
    if "@" in database and "@" not in authority:
        raise BadInput(SETTING, "a / in a password is written %2F")
    login, at, hosts = authority.rpartition("@")
    user, has_password, password = login.partition(":")
    wishes = {key: value for key, value in parse_qsl(query) if value}
    for key, harmless in _REFUSED.items():
        if key in wishes and wishes[key] not in harmless.split():
            raise BadInput(SETTING, f"{key}={wishes[key]} cannot be kept; ask for sslmode=verify-full instead")
    _check_hosts(hosts)
    verified = _settle_tls(wishes)
    certificate = wishes.get("sslcert")
    kept = {key: wishes[key] for key in _DRIVER_READS if key in wishes}
    if verified:
        kept = {key: value for key, value in kept.items() if not key.startswith("ssl") or key == "sslnegotiation"}
    return Address(
        dsn=f"postgresql://{hosts}/" + ("?" + urlencode(kept, quote_via=quote) if kept else ""),
        user=unquote(user) if at and user else wishes.get("user"),
        password=unquote(password) if has_password else wishes.get("password"),
        database=unquote(database) or wishes.get("dbname") or wishes.get("database"),
        timeout_s=_seconds(wishes.get("connect_timeout")),
        verified=verified,
        client_certificate=(certificate, wishes.get("sslkey"), wishes.get("sslpassword"))
        if verified and certificate
        else None,
        server_settings=_for_server(wishes),
    )


def _settle_tls(wishes: dict[str, str]) -> bool:
    """Put the words of other drivers into ``sslmode``; whether the system's roots have to vouch for the server."""
    mode = wishes.get("sslmode") or wishes.pop("ssl", None) or ("require" if wishes.get("requiressl") == "1" else None)
    if mode is not None:
        mode = _OTHER_WORDS.get(mode.lower(), mode.lower())
        if mode not in _MODES:
            raise BadInput(SETTING, f"unknown sslmode {mode[:30]!r}; give one of {', '.join(_MODES)}")
        wishes["sslmode"] = mode
    roots = wishes.get("sslrootcert")
    if roots == "system" or wishes.get("sslaccept") == "strict":
        return True
    if wishes.get("channel_binding") == "require":
        if roots is None:
            return True
        wishes["sslmode"] = "verify-full"
    return mode in ("verify-ca", "verify-full") and roots is None and not _ROOTS_OF_USER.expanduser().exists()


def _for_server(wishes: dict[str, str]) -> dict[str, str]:
    settings = {"application_name": "tocsin"} | {key: wishes[key] for key in _SERVER_READS if key in wishes}
    schema = wishes.get("schema") or wishes.get("currentSchema")
    if schema is not None and schema != "public":
        settings.setdefault("search_path", schema)
    return settings


_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%A-Za-z]+\]|[^:\[\]@\s]*)(?::(\d{1,5}))?")


def _check_hosts(hosts: str) -> None:
    for host in hosts.split(","):
        found = _HOST.fullmatch(host)
        if found is None or not 0 < int(found[1] or 1) < 65_536:
            raise BadInput(SETTING, "the port is no number; a / or @ in a password is written %2F or %40")


def _seconds(text: str | None) -> float:
    """libpq's ``connect_timeout``; 0 would be for ever."""
    return min(max(float(text), 2.0), 30.0) if text and text.isdigit() and int(text) else 10.0


def explain(problem: BaseException, address: Address) -> str:
    """
    Why no connection came about, and what to mend; never with a password.

    Args:
        problem: what the driver raised.
    """
    user, database = address.user or "(of this process)", address.database or address.user
    text = " ".join(str(problem).split()).replace(address.password or "\0", "***")[:250]
    match getattr(problem, "sqlstate", None):
        case "28P01":
            return f"the server refuses the password of user {user}: put it right in {SETTING}"
        case "28000":
            return f"the server refuses user {user}: {text}"
        case "3D000":
            return f"there is no database {database!r} on that server: make it, or put {SETTING} right"
        case "53300":
            return f"the server has no connection left: {text}; give it more, or use the address of its pooler"
        case str(state) if "unsupported startup parameter" in text:
            return f"the pooler does not take a parameter of {SETTING}: {text} ({state})"
        case str() if "tenant or user not found" in text.lower():
            return f"the pooler knows no user {user}: it is postgres.<project>, as the hoster's page shows it"
    if isinstance(problem, socket.gaierror):
        return f"the host of {SETTING} has no address: {text}"
    if isinstance(problem, ssl.SSLCertVerificationError):
        return (
            f"the server's certificate is not trusted: {problem.verify_message}; give the certificate of who signed"
            " it, sslrootcert=/path/to/ca.crt (hosters offer it for download)"
        )
    if isinstance(problem, ConnectionError) and "rejected SSL" in text:
        return "the server does no TLS, which sslmode asks for: use the address of one that does"
    if isinstance(problem, ConnectionRefusedError) and (hosts := urlsplit(address.dsn).netloc):
        return f"the connection to {hosts} is refused: PostgreSQL does not run there, or listens on another port"
    if isinstance(problem, TimeoutError):
        return f"no answer within {address.timeout_s:g} s"
    if isinstance(problem, FileNotFoundError | PermissionError) and "sslrootcert" in address.dsn:
        return f"a certificate file of {SETTING} cannot be read: {text}"
    return f"{type(problem).__name__}: {text}"
