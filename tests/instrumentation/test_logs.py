"""Log lines: from level ERROR on they are errors, however `logging` is set up."""

from __future__ import annotations

import logging
import logging.config
from typing import Any

import pytest

import tocsin
from tests.instrumentation.conftest import Watched
from tests.waiting import eventually

log = logging.getLogger("shop.orders")


def test_an_error_line_is_an_error_with_its_place(watched: Watched) -> None:
    log.error("order %d is lost", 42)

    row = watched.row()
    assert (row.message, row.severity, row.handled, row.mechanism) == ("order 42 is lost", "high", True, "logging")
    assert row.context["tocsin.logger"] == "shop.orders"
    assert row.context["code.function.name"] == "test_an_error_line_is_an_error_with_its_place"
    assert row.exception_type is None


def test_an_exception_line_is_that_exception(watched: Watched) -> None:
    try:
        int("x")
    except ValueError:
        log.exception("cannot do %s", "it")

    row = watched.row()
    assert row.exception_type == "ValueError"
    assert row.context["log.message"] == "cannot do it"


@pytest.mark.parametrize(("level", "stored"), [("warning", 3), ("error", 2), ("critical", 1)])
def test_the_level_is_set(level: str, stored: int, unwatched: Watched) -> None:
    unwatched.init(log_level=level)

    log.warning("a warning")
    log.error("an error")
    log.critical("the end")
    log.info("nothing")

    severities = ["low", "high", "critical"]
    assert [row.severity for row in unwatched.rows()] == severities[3 - stored :]


def test_loggers_that_do_not_propagate_are_heard(watched: Watched) -> None:
    quiet = logging.getLogger("shop.quiet")
    quiet.propagate = False
    quiet.addHandler(logging.NullHandler())
    try:
        quiet.error("heard")
    finally:
        quiet.propagate = True
        quiet.handlers.clear()

    assert watched.row().message == "heard"


def test_a_later_set_up_of_logging_changes_nothing(watched: Watched) -> None:
    """`dictConfig` throws all handlers away."""
    before = (logging.root.handlers[:], logging.root.level)
    try:
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"level": "ERROR"}})
        log.error("heard")
    finally:
        logging.root.handlers[:], _ = before
        logging.root.setLevel(before[1])

    assert watched.row().message == "heard"


def test_levels_and_filters_of_a_logger_hold(watched: Watched) -> None:
    """What a program does not log is no error."""
    silent = logging.getLogger("shop.silent")
    silent.setLevel(logging.CRITICAL + 1)
    silent.error("unheard")
    silent.setLevel(logging.NOTSET)
    silent.addFilter(lambda record: False)
    silent.error("unheard")
    silent.filters.clear()

    assert watched.rows() == []


def test_extra_is_in_the_context(watched: Watched) -> None:
    log.error("said", extra={"order": 42, "password": "geheim77", "nested": {"token": "geheim77"}})

    context = watched.row().context
    assert context["order"] == 42
    assert "geheim77" not in str(context)


class Exits:
    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [("%d", ("x",)), ("%s %s", (1,)), ("%(a)s", ({"b": 1},)), ("%s", (Exits(),)), (Exits(), ())],
    ids=["type", "number", "name", "exits", "message exits"],
)
def test_a_line_that_cannot_be_made_is_still_an_error(message: Any, arguments: Any, watched: Watched) -> None:
    """The program sees what it would see without tocsin."""
    own = logging.getLogger("shop.own")
    own.propagate = False
    own.addHandler(logging.NullHandler())
    try:
        own.error(message, *arguments)
    finally:
        own.propagate = True
        own.handlers.clear()

    assert "(its arguments do not fit)" in watched.row().message


def test_equal_lines_of_one_place_are_summed_up(watched: Watched) -> None:
    """Whatever the numbers in them."""
    for number in range(500):
        log.error("order %d is lost", number)

    eventually(lambda: watched.errors() == 500)
    assert len({row.group_id for row in watched.rows()}) == 1


def test_lines_that_differ_in_what_was_put_into_them_are_one_group(watched: Watched) -> None:
    """What the program has written is what tells them apart; where that says nothing, all of it does."""
    log = logging.getLogger("shop")
    for name in ("anna", "boris", "clara"):
        log.error("%s has no address", name)
    log.error("%s: %s", "cart", "empty")
    log.error("%s: %s", "till", "locked")

    groups = [row.group_id for row in watched.rows()]
    assert len(groups) == 5
    assert len(set(groups[:3])) == 1
    assert len(set(groups[2:])) == 3


@pytest.mark.parametrize("name", ["tocsin", "tocsin.exporter", "opentelemetry.sdk"])
def test_our_own_lines_are_not_captured(name: str, watched: Watched) -> None:
    logging.getLogger(name).error("not ours to tell")
    logging.getLogger("tocsinette").error("another's")

    assert watched.row().message == "another's"


def test_the_storing_thread_feeds_nothing_back(watched: Watched) -> None:
    """A handler of the user's that fails in every thread, and libraries that log while they store."""
    heard: list[logging.LogRecord] = []
    sql = logging.getLogger("sqlalchemy")
    level = sql.level

    def tell(record: logging.LogRecord) -> bool:
        heard.append(record)
        log.error("a filter that logs")
        return True

    sql.setLevel(logging.DEBUG)
    engine = logging.getLogger("sqlalchemy.engine.Engine")
    engine.addFilter(tell)
    try:
        for message in ("first", "second"):
            tocsin.track_error(message)
            assert tocsin.flush(10)
    finally:
        engine.removeFilter(tell)
        sql.setLevel(level)

    assert heard != []
    assert [row.message for row in watched.rows()] == ["first", "second"]


def test_a_logger_s_name_tells_no_secret(watched: Watched) -> None:
    """Some programs name loggers after what they talk to."""
    secret = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"

    logging.getLogger(f"client.{secret}").error("it is broken")

    assert secret not in str(vars(watched.row()))
