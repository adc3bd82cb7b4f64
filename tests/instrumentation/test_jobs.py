"""Jobs of Celery and RQ in this process: which job it was stands with its errors, and nothing stays behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import billiard.pool  # type: ignore[import-untyped]
import celery.signals  # type: ignore[import-untyped]
import pytest
import rq.worker
from celery import Celery

import tocsin
from tests.instrumentation.conftest import Watched
from tocsin.instrumentation.context import current_facts


@pytest.fixture
def app() -> Iterator[Celery]:
    """An application whose tasks run where they are called."""
    made = Celery("shop", set_as_current=False)
    made.conf.task_always_eager = True

    @made.task(name="fail", shared=False)
    def fail(number: int, password: str = "") -> None:
        logging.getLogger("shop").error("short of tea")
        raise LookupError(f"no order {number}")

    @made.task(name="outer", shared=False)
    def outer() -> None:
        fail.apply((7,))
        logging.getLogger("shop").error("after")

    yield made
    made.close()


def hooks() -> dict[str, Any]:
    signals = ("task_prerun", "task_postrun", "task_failure", "task_internal_error")
    pool, horse = billiard.pool.Pool, rq.worker.BaseWorker
    return {
        **{name: list(getattr(celery.signals, name).receivers or ()) for name in signals},
        **{name: vars(pool).get(name) for name in ("_join_exited_workers",)},
        **{name: vars(horse).get(name) for name in ("perform_job", "handle_exception", "handle_work_horse_killed")},
    }


def test_hooks_leave_as_they_came_and_are_put_in_once(unwatched: Watched) -> None:
    before = hooks()
    unwatched.init()
    first = hooks()
    unwatched.init(release="r2")

    assert hooks() == first != before

    tocsin.shutdown()
    assert hooks() == before


def test_a_task_stands_with_what_fails_and_is_logged_in_it(app: Celery, watched: Watched) -> None:
    app.tasks["fail"].apply((7,), {"password": "geheim77"})

    rows = {row.exception_type or row.message: row for row in watched.rows()}
    assert set(rows) == {"LookupError", "short of tea"}
    assert (rows["LookupError"].mechanism, rows["LookupError"].handled) == ("celery", False)
    for row in rows.values():
        assert (row.context["celery.task_name"], row.context["celery.args"]) == ("fail", [7])
        assert "geheim77" not in str(row.context)
        assert "data" not in row.context  # what Celery's own line about it would add
    assert current_facts.get() is None


def test_a_task_within_a_task_gives_it_back(app: Celery, watched: Watched) -> None:
    with tocsin.context(user_id="u7"):
        app.tasks["outer"].apply()

    rows = {row.exception_type or row.message: row.context for row in watched.rows()}
    names = {name: context["celery.task_name"] for name, context in rows.items()}
    assert names == {"LookupError": "fail", "short of tea": "fail", "after": "outer"}
    assert all(context["user_id"] == "u7" for context in rows.values())
