"""
The command line: one function a command.

Exit codes: 0 done, 1 failed or not found, 2 wrong usage or settings.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from tocsin import __version__, install
from tocsin.failures import BadInput, SettingsError, StoreAway, TableMissing, TocsinError
from tocsin.settings import Settings, as_text, reference
from tocsin.terminal import COLOURS, moment, painted, safe, table
from tocsin.text import STACK_LIMIT, clean

# A command imports what it needs when it runs: `tocsin run` must start as fast as the program it runs.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from datetime import timedelta

    from tocsin.cron import Job
    from tocsin.lifecycle import JobTrigger, Trigger
    from tocsin.prune import Pruned
    from tocsin.store import Store
    from tocsin.store.retention import Policy

OK, FAILED, USAGE = 0, 1, 2

Command = Callable[[argparse.Namespace], int]
Shape = dict[str, Any]

MUCH_FREE = 64 * 2**20
"""From so many free bytes on it is worth a hint how SQLite's file becomes smaller."""

MOST_NUMBERS = 1000
"""The most groups, or jobs, that one command acts on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the entry point ``tocsin``."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["run"] and not {"-h", "--help"} & set(argv[1:2]):
        return run(argv[1:])  # argparse would take what belongs to the user's program
    arguments = _parsed(argv)
    if not hasattr(arguments, "command"):
        parser().print_help()
        return USAGE
    try:
        return int(arguments.command(arguments))
    except SettingsError as wrong:
        return _failed(*wrong.problems, code=USAGE)
    except BadInput as wrong:
        return _failed(str(wrong), code=USAGE)
    except TableMissing as problem:
        return _failed(str(problem))
    except StoreAway as away:
        return _failed(f"the database cannot be reached: {away}", "`tocsin check` looks at every part")
    except TocsinError as problem:
        return _failed(str(problem))
    except ModuleNotFoundError as missing:
        library = (missing.name or "").partition(".")[0]
        if library in ("", "tocsin"):
            raise
        extra = "postgres" if library == "asyncpg" else "server"
        return _failed(f"{argv[0]} needs {library}, which is not installed: {install.command(extra)}")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; wrong usage ends the process, and names the command that it is about."""
    top, commands = _all()
    word = argv[0] if argv else "-"
    if not word.startswith("-") and word not in commands:
        import difflib

        near = difflib.get_close_matches(word, commands, n=1)
        top.error(f"there is no command {safe(word[:40])!r}" + (f"; did you mean {near[0]}?" if near else ""))
    arguments, rest = top.parse_known_args(argv)
    if rest:
        commands.get(word, top).error(f"there is no place for {safe(' '.join(rest)[:80])!r}")
    return arguments


def _failed(*lines: str, code: int = FAILED) -> int:
    for line in lines:
        print(f"tocsin: {safe(line)}", file=sys.stderr)
    return code


# Programs: the demo, a user's program, the server.


def demo(arguments: argparse.Namespace) -> int:
    """The demo."""
    from importlib.util import find_spec

    from tocsin.demo import play

    for library in ("uvicorn", "starlette", "apscheduler"):  # of processes that it starts
        if find_spec(library) is None:
            raise ModuleNotFoundError(name=library)
    return play(seconds=arguments.seconds, port=arguments.port)


def run(argv: list[str]) -> int:
    """A user's program, instrumented and watched; wrong settings are said, and never stop it."""
    from tocsin.run import run as run_program

    traces, restart, max_memory = False, None, 0
    while argv and argv[0].startswith("-"):
        option, equals, value = argv.pop(0).partition("=")
        if option == "--" and not equals:
            break
        if option == "--max-memory":
            if not equals and not argv:
                return _failed(f"run: {option} needs a size; {_SIZES}", code=USAGE)
            value = value if equals else argv.pop(0)
            if not (max_memory := _memory(value)):
                return _failed(f"run: {option} {value[:40]!r} is no size; {_SIZES}", code=USAGE)
        elif equals or option not in ("--traces", "--restart", "--no-restart"):
            import difflib

            near = difflib.get_close_matches(option, _RUN_OPTIONS, n=1)
            hint = f"did you mean {near[0]}?" if near else "try `tocsin run --help`"
            shown = option[:40] if option in _RUN_OPTIONS else f"option {option[:40]}"
            why = f"{shown} takes no value" if option in _RUN_OPTIONS else f"there is no {shown}; {hint}"
            return _failed(f"run: {why}", code=USAGE)
        elif option == "--traces":
            traces = True
        elif restart is not None and restart != (option == "--restart"):
            return _failed("run: give --restart or --no-restart, not both", code=USAGE)
        else:
            restart = option == "--restart"
    if not argv:
        return _failed("run: which program? For example: tocsin run -- uvicorn app:app", code=USAGE)
    settings, problems = Settings.load_leniently(traces=traces or None)
    return run_program(argv, settings, problems, traces=settings.traces, restart=restart, max_memory=max_memory)


_RUN_OPTIONS = ("--traces", "--restart", "--no-restart", "--max-memory", "--help")
_SIZES = "give a number and K, M or G, at least 16M: --max-memory 300M"
_LEAST_MEMORY = 16 * 2**20


def _memory(value: str) -> int:
    """Bytes of a size such as ``300M``; 0 for what is none, or so small that every program is beyond it."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)([KMG])", value, re.IGNORECASE)
    size = int(float(match[1]) * 1024 ** " KMG".index(match[2].upper())) if match else 0
    return size if size >= _LEAST_MEMORY else 0


def serve(arguments: argparse.Namespace) -> int:
    """The server."""
    from tocsin.serve import serve as serve_until_stopped

    return serve_until_stopped(Settings.load(), host=arguments.host, port=arguments.port)


# Setting up and upkeep.


def check(arguments: argparse.Namespace) -> int:
    """What is set up, and whether it works."""
    settings, problems = Settings.load_leniently()
    if arguments.settings:
        return _list_settings(settings, problems, as_json=arguments.json)
    from tocsin.checks import look

    findings = []
    for finding in look(settings, problems):
        findings.append(finding)
        if not arguments.json:
            state = painted(f"{finding.state:4}", COLOURS[finding.state])
            mend = f"; {finding.mend}" if finding.mend else ""
            print(f"{state} {finding.name}: {safe(finding.what)}{safe(mend)}", flush=True)
    works = all(finding.state != "FAIL" for finding in findings)
    if arguments.json:
        _print_json({"success": works, "checks": [finding.as_json() for finding in findings]})
    return OK if works else FAILED


def _list_settings(settings: Settings, problems: list[str], *, as_json: bool) -> int:
    rows = []
    for (name, default, about), one in zip(reference(), fields(Settings), strict=True):
        value = getattr(settings, one.name)
        if one.metadata["secret"] and value is not None:
            value = "***"
        rows.append({"name": name, "default": default, "value": as_text(value), "about": about})
    if as_json:
        _print_json({"success": not problems, "settings": rows, "problems": problems})
    else:
        print(table(("SETTING", "VALUE", "DEFAULT", "WHAT"), [[*_in_order(row)] for row in rows]))
        for problem in problems:
            print(f"{painted('FAIL', 'red')} {safe(problem)}")
    return USAGE if problems else OK


def _in_order(row: dict[str, str]) -> tuple[str, ...]:
    value = "" if row["value"] == row["default"] else row["value"]
    return row["name"], value, row["default"], row["about"]


_PAIRING_S = 300.0


def setup_telegram(arguments: argparse.Namespace) -> int:
    """Chat and person for alerts, found by a message to the bot."""
    import asyncio

    from tocsin import dotenv
    from tocsin.alerts.channels import Unreachable
    from tocsin.alerts.setup import pair

    settings = Settings.load()
    if not settings.telegram_token:
        return _failed("set TOCSIN_TELEGRAM_TOKEN first; @BotFather gives you one", code=USAGE)
    try:
        chat_id, user_id = asyncio.run(pair(settings, lambda line: print(line, flush=True), _PAIRING_S))
    except TimeoutError as problem:
        return _failed(str(problem), "try again when you have the bot before you")
    except Unreachable as problem:
        where = f"{settings.telegram_api_url} cannot be reached: {problem}"
        return _failed(where, "set TOCSIN_TELEGRAM_PROXY, or TOCSIN_TELEGRAM_API_URL, when this network needs it")
    ids = {
        "TOCSIN_TELEGRAM_CHAT_IDS": dict.fromkeys((*settings.telegram_chat_ids, chat_id)),
        "TOCSIN_TELEGRAM_USER_IDS": dict.fromkeys((*settings.telegram_user_ids, user_id)),
    }
    lines = {name: ",".join(map(str, found)) for name, found in ids.items()}
    path = Path.cwd() / ".env"
    dotenv.write(path, lines)
    print(f"The test has arrived. {path} now has:")
    for name, value in lines.items():
        print(f"  {name}={value}")
        if os.environ.get(name, value) != value:
            print(f"  but the environment's {name} is stronger; take it out or set it to the same")
    return OK


def migrate(arguments: argparse.Namespace) -> int:
    """The database's tables, brought up to date, and all rows of an early table grouped."""
    from tocsin.exporter import early
    from tocsin.store import open_store
    from tocsin.store.migrate import migrate_now

    settings = _with_database("migrate")
    store = open_store(settings.database_url)

    def say(line: str) -> None:
        print(safe(line), flush=True)

    try:
        version = migrate_now(store, say, mend=True)
        early.finish(store, settings.categories, say)
    finally:
        store.close_now()
    return _say(f"the database is up to date: schema {version}")


def prune(arguments: argparse.Namespace) -> int:
    """What is too old or too much, removed now."""
    from tocsin import prune as pruning
    from tocsin.store.retention import Policy

    settings = _with_database("prune")
    policy = Policy(days=arguments.days or settings.retention_days, max_db_mb=settings.max_db_mb)
    with _store() as store:
        if arguments.dry_run:
            pruned = pruning.measured(store, pruning.count(store, policy))
        else:
            with pruning.stoppable() as stop:
                pruned = pruning.prune(store, policy, stop)
            if arguments.vacuum and pruned.stopped_by is None:
                pruned = _compacted(store, pruned)
    told = {str(task): count for task, count in pruned.removed.items() if count}
    if arguments.json:
        megabytes = {"used": pruned.used_bytes, "file": pruned.file_bytes, "free": pruned.free_bytes}
        shape = {name + "_mb": round(size / 2**20, 1) for name, size in megabytes.items()}
        done = pruned.stopped_by is None
        _print_json({"success": done, "dry_run": arguments.dry_run, "removed": told, **shape})
    else:
        _print_pruned(pruned, policy, is_dry_run=arguments.dry_run)
    return OK if pruned.stopped_by is None else 128 + pruned.stopped_by


def _print_pruned(pruned: Pruned, policy: Policy, *, is_dry_run: bool) -> None:
    from tocsin.prune import words_of

    word = "would remove" if is_dry_run else "removed"
    for task, count in pruned.removed.items():
        if count:
            print(f"{word} {count:,} {words_of(task, policy)}")
    if not pruned.removed.total():
        print("nothing is too old or too much")
    if pruned.stopped_by is not None:
        print("stopped before its end; what was removed stays removed")
    free = f", {pruned.free_bytes / 2**20:,.0f} MB of them free for what comes" if pruned.free_bytes else ""
    print(f"the database holds {_megabytes(pruned.used_bytes)} and takes {_megabytes(pruned.file_bytes)} on disk{free}")
    if pruned.free_bytes > max(pruned.file_bytes // 4, MUCH_FREE):
        print("`tocsin prune --vacuum` gives the free space back; errors wait in the spool meanwhile")


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.{0 if size >= 10 * 2**20 else 1}f} MB"


def _compacted(store: Store, pruned: Pruned) -> Pruned:
    """The file of SQLite, written anew; PostgreSQL sees to its own."""
    from tocsin import prune as pruning
    from tocsin.store.engine import SqliteStore
    from tocsin.store.retention import compact

    if not isinstance(store, SqliteStore):
        print("PostgreSQL makes room by itself (autovacuum); --vacuum is for SQLite", file=sys.stderr)
        return pruned
    print("writing the file anew; who wants to write waits", file=sys.stderr, flush=True)
    compact(store.path)
    return pruning.measured(store, pruned.removed)


def test_alert(arguments: argparse.Namespace) -> int:
    """A test message on every channel."""
    import asyncio

    from tocsin.alerts.scheduler import send_test
    from tocsin.store import open_store

    settings = _with_database("test-alert")

    async def send() -> list[tuple[str, str, str | None]]:
        store = open_store(settings.database_url)
        try:
            return await send_test(settings, store)
        finally:
            await store.close()

    results = asyncio.run(send())
    for channel, target, problem in results:
        word = "ok" if problem is None else "FAIL"
        print(
            f"{painted(f'{word:4}', COLOURS[word])} {channel} {safe(target)}"
            + (f": {safe(problem)}" if problem else "")
        )
    if not results:
        return _failed("no channel is set up; `tocsin setup telegram` sets one up")
    return OK if all(problem is None for _, _, problem in results) else FAILED


def _with_database(command: str) -> Settings:
    """The settings, where they name a database; what is set up and kept up is where the server is."""
    from tocsin import remote

    settings = Settings.load()
    if remote.is_meant(settings):
        raise BadInput(command, f"the database is where {settings.endpoint} has it; run it there")
    return settings


# Errors and groups: what is there.


class Records(Protocol):
    """What is stored, by whichever way: `tocsin.local.Local`, `tocsin.remote.Remote`; the API's shapes."""

    def errors(self, **filters: Any) -> Shape: ...

    def groups(self, **filters: Any) -> Shape: ...

    def group(self, name: str) -> Shape: ...

    def stats(self, hours: int, **filters: Any) -> Shape: ...

    def alerts(self, **filters: Any) -> Shape: ...

    def beats(self, environment: str | None = None) -> Shape: ...

    def forget_beat(self, name: str, environment: str | None, *, by: str) -> Shape: ...

    def act(self, number: int, trigger: Trigger, *, by: str, span: timedelta | None = None) -> Shape: ...

    def jobs(self, **filters: Any) -> Shape: ...

    def job(self, name: str) -> Shape: ...

    def act_on_job(self, number: int, trigger: JobTrigger, *, by: str) -> Shape: ...

    def begin_retry(self, number: int, *, by: str, runner: str) -> Shape: ...

    def keep_retry(self, number: int, *, by: str, runner: str) -> None: ...

    def end_retry(self, number: int, *, by: str, runner: str, is_done: bool, outcome: str) -> Shape: ...

    def close(self) -> None: ...


@contextmanager
def _records() -> Iterator[Records]:
    """What the settings name: the database, or a server where they name only that."""
    from tocsin import remote

    settings = Settings.load()
    if remote.is_meant(settings):
        with closing(remote.Remote(settings)) as there:
            yield there
        return
    from tocsin.local import Local

    with _store() as store, closing(Local(store)) as here:
        yield here


@contextmanager
def _store() -> Iterator[Store]:
    """The database that the settings name, ready for use."""
    from tocsin.store import open_store
    from tocsin.store.engine import SqliteStore, hindrance
    from tocsin.store.migrate import prepare_now

    settings = Settings.load()
    store = open_store(settings.database_url)
    if isinstance(store, SqliteStore) and not store.path.exists():
        if problem := hindrance(store.path):
            raise TocsinError(f"{store.path} {problem}; put TOCSIN_DATABASE_URL right")
        raise TocsinError(
            f"nothing is stored yet: {store.path} is made with the first error (TOCSIN_DATABASE_URL names it)"
        )
    try:
        prepare_now(store)
        yield store
    finally:
        store.close_now()


def errors(arguments: argparse.Namespace) -> int:
    """The newest errors, or groups."""
    return _list_groups(arguments) if arguments.groups else _list_errors(arguments)


def _list_errors(arguments: argparse.Namespace) -> int:
    if arguments.status not in (None, "resolved", "unresolved"):
        from tocsin.lifecycle import Status

        raise BadInput("--status", "an error is resolved or unresolved; with --groups also " + ", ".join(Status))
    resolved = None if arguments.status is None else arguments.status == "resolved"
    with _records() as records:
        page = records.errors(**_filters(arguments), resolved=resolved, group=arguments.group)
    if arguments.json:
        return _print_json(page)
    if not page["errors"]:
        return _say("no errors")
    print(_table_of_errors(page["errors"]))
    return _say_more(page["next"])


def _table_of_errors(rows: Sequence[dict[str, Any]]) -> str:
    heads = ("WHEN (UTC)", "GROUP", "SEVERITY", "CATEGORY", "COUNT", "SERVICE", "MESSAGE")
    cells = [
        (
            moment(row["timestamp"]),
            "" if row["group"] is None else f"#{row['group']}",
            row["severity"],
            row["category"],
            row["count"],
            row["service"],
            ": ".join(filter(None, (row["exception_type"], row["message"]))),
        )
        for row in rows
    ]
    return table(heads, cells)


def _list_groups(arguments: argparse.Namespace) -> int:
    if arguments.status == "unresolved" or arguments.group is not None:
        from tocsin.lifecycle import Status

        raise BadInput("--groups", f"goes with --status {', '.join(Status)}, and not with --group")
    with _records() as records:
        page = records.groups(**_filters(arguments), status=arguments.status)
    if arguments.json:
        return _print_json(page)
    if not page["groups"]:
        return _say("no groups")
    heads = ("GROUP", "STATUS", "SEVERITY", "CATEGORY", "COUNT", "LAST SEEN (UTC)", "SERVICE", "TITLE")
    cells = [
        (
            f"#{one['number']}",
            one["status"],
            one["severity"],
            one["category"],
            one["count"],
            moment(one["last_seen"]),
            one["service"],
            one["title"],
        )
        for one in page["groups"]
    ]
    print(table(heads, cells))
    return _say_more(page["next"])


def _filters(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("severity", "category", "service", "environment", "q", "limit", "before")
    return {name: getattr(arguments, name) for name in names}


def show(arguments: argparse.Namespace) -> int:
    """One group with all that is known of it."""
    name = str(_number(arguments.group)) if _is_number(arguments.group) else arguments.group
    if not re.fullmatch(rf"[0-9]+|{_UUID}", name):
        raise BadInput(name[:40], "give the number of a group, such as 42, or the id of an error")
    with _records() as records:
        shape = records.group(name)
    if arguments.json:
        return _print_json(shape)
    print("\n".join(_told(shape)))
    return OK


def _told(shape: dict[str, Any]) -> Iterator[str]:
    """A group in lines for people."""
    group = shape["group"]
    yield painted(f"#{group['number']} {safe(group['title'])}", "bold")
    yield ""
    for name in ("status", "severity", "category", "culprit", "service", "environment", "count", "regressions"):
        if group[name]:
            yield f"{name:14}{painted(safe(group[name]), COLOURS.get(str(group[name])))}"
    yield f"{'first seen':14}{moment(group['first_seen'])} UTC"
    yield f"{'last seen':14}{moment(group['last_seen'])} UTC"
    if group["resolved_at"]:
        in_release = f" in {group['resolved_in_release']}" if group["resolved_in_release"] else ""
        yield f"{'resolved':14}{moment(group['resolved_at'])} UTC by {safe(group['resolved_by'])}{safe(in_release)}"
    if group["muted_until"]:
        yield f"{'muted until':14}{moment(group['muted_until'])} UTC"
    if shape["errors"]:
        yield from _told_error(shape["errors"][0])
    if len(shape["errors"]) > 1:
        yield ""
        yield _table_of_errors(shape["errors"])
    if shape["history"]:
        yield ""
        yield table(
            ("WHEN (UTC)", "WHO", "BY WAY OF", "WHAT", ""),
            [(moment(row["at"]), row["actor"], row["via"], row["action"], row["detail"]) for row in shape["history"]],
        )


def _told_error(error: dict[str, Any]) -> Iterator[str]:
    """The newest error: what it says, where, and in which context."""
    from tocsin.exporter import breadcrumbs

    yield ""
    yield painted(f"The newest error, {error['id']}", "bold")
    for name in ("release", "trace_id", "mechanism"):
        if error[name]:
            yield f"{name:14}{safe(error[name])}"
    for key, value in sorted((error["context"] or {}).items()):
        if key not in ("tocsin.frames", "tocsin.exception.causes", "tocsin.breadcrumbs"):
            yield f"{safe(key)}: {safe(value)}"
    yield ""
    yield clean(error["stack"] or error["message"], STACK_LIMIT).rstrip()
    if crumbs := breadcrumbs.told((error["context"] or {}).get("tocsin.breadcrumbs")):
        yield ""
        yield table(("BEFORE IT", "WHAT", "", ""), [(one.time, one.what, one.note, one.text) for one in crumbs])
    frames = (error["context"] or {}).get("tocsin.frames") or ()
    own = [frame for frame in frames if frame.get("before")]
    if own:
        yield ""
        yield from _told_source(own[-1])
    for frame in reversed(frames):
        if isinstance(frame.get("vars"), dict):
            yield ""
            yield painted(f"In {safe(frame['function'])} ({safe(frame['file'])}:{frame['line']})", "bold")
            yield from (f"  {safe(name)} = {safe(text)}" for name, text in sorted(frame["vars"].items()))


def _told_source(frame: dict[str, Any]) -> Iterator[str]:
    """The lines around the one that failed, on the team's own innermost frame."""
    yield painted(f"{safe(frame['file'])}, in {safe(frame['function'])}", "bold")
    first = frame["line"] - len(frame["before"])
    here = frame["before"][-1:] or [""]
    indent = len(here[0]) - len(here[0].lstrip())
    lines = [*frame["before"], " " * indent + frame["text"], *frame.get("after", ())]
    for number, line in enumerate(lines, first):
        mark = ">" if number == frame["line"] else " "
        yield f"{mark} {number:5}  {clean(line, 400)}".rstrip()


def stats(arguments: argparse.Namespace) -> int:
    """How many errors there were lately."""
    with _records() as records:
        shape = records.stats(arguments.hours, service=arguments.service, environment=arguments.environment)
    if arguments.json:
        return _print_json(shape)
    found = shape["stats"]
    print(painted(f"{found['total']} errors within {arguments.hours} h; {found['unresolved']} not resolved", "bold"))
    for by in ("severity", "category", "service"):
        if counts := found[f"by_{by}"]:
            print(f"\n{table((by.upper(), 'COUNT'), list(counts.items()))}")
    hours = [(moment(one["hour"])[5:16], one["count"]) for one in found["by_hour"]]
    most = max((count for _, count in hours), default=0)
    if most:
        bars = [(hour, count, "█" * -(-count * 40 // most)) for hour, count in hours]
        print(f"\n{table(('HOUR (UTC)', 'COUNT', ''), bars)}")
    return OK


def alerts(arguments: argparse.Namespace) -> int:
    """What rang, and whether it arrived."""
    with _records() as records:
        page = records.alerts(limit=arguments.limit, before=arguments.before)
    if arguments.json:
        return _print_json(page)
    if not page["alerts"]:
        return _say("no alerts")
    heads = ("WHEN (UTC)", "GROUP", "WHY", "SEVERITY", "SERVICE", "DELIVERIES")
    cells = []
    for one in page["alerts"]:
        ways = [
            f"{way['channel']} {way['target']} {way['state']}" + (f": {way['last_error']}" if way["last_error"] else "")
            for way in one["deliveries"]
        ]
        number = "" if one["group"] is None else f"#{one['group']}"
        cells.append(
            (moment(one["created_at"]), number, one["reason"], one["severity"], one["service"], "; ".join(ways))
        )
    print(table(heads, cells))
    return _say_more(page["next"])


# Errors and groups: what people do to them.


def _acting(trigger: Trigger) -> Command:
    def act(arguments: argparse.Namespace) -> int:
        return _act(arguments, trigger)

    return act


def mute(arguments: argparse.Namespace) -> int:
    """Some groups, silent for a while."""
    from tocsin.lifecycle import Trigger

    *words, last = arguments.groups
    if words and not re.fullmatch(r"[#0-9,-]+", last):
        try:
            arguments.groups, arguments.span = words, _span(last)
        except argparse.ArgumentTypeError as problem:
            raise BadInput(last, str(problem)) from None
    return _act(arguments, Trigger.MUTE, span=arguments.span)


def _act(arguments: argparse.Namespace, trigger: Trigger, *, span: timedelta | None = None) -> int:
    numbers = _numbers(arguments.groups)
    outcomes: list[Shape] = []
    with _records() as records:
        for number in numbers:
            outcomes.append(records.act(number, trigger, by=_user(), span=span))
            if not arguments.json:
                _print_outcome(outcomes[-1])
    return _ended(outcomes, as_json=arguments.json)


def _ended(outcomes: Sequence[Shape], *, as_json: bool) -> int:
    done = all(outcome["success"] for outcome in outcomes)
    if as_json:
        _print_json(outcomes[0] if len(outcomes) == 1 else {"success": done, "results": outcomes})
    return OK if done else FAILED


def _print_outcome(outcome: dict[str, Any]) -> None:
    if outcome["success"]:
        print(f"{safe(outcome['message'])}  {safe(outcome['group']['title'])}")
    else:
        _failed(outcome["error"])


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_NUMBER = re.compile(r"#?([0-9]{1,9})")
_RANGE = re.compile(r"#?([0-9]{1,9})-#?([0-9]{1,9})")


def _is_number(word: str) -> bool:
    return _NUMBER.fullmatch(word) is not None


def _number(word: str, of: str = "group") -> int:
    match = _NUMBER.fullmatch(word)
    if match is None:
        raise BadInput(word[:40], f"give the number of a {of}, such as 42")
    return int(match[1])


def _numbers(words: Sequence[str], of: str = "group") -> list[int]:
    """The groups, or jobs, that words name: ``42``, ``#43``, ``50-60``; each once, in the order given."""
    found: dict[int, None] = {}
    for word in (part for given in words for part in given.split(",") if part):
        if match := _RANGE.fullmatch(word):
            first, last = int(match[1]), int(match[2])
            if not first <= last < first + MOST_NUMBERS:
                raise BadInput(word, f"give the smaller number first, and at most {MOST_NUMBERS} {of}s")
            found |= dict.fromkeys(range(first, last + 1))
        else:
            found[_number(word, of)] = None
    if not found or len(found) > MOST_NUMBERS:
        raise BadInput(f"{of}s", f"give 1 to {MOST_NUMBERS} {of}s, such as: 42 43 50-60")
    return list(found)


# Failed jobs.


def jobs(arguments: argparse.Namespace) -> int:
    """Jobs that failed after their retries."""
    from tocsin import jobs_cli

    if arguments.all and arguments.status:
        raise BadInput("--all", "goes without --status")
    filters = {name: getattr(arguments, name) for name in ("service", "environment", "q", "limit", "before")}
    with _records() as records:
        page = records.jobs(status="all" if arguments.all else arguments.status, **filters)
    if arguments.json:
        return _print_json(page)
    if not page["jobs"]:
        return _say("no jobs" if arguments.all or arguments.status else "no job waits; --all lists those dealt with")
    print(jobs_cli.listed(page["jobs"]))
    return _say_more(page["next"])


def show_job(arguments: argparse.Namespace) -> int:
    """One job with its arguments, its tries and its history."""
    from tocsin import jobs_cli

    with _records() as records:
        shape = records.job(_job_name(arguments.job))
    if arguments.json:
        return _print_json(shape)
    print("\n".join(jobs_cli.told(shape)))
    return OK


def retry_job(arguments: argparse.Namespace) -> int:
    """A job's function, run again in this folder."""
    from tocsin import jobs_cli, rerun

    given = rerun.given_of(arguments.set)
    with _records() as records:
        asks = sys.stdin.isatty() and not arguments.yes
        return jobs_cli.retry(records, _job_name(arguments.job), given, by=_user(), asks=asks)


def _acting_on_jobs(trigger: str) -> Command:
    def act(arguments: argparse.Namespace) -> int:
        from tocsin.lifecycle import JobTrigger

        outcomes: list[Shape] = []
        with _records() as records:
            for number in _numbers(arguments.jobs, of="job"):
                outcomes.append(records.act_on_job(number, JobTrigger(trigger), by=_user()))
                if arguments.json:
                    continue
                if outcomes[-1]["success"]:
                    print(f"{safe(outcomes[-1]['message'])}  {safe(outcomes[-1]['job']['function'])}")
                else:
                    _failed(outcomes[-1]["error"])
        return _ended(outcomes, as_json=arguments.json)

    return act


def _job_name(word: str) -> str:
    name = str(_number(word)) if _is_number(word) else word
    if not re.fullmatch(rf"[0-9]+|{_UUID}", name):
        raise BadInput(name[:40], "give the number of a job, such as 7, or its id")
    return name


# Cron jobs.


def beat(arguments: argparse.Namespace) -> int:
    """A cron job's sign of life, or the job itself and how it went; without a name the list of them."""
    _refuse_odd(arguments)
    if arguments.name is None:
        return _list_beats(arguments)
    from tocsin.beats import name_of

    name = name_of(arguments.name)
    if arguments.forget:
        with _records() as records:
            done = records.forget_beat(name, arguments.environment, by=_user())
        return _print_json(done) if arguments.json else _say(done["message"])
    from tocsin import cron

    every, grace = ((span and span.total_seconds()) for span in (arguments.every, arguments.grace))
    job = cron.Job(name=name, every_s=every, grace_s=grace, message=arguments.message or "")
    settings, problems = Settings.load_leniently(environment=arguments.environment)
    if arguments.program:  # which runs, whatever is wrong with us
        _failed(*problems)
        cron.run(job, arguments.program, settings, lambda: _unknown_beat(job, settings))
    if problems:
        raise SettingsError(problems)
    if problem := _unknown_beat(job, settings):
        return _failed(problem, code=USAGE)
    return OK if cron.say_told(job, settings, is_ok=not arguments.failed) else FAILED


def _refuse_odd(arguments: argparse.Namespace) -> None:
    """What makes no sense together."""
    tells = [option for option in ("every", "grace", "message", "failed") if getattr(arguments, option)]
    if arguments.name is None and (tells or arguments.forget or arguments.program):
        raise BadInput("name", "which beat? For example: tocsin beat nightly --every 1d")
    if arguments.forget and (tells or arguments.program):
        raise BadInput("--forget", "stands alone: what is forgotten tells nothing")
    if arguments.failed and arguments.program:
        raise BadInput("--failed", "the command's exit code says that")
    if arguments.json and arguments.name is not None and not arguments.forget:
        raise BadInput("--json", "is for the list, `tocsin beat --json`, and for --forget")


def _unknown_beat(job: Job, settings: Settings) -> str | None:
    """That nobody has ever said how often it runs; None also where nobody can be asked just now."""
    if job.every_s is not None:
        return None
    from tocsin import cron, local, remote  # noqa: F401  (what takes a while to import is no part of the time to ask)
    from tocsin.store import migrate  # noqa: F401

    def known() -> list[str]:
        shown = settings.shown_database()
        if not settings.endpoint and shown.startswith("SQLite ") and not Path(shown.removeprefix("SQLite ")).exists():
            return []  # it is made with the first that is told
        with _records() as records:
            return [one["name"] for one in records.beats(settings.environment)["beats"]]

    names = cron.within(known)
    if names is None or job.name in names:
        return None
    return f"nothing is known of {job.name} in {settings.environment} yet: say how often it runs, such as --every 1d"


def _list_beats(arguments: argparse.Namespace) -> int:
    with _records() as records:
        found = records.beats(arguments.environment)
    if arguments.json:
        return _print_json(found)
    if not found["beats"]:
        return _say("no beats")
    heads = ("NAME", "ENVIRONMENT", "EVERY", "LAST (UTC)", "DUE (UTC)", "STATE", "MESSAGE")
    cells = [
        (
            one["name"],
            one["environment"],
            one["every"],
            moment(one["last_at"]),
            moment(one["due_at"]),
            one["state"],
            "; ".join(filter(None, [one["group"] and f"#{one['group']}", one["message"]])),
        )
        for one in found["beats"]
    ]
    print(table(heads, cells))
    return OK


# How things are printed.


def _print_json(shape: Any) -> int:
    from tocsin.store.shapes import as_json

    text = as_json(shape, indent=2)
    print(text.encode("utf-8", "backslashreplace").decode())
    return OK


def _say(text: str) -> int:
    print(text)
    return OK


def _say_more(following: str | None) -> int:
    if following is not None:
        print(painted(f"There are more: --before {following}", "dim"))
    return OK


# The arguments.


class _Parser(argparse.ArgumentParser):
    """Help keeps the lines of its examples; wrong usage names the command's help."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; try `{self.prog} --help`\n")

    takes_program = False
    """What stands behind ``--`` is a program with its own arguments, `program`."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if not self.takes_program:
            return super().parse_known_args(args, namespace)
        words = list(args or ())
        at = words.index("--") if "--" in words else len(words)
        found, rest = super().parse_known_args(words[:at], namespace)
        found.program = words[at + 1 :]
        return found, rest


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise argparse.ArgumentTypeError(f"give a whole number from {low} to {high}")
        return int(value)

    return parse


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", value) or float(value) < 5:
        raise argparse.ArgumentTypeError("give 5 seconds or more")
    return float(value)


def _span(value: str) -> timedelta:
    from tocsin.spans import span_of

    if span := span_of(value):
        return span
    raise argparse.ArgumentTypeError("give a length of time such as 30m, 2h or 1d, at most a year")


def _words(kind: Iterable[str]) -> list[str]:
    """The plain words of an enumeration: argparse shows a wrong choice by its `repr`."""
    return [str(word) for word in kind]


def parser() -> argparse.ArgumentParser:
    """All commands with their arguments; ``command`` is the function to call."""
    return _all()[0]


def command_names() -> list[str]:
    """The names of all commands, in the order of the help."""
    return list(_all()[1])


def _all() -> tuple[_Parser, Mapping[str, argparse.ArgumentParser]]:
    from datetime import timedelta

    from tocsin.lifecycle import JobStatus, Status, Trigger
    from tocsin.model import Severity

    top = _Parser(
        prog="tocsin",
        description="Crash protection, error tracking and alerting for services.",
        epilog="Settings are read from TOCSIN_* in the environment, from .env and from tocsin.toml;\n"
        "`tocsin check --settings` lists them. `tocsin demo` shows all of it within seconds.\n"
        "With TOCSIN_ENDPOINT and no database, errors are looked at by way of that server.",
    )
    top.add_argument("--version", action="version", version=f"tocsin {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def add(
        name: str, run_it: Callable[[argparse.Namespace], int], about: str, *examples: str, then: str = ""
    ) -> _Parser:
        epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples) + then if examples else None
        one = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=epilog)
        one.set_defaults(command=run_it)
        return one

    one = add("demo", demo, "a small shop that fails in many ways, and what you hear of it", "tocsin demo --seconds 20")
    one.add_argument("--seconds", type=_seconds, metavar="N", help="end after so many seconds (default: at Ctrl-C)")
    one.add_argument("--port", type=_whole(1, 65535), metavar="P", help="port of the server (default: a free one)")

    one = add(
        "run",
        lambda arguments: run(arguments.program),
        "run a program instrumented, without a change in its code, and watch how it ends",
        "tocsin run -- uvicorn app:app --workers 4",
        "TOCSIN_SERVICE=shop tocsin run -- python app.py",
        "tocsin run --max-memory 300M -- node app.js",
        "tocsin run --traces -- uvicorn app:app",
        "pm2 start --kill-timeout 35000 --name shop tocsin -- run -- uvicorn app:app",
        then=_RUN_WORDS,
    )
    one.add_argument("--traces", action="store_true", help="add the OpenTelemetry ASGI instrumentation")
    one.add_argument(
        "--restart",
        action="store_true",
        help="start the program again when it dies, after 1, 2, 4 … 60 s (default: only at a terminal)",
    )
    one.add_argument("--no-restart", action="store_true", help="leave that to PM2, systemd or Docker")
    one.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="stop the program in order, and start it again, when it and its processes take more: 300M, 1.5G",
    )
    one.add_argument("program", nargs="...", metavar="[--] PROGRAM …", help="the program and its own arguments")

    one = add(
        "serve",
        serve,
        "debug API, page, alerts and bot in one process",
        "tocsin serve",
        "tocsin serve --host 0.0.0.0 --port 4318",
    )
    one.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    one.add_argument("--port", type=_whole(1, 65535), default=4318, metavar="P", help="default: 4318")

    one = add("check", check, "what is set up and whether it works; exit 1 if not", "tocsin check --settings")
    one.add_argument("--settings", action="store_true", help="list every setting with its value; secrets as ***")
    _add_json(one)

    setup = add("setup", lambda arguments: _which(setup), "set up a channel", "tocsin setup telegram")
    channels = setup.add_subparsers(title="channels", metavar="CHANNEL", parser_class=_Parser)
    telegram = channels.add_parser(
        "telegram",
        help="find chat and person by a message to the bot",
        description="Waits for /start from you, writes chat and person into .env, and sends a test.\n"
        "Set TOCSIN_TELEGRAM_TOKEN first; @BotFather gives you one.",
    )
    telegram.set_defaults(command=setup_telegram)

    one = add(
        "errors",
        errors,
        "the newest errors, or groups of them",
        "tocsin errors --severity critical --limit 10",
        "tocsin errors --groups --status open",
        "tocsin errors --json | jq '.errors[0].stack'",
    )
    one.add_argument("--groups", action="store_true", help="groups instead of single errors")
    one.add_argument("--severity", choices=_words(Severity), metavar="WORD", help=", ".join(Severity))
    one.add_argument("--category", metavar="WORD", help="such as database, amocrm, api")
    one.add_argument(
        "--status", choices=["unresolved", *_words(Status)], metavar="WORD", help=f"unresolved, {', '.join(Status)}"
    )
    one.add_argument("--group", type=_group_number, metavar="N", help="only errors of this group")
    one.add_argument("-q", metavar="TEXT", help="only with this text")
    _add_where(one)
    _add_page(one)
    _add_json(one)

    one = add("show", show, "one group: where, how often, stack, history", "tocsin show 42", "tocsin show 42 --json")
    one.add_argument("group", metavar="N", help="number of a group, or id of an error")
    _add_json(one)

    for name, trigger, about in (
        ("resolve", Trigger.RESOLVE, "it is mended; if it comes back, it rings again"),
        ("reopen", Trigger.REOPEN, "it is not mended after all"),
        ("ack", Trigger.ACKNOWLEDGE, "somebody is at it"),
        ("ignore", Trigger.IGNORE, "never ring for it again"),
    ):
        one = add(name, _acting(trigger), f"groups: {about}", f"tocsin {name} 42", f"tocsin {name} 42 43 50-60")
        _add_groups(one)
        _add_json(one)

    one = add(
        "mute", mute, "groups: no ring for a while", "tocsin mute 42", "tocsin mute 42 43 2h", "tocsin mute 42 1d"
    )
    _add_groups(one, then=", then for how long: 2h")
    one.add_argument("--for", dest="span", type=_span, default=timedelta(hours=1), metavar="TIME", help="default: 1h")
    _add_json(one)

    one = add("stats", stats, "how many errors there were lately", "tocsin stats --hours 168")
    one.add_argument("--hours", type=_whole(1, 24 * 366), default=24, metavar="N", help="default: 24")
    _add_where(one)
    _add_json(one)

    one = add("alerts", alerts, "what rang, why, and whether it arrived", "tocsin alerts --limit 5")
    _add_page(one)
    _add_json(one)

    one = add(
        "jobs",
        jobs,
        "work that failed after its retries: look at it, run it again, say that it is done",
        "tocsin jobs --service shop",
        "tocsin jobs show 7",
        "tocsin jobs retry 7",
        "tocsin jobs done 7 8",
        "tocsin jobs discard 7-20",
    )
    one.add_argument("--all", action="store_true", help="also those that are done or discarded")
    one.add_argument("--status", choices=_words(JobStatus), metavar="WORD", help=", ".join(JobStatus))
    one.add_argument("-q", metavar="TEXT", help="only with this text in function or error")
    _add_where(one)
    _add_page(one)
    _add_json(one)
    _add_job_commands(one)

    one = add(
        "beat",
        beat,
        "a cron job's sign of life: it rings when one fails or stays away; without a name their list",
        "tocsin beat nightly --every 1d -- /usr/local/bin/backup --full",
        "tocsin beat nightly --every 1d --grace 2h",
        "tocsin beat nightly --failed --message 'disk full'",
        "tocsin beat",
        "tocsin beat nightly --forget",
        then=_BEAT_WORDS,
    )
    one.takes_program = True
    one.usage = "tocsin beat [NAME] [--every TIME] [--grace TIME] [--failed] [--message TEXT] [-- COMMAND …]"
    one.add_argument("name", nargs="?", metavar="NAME", help="what the job is called")
    one.add_argument(
        "--every", type=_span, metavar="TIME", help="how often it runs: 30m, 2h, 1d; needed the first time"
    )
    one.add_argument(
        "--grace", type=_span, metavar="TIME", help="how much later it may come (default: a tenth, at most 2h)"
    )
    one.add_argument("--failed", action="store_true", help="it ran, and failed")
    one.add_argument("--message", metavar="TEXT", help="what there is to say of this run")
    one.add_argument("--forget", action="store_true", help="it runs no more")
    one.add_argument(
        "--environment", metavar="NAME", help="where it runs (default: TOCSIN_ENVIRONMENT; of the list: all)"
    )
    _add_json(one)

    add("test-alert", test_alert, "send a test message on every channel")
    add("migrate", migrate, "bring the database's tables up to date")

    one = add(
        "prune",
        prune,
        "remove now what is too old or too much; a server does so every hour",
        "tocsin prune --dry-run",
        "tocsin prune --days 7 --vacuum",
    )
    one.add_argument(
        "--days",
        type=_whole(1, 36_500),
        metavar="N",
        help="remove errors older than N days (default: TOCSIN_RETENTION_DAYS); the last hour's stay",
    )
    one.add_argument("--dry-run", action="store_true", help="only count what would go")
    one.add_argument(
        "--vacuum", action="store_true", help="SQLite: write the file anew, without free space and traces of what went"
    )
    _add_json(one)
    return top, commands.choices


_RUN_WORDS = """

A small parent sees how the program ends. An exit code other than 0 and any signal that nobody asked for are
critical errors, with what is known of the end; the parent ends in the same way, and with exit code 0 after an
orderly stop (SIGTERM, SIGINT or SIGHUP came, and the program ended of it).

PM2, systemd and Docker start a program again by themselves: under them nothing is restarted here, unless
--restart says so. Give them more time than TOCSIN_SHUTDOWN_TIMEOUT_S (30 s) before they kill: `kill_timeout`,
`TimeoutStopSec`, `stop_grace_period`. --max-memory replaces PM2's max_memory_restart, which sees only the parent."""


def _add_job_commands(jobs: argparse.ArgumentParser) -> None:
    acts = jobs.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run_it: Command, about: str, *, several: bool) -> argparse.ArgumentParser:
        one = acts.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        one.set_defaults(command=run_it)
        if several:
            one.add_argument("jobs", nargs="+", metavar="N", help="numbers of jobs, and ranges: 7 8 10-20")
        else:
            one.add_argument("job", metavar="N", help="number of a job, or its id")
        return one

    _add_json(add("show", show_job, "its arguments, its tries, what people did to it", several=False))
    one = add("retry", retry_job, "run it again in this folder, the service's own, with its Python", several=False)
    one.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="ARG=VALUE",
        help="an argument in place of what is kept, as JSON or text: kwargs.token=…, args.0=7",
    )
    one.add_argument("--yes", action="store_true", help="do not ask (only a terminal is asked)")
    _add_json(add("done", _acting_on_jobs("done"), "it was done, by hand or otherwise", several=True))
    _add_json(add("discard", _acting_on_jobs("discard"), "nobody will do it any more", several=True))


_BEAT_WORDS = """

With a command the job is run, its input, output, signals and exit code untouched, and how it went is told. While
neither database nor server can be reached, that waits on this machine; it costs the job a few seconds at most."""


def _which(setup: argparse.ArgumentParser) -> int:
    setup.print_help(sys.stderr)
    return USAGE


def _group_number(value: str) -> int:
    if not _is_number(value):
        raise argparse.ArgumentTypeError("give the number of a group, such as 42")
    return _number(value)


def _add_groups(one: argparse.ArgumentParser, then: str = "") -> None:
    one.add_argument("groups", nargs="+", metavar="N", help=f"numbers of groups, and ranges: 42 43 50-60{then}")


def _add_where(one: argparse.ArgumentParser) -> None:
    one.add_argument("--service", metavar="NAME", help="only of this service")
    one.add_argument("--environment", metavar="NAME", help="only of this environment")


def _add_page(one: argparse.ArgumentParser) -> None:
    one.add_argument("--limit", type=_whole(1, 500), default=50, metavar="N", help="at most so many (default: 50)")
    one.add_argument("--before", metavar="NEXT", help="go on where a list ended: its `next`")


def _add_json(one: argparse.ArgumentParser) -> None:
    one.add_argument("--json", action="store_true", help="as JSON, in the shape of the API")


if __name__ == "__main__":
    sys.exit(main())
