"""Tasks of a shop in Celery, which know nothing of tocsin."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from typing import Any

from celery import Celery  # type: ignore[import-untyped]
from celery.exceptions import Ignore, Reject  # type: ignore[import-untyped]

app = Celery("shop", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_hijack_root_logger = False
logger = logging.getLogger("shop")


class Odd(Exception):
    """It cannot be pickled, so that Celery hands on another exception in its place."""

    def __init__(self, text: str, more: int) -> None:
        super().__init__(text)
        self.more = lambda: more


@app.task
def fail(number: int, password: str = "") -> None:
    raise LookupError(f"no order {number}")


@app.task(bind=True, max_retries=2)
def again(self: Any, works_in_the_end: bool) -> None:
    try:
        raise ConnectionError("no answer")
    except ConnectionError as problem:
        if works_in_the_end and self.request.retries:
            return
        raise self.retry(exc=problem, countdown=0.2) from None


@app.task
def ignored() -> None:
    raise Ignore


@app.task
def rejected() -> None:
    raise Reject("no", requeue=False)


@app.task(throws=(ValueError,))
def expected() -> None:
    raise ValueError("so be it")


@app.task
def odd() -> None:
    raise Odd("strange", 2)


@app.task
def logs() -> None:
    logger.error("short of tea")


@app.task
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def exits() -> None:
    sys.exit(3)


@app.task(time_limit=1)
def slow() -> None:
    time.sleep(60)


@app.task
def pid() -> int:
    return os.getpid()


@app.task
def last() -> None:
    raise TypeError("the last one")
