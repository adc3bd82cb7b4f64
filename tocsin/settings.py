"""
All that can be set: read once at the door, then handed on; no room reads the environment.

Strength, strongest first: arguments, environment (``TOCSIN_*``), ``.env``, ``tocsin.toml``, and the
standard ``OTEL_*`` variables where they say the same thing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import time
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from tocsin.failures import SettingsError

# What few settings need is loaded when they do: a program waits for this at its start.
# ruff: noqa: PLC0415

PREFIX = "TOCSIN_"


def _setting(default: Any, parse: Callable[[str], Any], about: str, *, secret: bool = False) -> Any:
    """A field of `Settings`: its default, how its text is read, and what the reference says of it."""
    metadata = {"parse": parse, "about": about, "secret": secret}
    if callable(default):
        return field(default_factory=default, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


# How texts are read. Each raises ValueError, whose text says what would be right.


def _text(value: str) -> str:
    return value


def _number(low: float, high: float, unit: str) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"give a number of {unit}") from None
        if not low <= number <= high:
            raise ValueError(f"give {low:g} to {high:g} {unit}")
        return number

    return parse


def _whole(low: int, high: int, unit: str) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", value):
            raise ValueError(f"give a whole number of {unit}")
        if not low <= int(value) <= high:
            raise ValueError(f"give {low} to {high} {unit}")
        return int(value)

    return parse


def parse_bytes(value: str) -> int:
    """Bytes, also as ``300M``, ``1G``, ``512 KiB``; units count in 1,024."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", value, re.IGNORECASE)
    if not match:
        raise ValueError("give bytes, such as 1073741824, 300M or 1G")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _spool_bytes(value: str) -> int:
    if (limit := parse_bytes(value)) < 2**20:
        raise ValueError("give at least 1M: less holds no error safely")
    return limit


def _switch(value: str) -> bool:
    word = value.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("give 1 or 0 (also true, false, yes, no, on, off)")


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _ids(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(value))
    except ValueError:
        raise ValueError("give numeric ids, separated by commas (a group's id begins with -)") from None


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"give one of {', '.join(choices)}")
        return value.lower()

    return parse


def _web_url(value: str) -> str:
    return _called_url(value).rstrip("/")


def _called_url(value: str) -> str:
    """An address that is called as it stands: a slash at its end may matter."""
    parts = _split(value)
    if parts.scheme not in ("http", "https"):
        raise ValueError("give an address that begins with http:// or https://")
    if not parts.hostname:
        raise ValueError("the host is missing; give http://host:port or https://…")
    return value


def _endpoint(value: str) -> str:
    address = _web_url(value)
    parts = urlsplit(address)
    if "@" in address:
        raise ValueError("no user or password belongs in it: the server's token goes into TOCSIN_INGEST_TOKEN")
    if parts.query or parts.fragment:
        raise ValueError("nothing comes after its path; give http://host:4318 or https://…")
    if own := re.search(r"/(v1(/.*)?|livez|readyz|(api|admin)/debug(/.*)?)$", parts.path):
        raise ValueError(f"leave {own[0]} out: it is added as it is needed")
    return address


_SMTP = "give smtp://user:password@host:587 (STARTTLS) or smtps://user:password@host:465 (TLS)"
_ESCAPED = "a /, ? or # in a password is written %2F, %3F or %23"


def _smtp_url(value: str) -> str:
    parts = _split(value)
    if parts.scheme not in ("smtp", "smtps"):
        raise ValueError(_wrong_scheme(value, _SMTP))
    if not parts.hostname:
        raise ValueError(f"the host is missing; {_SMTP}")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"nothing comes after host and port; {_ESCAPED}")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if bool(user) != bool(password):
        raise ValueError("give user and password, or neither: smtp://user:password@host:587")
    if not (user + password).isprintable():
        raise ValueError("user or password has a control character in it")
    return value


def _split(value: str) -> SplitResult:
    """An address in its parts; what Python says of a wrong one would show a part of the password."""
    if any(char <= " " or char in "\x7f\\" for char in value):
        raise ValueError("an address has no space, control character or backslash in it")
    try:
        parts = urlsplit(value)
    except ValueError:
        raise ValueError("a [ or ] stands around an IPv6 host; in a password it is written %5B or %5D") from None
    try:
        is_wrong = parts.port == 0
    except ValueError:
        is_wrong = True
    if is_wrong:
        is_cut = "@" in value and "@" not in parts.netloc
        raise ValueError(_ESCAPED if is_cut else "the port is no number from 1 to 65535")
    return parts


def _wrong_scheme(value: str, right: str) -> str:
    """What is before ``://``, where there is such a thing: else it could be anything, a password too."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]{0,20})://", value)
    return f"unknown scheme {scheme[1]!r}; {right}" if scheme else right


_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_MAIL_ADDRESS = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.-]{{1,64}}@{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_NAMED_ADDRESS = re.compile(r"([^<>\"]*?)\s*<([^<>]*)>")


def is_mail_address(value: str) -> bool:
    """Whether it is an address that every mail server takes: ASCII, without quotes or comments."""
    local = value.partition("@")[0]
    is_dotted = local.startswith(".") or local.endswith(".") or ".." in local
    return bool(_MAIL_ADDRESS.fullmatch(value)) and len(value) <= 254 and not is_dotted


def mail_sender(value: str) -> tuple[str, str]:
    """``tocsin <alerts@example.com>`` as name and address; the name may be missing."""
    named = _NAMED_ADDRESS.fullmatch(value.strip())
    return (named[1], named[2].strip()) if named else ("", value.strip())


def _mail_from(value: str) -> str:
    name, address = mail_sender(value)
    if not is_mail_address(address) or not name.isprintable() or len(name) > 100:
        raise ValueError("give an address: alerts@example.com or tocsin <alerts@example.com>")
    return value.strip()


def _mail_addresses(value: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(_words(value)))
    if wrong := [word for word in found if not is_mail_address(word)]:
        raise ValueError(f"{wrong[0][:80]!r} is no address; give anna@example.com,team@example.com")
    return found


_POSTGRES = "postgresql://user:password@host:5432/name"


def _database_url(value: str) -> str:
    scheme = value.split(":", 1)[0].split("+", 1)[0].lower()
    if "://" not in value or scheme not in ("sqlite", "postgres", "postgresql"):
        if "://" in value:
            raise ValueError(_wrong_scheme(value, "use sqlite:// or postgresql://"))
        raise ValueError(f"give sqlite:////folder/tocsin.db or {_POSTGRES}")
    if scheme == "sqlite":
        return _sqlite_url(value)
    try:
        parts = urlsplit(value)
    except ValueError:
        raise ValueError("a [ or ] stands around an IPv6 host; in a password it is written %5B or %5D") from None
    is_cut = "@" in parts.path + parts.fragment or ("@" in parts.query and not parts.path)
    if is_cut or parts.fragment:
        raise ValueError(_ESCAPED)
    try:
        hosts = parts.netloc.rpartition("@")[2].split(",")  # several, for who has a standby
        _ = [urlsplit(f"//{host}").port for host in hosts]
    except ValueError:
        # Not what Python says: it would show a part of the password.
        raise ValueError("the port is no number from 1 to 65535") from None
    if not parts.path.strip("/"):
        raise ValueError(f"the name of the database is missing; use {_POSTGRES}")
    return value


def _sqlite_url(value: str) -> str:
    path = value.split("://", 1)[1].split("?", 1)[0]
    if not path.strip("/"):
        raise ValueError("the file is missing; use sqlite:////folder/tocsin.db")
    if not path.startswith("/"):
        raise ValueError(
            "a / is missing; use sqlite:////folder/tocsin.db, or sqlite:///tocsin.db in the working folder"
        )
    if path == "/:memory:":
        raise ValueError("a database in memory is gone with its process; use sqlite:////folder/tocsin.db")
    return value


def _clock_time(value: str) -> time:
    match = re.fullmatch(r"(\d{1,2}):(\d{2})", value.strip())
    if not match or int(match[1]) > 23 or int(match[2]) > 59:
        raise ValueError("give a time of day such as 09:00")
    return time(int(match[1]), int(match[2]))


def _hours(value: str) -> tuple[time, time]:
    begin, dash, end = value.partition("-")
    if not dash:
        raise ValueError("give a span such as 23:00-08:00")
    return _clock_time(begin), _clock_time(end)


def _timezone(value: str) -> str:
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("give a name such as Europe/Berlin or UTC") from None
    return value


def _environments(value: str) -> tuple[str, ...]:
    words = _words(value)
    if not words:
        raise ValueError("give names such as production,staging; * for all; !test for all but test")
    return words


def _categories(value: str) -> tuple[tuple[str, str, str], ...]:
    rules = []
    for word in _words(value):
        match = re.fullmatch(r"([a-z][a-z0-9_-]{0,39})=(module|host|logger):(\S+)", word)
        if not match:
            raise ValueError("give name=module:shop.billing, name=host:api.example.com or name=logger:billing")
        rules.append((match[1], match[2], match[3]))
    return tuple(rules)


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where this user's tocsin keeps its files: the XDG state folder, else one in the temporary folder."""
    if base := environ.get("XDG_STATE_HOME"):
        return Path(base) / "tocsin"
    home = environ.get("HOME") or str(Path("~").expanduser())
    if home and os.access(home, os.W_OK):
        return Path(home) / ".local" / "state" / "tocsin"
    return _temporary()


def substitute_spool_dir() -> str:
    """Where errors are kept when the spool folder cannot be used."""
    return str(_temporary() / "spool")


def _temporary() -> Path:
    import tempfile

    return Path(tempfile.gettempdir()) / f"tocsin-{os.getuid()}"


def _default_database_url() -> str:
    return f"sqlite:///{state_folder() / 'tocsin.db'}"


def _default_spool_dir() -> str:
    return str(state_folder() / "spool")


_NINE = time(9, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    All that can be set; each field is ``TOCSIN_`` and its name in capitals.

    A field that may hold a secret is left out of the `repr`.
    """

    database_url: str = _setting(
        _default_database_url, _database_url, "where errors are stored: sqlite:///… or postgresql://…", secret=True
    )
    endpoint: str | None = _setting(None, _endpoint, "a tocsin server to send errors to instead of a database")
    spool_dir: str = _setting(_default_spool_dir, _text, "folder of the durable buffer on local disk")
    spool_max_bytes: int | None = _setting(
        None, _spool_bytes, "the most that the spool may hold (default: 1 GiB or a tenth of the free disk)"
    )

    service: str = _setting("", _text, "name of the service (else OTEL_SERVICE_NAME, else the program's name)")
    environment: str = _setting("production", _text, "name of the environment")
    release: str | None = _setting(None, _text, "name of the release (default: the git commit of the working folder)")
    capture_4xx: bool = _setting(False, _switch, "store expected errors (4xx, validation) too")
    log_level: str = _setting("error", _one_of("warning", "error", "critical"), "from which level log lines are errors")
    breadcrumbs: int = _setting(
        30, _whole(0, 100, "breadcrumbs"), "how many log lines and outgoing calls before an error stay with it"
    )
    categories: tuple[tuple[str, str, str], ...] = _setting(
        (), _categories, "own categories: billing=module:shop.billing,stripe=host:api.stripe.com"
    )
    locals: bool = _setting(False, _switch, "keep the local variables of your own frames with each error, scrubbed")
    loop_blocked_s: float = _setting(
        1.0, _number(0, 3600, "seconds"), "an event loop that is blocked for so long is an error; 0: never"
    )
    memory_warn_percent: int = _setting(
        80, _whole(0, 100, "percent"), "of its limit, from which a service's memory is an error; 0: never"
    )
    shutdown_timeout_s: float = _setting(
        30.0, _number(0, 3600, "seconds"), "how long a stop waits for requests under way, seconds"
    )
    traces: bool = _setting(False, _switch, "add the OpenTelemetry ASGI instrumentation")

    token: str | None = _setting(None, _text, "token with full access", secret=True)
    read_token: str | None = _setting(None, _text, "token that may only read", secret=True)
    ingest_token: str | None = _setting(None, _text, "token that may only send errors", secret=True)
    public_url: str | None = _setting(None, _web_url, "address under which people reach the page; links in messages")
    allowed_hosts: tuple[str, ...] = _setting((), _words, "host names that the server answers to (default: any)")
    trusted_proxies: tuple[str, ...] = _setting((), _words, "addresses whose forwarding headers are believed")
    cors_origins: tuple[str, ...] = _setting((), _words, "origins whose pages may call the debug API")

    telegram_token: str | None = _setting(None, _text, "token of the bot, from @BotFather", secret=True)
    telegram_chat_ids: tuple[int, ...] = _setting((), _ids, "chats that get alerts")
    telegram_user_ids: tuple[int, ...] = _setting((), _ids, "people who may act")
    telegram_api_url: str = _setting("https://api.telegram.org/bot", _web_url, "base of the Bot API, up to the token")
    telegram_proxy: str | None = _setting(None, _text, "proxy for Telegram", secret=True)

    smtp_url: str | None = _setting(
        None, _smtp_url, "mail server: smtp://user:password@host:587 (STARTTLS) or smtps://… (TLS)", secret=True
    )
    email_from: str | None = _setting(
        None, _mail_from, "sender of mails (default: the user of the mail server, when that is an address)"
    )
    email_to: tuple[str, ...] = _setting((), _mail_addresses, "who gets mails")
    webhook_url: str | None = _setting(None, _called_url, "address that gets alerts as JSON", secret=True)
    webhook_allow_private: bool = _setting(
        False, _switch, "let the webhook lead to addresses that are not of the open internet"
    )

    alert_environments: tuple[str, ...] = _setting(
        ("!development", "!test"), _environments, "environments that ring: names, * for all, !name for all but it"
    )
    check_interval_s: float = _setting(5.0, _number(0.1, 3600, "seconds"), "how often rules that wait for time look")
    silent_after_s: float = _setting(
        60.0, _number(5, 86_400, "seconds"), "a process that says nothing for so long, and no goodbye, is an error"
    )
    fold_above: int = _setting(
        10, _whole(1, 1000, "groups"), "more new groups than this within 30 s become one message"
    )
    messages_per_minute: int = _setting(15, _whole(1, 1000, "messages"), "the most per chat")
    digest_at: time = _setting(_NINE, _clock_time, "time of the daily digest")
    quiet_hours: tuple[time, time] | None = _setting(None, _hours, "span in which only critical errors ring")
    timezone: str = _setting("UTC", _timezone, "time zone of the team")
    language: str = _setting("en", _one_of("en", "ru"), "language of messages")
    trace_url: str | None = _setting(None, _text, "address of a trace, with {trace_id} in it")
    heartbeat_url: str | None = _setting(None, _web_url, "pinged while errors travel the whole way", secret=True)

    retention_days: int = _setting(30, _whole(1, 36500, "days"), "how long errors are kept")
    max_db_mb: int | None = _setting(None, _whole(16, 10_000_000, "MB"), "the most that the database may hold")
    redis_url: str | None = _setting(None, _text, "Redis of the team's queues", secret=True)
    queues: tuple[str, ...] = _setting((), _words, "queues to watch: bullmq:amocrm-sync,celery:default")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, folder: Path | None = None, **arguments: Any) -> Settings:
        """
        Read the settings strictly, for commands.

        Args:
            environ: the environment (default: that of the process).
            folder: where ``.env`` and ``tocsin.toml`` may lie (default: the working folder).
            arguments: strongest; None means not given.

        Raises:
            SettingsError: names every wrong value and every unknown name at once.
        """
        settings, problems = _read(environ, folder, arguments)
        if problems:
            raise SettingsError(problems)
        return settings

    @classmethod
    def load_leniently(
        cls, environ: Mapping[str, str] | None = None, folder: Path | None = None, **arguments: Any
    ) -> tuple[Settings, list[str]]:
        """Read the settings for a user's program, which must start all the same: defaults instead, and the problems."""
        return _read(environ, folder, arguments)

    def with_names(self, service: str, release: str | None) -> Settings:
        """These settings with a service and a release where none was named."""
        return replace(self, service=self.service or service, release=self.release or release)

    def shown_database(self) -> str:
        """Which database it is, without user and password, as people say it."""
        parts = urlsplit(self.database_url)
        if parts.scheme.startswith("sqlite"):
            path = self.database_url.split("://", 1)[1].split("?", 1)[0].removeprefix("/")
            return f"SQLite {Path(path).absolute()}"
        hosts = parts.netloc.rpartition("@")[2] or dict(parse_qsl(parts.query)).get("host", "")
        return f"PostgreSQL {hosts}{parts.path}"

    def rings_in(self, environment: str) -> bool:
        """Whether errors of that environment may ring (`alert_environments`)."""
        words = self.alert_environments
        if f"!{environment}" in words:
            return False
        return environment in words or "*" in words or all(word.startswith("!") for word in words)

    def secrets(self) -> tuple[str, ...]:
        """The secret values that are set, passwords within addresses too: what no text may show."""
        found: list[str] = []
        for one in fields(self):
            value = getattr(self, one.name)
            if not one.metadata["secret"] or not isinstance(value, str):
                continue
            if "://" not in value:
                found.append(value)
            elif password := urlsplit(value).password:
                found += [password, unquote(password)]
        return tuple(value for value in found if len(value) >= 4)


def reference() -> list[tuple[str, str, str]]:
    """Every setting as (name, default, what it does), for the help and the docs."""
    rows = []
    plain = Settings(database_url="sqlite:///…/tocsin.db", spool_dir="…/spool")
    for one in fields(Settings):
        shown = as_text(getattr(plain, one.name))
        rows.append((PREFIX + one.name.upper(), shown, one.metadata["about"]))
    return rows


def as_text(value: Any) -> str:
    """A setting's value as one would write it: what `Settings.load` reads back as the same; "" for unset."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, time):
        return f"{value:%H:%M}"
    if isinstance(value, tuple):
        if all(isinstance(part, time) for part in value) and value:
            return "-".join(map(as_text, value))
        return ",".join("{}={}:{}".format(*part) if isinstance(part, tuple) else str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# Names read elsewhere: by `tocsin run` for its child, and by the tests.
_NOT_SETTINGS = {
    *("TOCSIN_REQUIRE_ALL", "TOCSIN_RUN", "TOCSIN_STARTED", "TOCSIN_TOLD", "TOCSIN_WATCHER", "TOCSIN_INSTANCE"),
    "TOCSIN_MAX_MEMORY",
}

_OPTIONS = {"TOCSIN_HOST": "--host", "TOCSIN_PORT": "--port"}

# Settings that may stand under another name of the standard, weakest of all.
_STANDARD = {"service": "OTEL_SERVICE_NAME"}
_RESOURCE = {
    "service": "service.name",
    "environment": "deployment.environment.name",
    "release": "service.version",
}


def _read(
    environ: Mapping[str, str] | None, folder: Path | None, arguments: Mapping[str, Any]
) -> tuple[Settings, list[str]]:
    environ = os.environ if environ is None else environ
    folder = Path.cwd() if folder is None else folder
    problems: list[str] = []
    known = {PREFIX + one.name.upper(): one for one in fields(Settings)}

    found: dict[str, str] = {}
    resource = _resource_attributes(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    resource.setdefault("deployment.environment.name", resource.get("deployment.environment", ""))
    for name, attribute in _RESOURCE.items():
        if value := resource.get(attribute):
            found[PREFIX + name.upper()] = value
    for name, variable in _STANDARD.items():
        if value := environ.get(variable):
            found[PREFIX + name.upper()] = value
    found |= _from_toml(folder / "tocsin.toml", problems)
    found |= _from_dotenv(folder / ".env")
    found |= {name: value for name, value in environ.items() if name.startswith(PREFIX)}

    values: dict[str, Any] = {}
    for variable, raw in found.items():
        if variable not in known:
            if variable not in _NOT_SETTINGS:
                problems.append(_unknown(variable, known))
            continue
        one = known[variable]
        if raw == "" and one.name != "alert_environments":
            continue  # set to nothing is not set
        try:
            values[one.name] = one.metadata["parse"](raw)
        except ValueError as problem:
            may_hold_password = one.metadata["parse"] in (_web_url, _endpoint) and "@" in raw
            is_hidden = one.metadata["secret"] or may_hold_password
            shown = "" if is_hidden else f" {raw[:100]!r} is wrong:"
            in_quotes = len(raw) > 1 and raw[0] in "\"'" and raw[0] == raw[-1]
            problems.append(f"{variable}:{shown} {'leave out the quotes around it' if in_quotes else problem}")
    for name, value in arguments.items():
        if PREFIX + name.upper() not in known:
            problems.append(_unknown(PREFIX + name.upper(), known).removeprefix(PREFIX))
        elif isinstance(value, str):
            try:
                values[name] = known[PREFIX + name.upper()].metadata["parse"](value)
            except ValueError as problem:
                problems.append(f"{name}: {problem}")
        elif value is not None:
            values[name] = tuple(value) if isinstance(value, list) else value
    given = {variable for variable, raw in found.items() if raw}
    given |= {PREFIX + name.upper() for name, value in arguments.items() if value}
    problems += _half_set(given)
    return Settings(**values), problems


def _half_set(given: Collection[str]) -> Iterator[str]:
    """What says nothing without another setting, so that nobody waits for a mail that cannot come."""
    has_server, has_readers = "TOCSIN_SMTP_URL" in given, "TOCSIN_EMAIL_TO" in given
    if has_server and not has_readers:
        yield "TOCSIN_EMAIL_TO: not set, so TOCSIN_SMTP_URL sends nothing; give who gets mails"
    if has_readers and not has_server:
        yield "TOCSIN_SMTP_URL: not set, so TOCSIN_EMAIL_TO gets nothing; give smtp://user:password@host:587"


def _unknown(variable: str, known: Mapping[str, Any]) -> str:
    import difflib

    names = {name.removeprefix(PREFIX): name for name in known}
    near = difflib.get_close_matches(variable.removeprefix(PREFIX), names, n=1, cutoff=0.6)
    hint = f"did you mean {names[near[0]]}?" if near else "`tocsin check --settings` lists the names"
    if option := _OPTIONS.get(variable):
        hint = f"`tocsin serve {option}` takes it"
    return f"{variable}: there is no such setting; {hint}"


def _resource_attributes(text: str) -> dict[str, str]:
    """``key=value,key=value`` with percent-encoded values (OpenTelemetry, resource SDK)."""
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {key.strip(): unquote(value.strip()) for key, _, value in pairs}


def _from_dotenv(path: Path) -> dict[str, str]:
    """The ``TOCSIN_*`` lines of a ``.env`` file; the others belong to the user's program."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        match = re.match(r"\s*(?:export\s+)?(TOCSIN_[A-Z0-9_]+)\s*=\s*(.*)", line)
        if match:
            quoted = re.match(r"""(["'])(.*?)\1\s*(?:#.*)?$""", match[2])
            found[match[1]] = quoted[2] if quoted else re.split(r"\s+#", match[2], maxsplit=1)[0].rstrip()
    return found


def _from_toml(path: Path, problems: list[str]) -> dict[str, str]:
    """The top-level names of ``tocsin.toml``, written small: ``database_url = "…"``; tables are for rules."""
    try:
        text = path.read_bytes()
    except OSError:
        return {}
    import tomllib

    try:
        content = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        problems.append(f"{path.name}: cannot be read: {problem}")
        return {}
    found = {}
    for key, value in content.items():
        if isinstance(value, dict):
            continue
        found[PREFIX + key.upper()] = _as_setting(value)
    return found


def _as_setting(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def git_release(folder: Path | None = None) -> str | None:
    """
    The git commit of a folder or of one above it, its first 12 digits; for a release that nobody named.

    Read from git's files: starting a program only for that could hurt the one that is being watched.
    """
    folder = (folder or Path.cwd()).resolve()
    for place in (folder, *folder.parents):
        git = place / ".git"
        try:
            if git.is_file():  # a worktree: "gitdir: <path>"
                git = place / git.read_text("utf-8").partition(":")[2].strip()
            head = (git / "HEAD").read_text("utf-8").strip()
        except OSError:
            continue
        return _commit(git, head)
    return None


def _commit(git: Path, head: str) -> str | None:
    if not head.startswith("ref: "):
        return head[:12] if re.fullmatch(r"[0-9a-f]{40,64}", head) else None
    name = head.removeprefix("ref: ")
    common = git
    try:
        common = git / (git / "commondir").read_text("utf-8").strip()
    except OSError:
        pass
    for place in (git, common):
        try:
            return (place / name).read_text("utf-8").strip()[:12] or None
        except OSError:
            continue
    try:
        packed = (common / "packed-refs").read_text("utf-8")
    except OSError:
        return None
    match = re.search(rf"^([0-9a-f]{{40,64}}) {re.escape(name)}$", packed, re.MULTILINE)
    return match[1][:12] if match else None


def service_name(command: Sequence[str]) -> str:
    """
    A name for a service that nobody named, from how it is started.

    ``uvicorn shop.main:app`` is shop, ``python app.py`` is app, ``python -m shop`` is shop,
    ``celery -A shop worker`` is shop; else the program's own name.
    """
    words = list(command)
    for flag in ("-A", "--app", "-m"):
        if flag in words[:-1]:
            after = words[words.index(flag) + 1]
            if flag != "-m" or not _is_launcher(after):
                return _plain(after)
    for word in words[1:]:
        if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.()]*", word):
            return _plain(word)
    for word in words[1:]:
        if word.endswith((".py", ".js", ".mjs", ".ts")):
            return _plain(Path(word).stem)
    return _plain(Path(words[0]).name) if words and words[0] else "service"


def _is_launcher(module: str) -> bool:
    return module in ("uvicorn", "gunicorn", "celery", "flask", "hypercorn", "tocsin", "pytest")


def _plain(word: str) -> str:
    """``shop.main:app`` is shop."""
    return re.split(r"[:.]", word)[0] or "service"
