"""Jobs of a shop in RQ, which know nothing of tocsin."""

from __future__ import annotations

import logging
import os
import signal

from rq import Retry

logger = logging.getLogger("shop")


def fail(number: int, password: str = "") -> None:
    raise LookupError(f"no order {number}")


def again() -> None:
    raise ConnectionError("no answer")


def asks_again() -> Retry:
    return Retry(max=1)


def logs() -> None:
    logger.error("short of tea")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leaves() -> None:
    os._exit(7)


def last() -> None:
    raise TypeError("the last one")
