"""Jobs that fail where nobody looks, and processes of `multiprocessing`."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import tocsin
from tests.instrumentation.conftest import Watched
from tests.processes import errors_in, rows_of, run_program
from tests.waiting import eventually


def fail() -> None:
    raise ValueError("no")


def forget(pool: ThreadPoolExecutor) -> None:
    pool.submit(fail)


def forget_after_waiting(pool: ThreadPoolExecutor) -> None:
    wait([pool.submit(fail)])


def forget_a_coroutine(pool: ThreadPoolExecutor) -> None:
    """Asyncio takes the exception out of the task, and nobody takes it out of the future."""

    async def work() -> None:
        fail()

    loop = asyncio.new_event_loop()
    thread = pool.submit(loop.run_forever)
    wait([asyncio.run_coroutine_threadsafe(work(), loop)])
    loop.call_soon_threadsafe(loop.stop)
    thread.result()
    loop.close()


@pytest.mark.parametrize("work", [forget, forget_after_waiting, forget_a_coroutine])
def test_a_job_whose_failure_nobody_reads_is_an_error(work: Callable[..., None], watched: Watched) -> None:
    """With the facts of where it was given to the pool."""
    with ThreadPoolExecutor() as pool, tocsin.context(user_id="u7"):
        work(pool)
    gc.collect()

    row = watched.row()
    assert (row.message, row.mechanism, row.severity, row.handled) == ("no", "future", "high", False)
    assert row.context["user_id"] == "u7"


def read(pool: ThreadPoolExecutor) -> None:
    with pytest.raises(ValueError):
        pool.submit(fail).result()


def ask(pool: ThreadPoolExecutor) -> None:
    assert pool.submit(fail).exception() is not None


def look_when_it_is_done(pool: ThreadPoolExecutor) -> None:
    pool.submit(fail).add_done_callback(lambda future: future.exception())


def read_the_first_of_many(pool: ThreadPoolExecutor) -> None:
    with pytest.raises(ValueError):
        list(pool.map(lambda _: fail(), range(9)))


def cancel_too_late(pool: ThreadPoolExecutor) -> None:
    future = pool.submit(fail)
    wait([future])
    assert not future.cancel()


def await_it(pool: ThreadPoolExecutor) -> None:
    async def work() -> None:
        with pytest.raises(ValueError):
            await asyncio.get_running_loop().run_in_executor(pool, fail)

    asyncio.run(work())


def no_longer_await_it(pool: ThreadPoolExecutor) -> None:
    """Who gave up waiting does not want to know."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(loop.run_in_executor(pool, fail))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(work())


@pytest.mark.parametrize(
    "work",
    [read, ask, look_when_it_is_done, read_the_first_of_many, cancel_too_late, await_it, no_longer_await_it],
)
def test_a_job_whose_failure_somebody_reads_is_none(work: Callable[..., None], watched: Watched) -> None:
    with ThreadPoolExecutor() as pool:
        work(pool)
    gc.collect()

    assert watched.rows() == []


def test_a_future_that_has_failed_is_one_like_all_others(watched: Watched) -> None:
    future: Future[None] = Future()
    future.set_exception(ValueError("no"))

    assert isinstance(future, Future)
    assert "Future" in repr(future)
    assert str(future.exception()) == "no"
    assert type(future) is Future


def in_a_process(work: Callable[[], object]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def leave() -> None:
    raise SystemExit(3)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("work", "code", "errors"), [(fail, 1, 1), (leave, 3, 0), (gc.collect, 0, 0)])
def test_a_forked_process_that_fails_is_an_error(
    work: Callable[[], object], code: int, errors: int, watched: Watched, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its exit code and what it prints are its own; who ends it by an exit code has said what there is to say."""
    assert in_a_process(work) == code

    eventually(lambda: errors_in(watched.database_url) == errors)
    assert [(row.mechanism, row.severity) for row in watched.rows()] == [("multiprocessing", "high")] * errors
    assert "tocsin/" not in capfd.readouterr().err


_SPAWNING = """
import multiprocessing, tocsin

def fail():
    raise ValueError(multiprocessing.current_process().name)

if __name__ == "__main__":
    tocsin.init(service="shop", environment="test")
    started = [multiprocessing.get_context(how).Process(target=fail, name=how) for how in ("spawn", "forkserver")]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 1
"""


def test_a_spawned_process_is_watched_as_its_parent_is(tmp_path: Path, sqlite_url: str) -> None:
    """Where only the program's main part starts tocsin; another interpreter begins with nothing."""
    with TemporaryDirectory() as short:  # of a socket's name
        done = run_program(tmp_path, _SPAWNING, sqlite_url, command=(), environ={"TMPDIR": short})

    assert done.returncode == 0, done.stderr
    rows = {row.message: (row.mechanism, row.service, row.environment) for row in rows_of(sqlite_url)}
    assert rows == dict.fromkeys(("spawn", "forkserver"), ("multiprocessing", "shop", "test"))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_result_of_a_process_pool_that_nobody_gets_is_an_error(watched: Watched) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        begins: list[Callable[[], Any]] = [lambda: pool.apply_async(divmod, (1, 0)), lambda: pool.map_async(int, ["x"])]
        for begin in begins:
            result = begin()
            result.wait(20)
        with pytest.raises(ZeroDivisionError):
            pool.apply(divmod, (1, 0))
        pool.apply_async(divmod, (1, 0), error_callback=print).wait(20)
        del result

    assert sorted((row.exception_type, row.mechanism) for row in watched.rows()) == [
        ("ValueError", "future"),
        ("ZeroDivisionError", "future"),
    ]
