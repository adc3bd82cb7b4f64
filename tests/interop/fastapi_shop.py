"""A shop on FastAPI with nothing of tocsin's in it; it fails in the ways that its routes are called."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from opentelemetry import trace

app = FastAPI()
logger = logging.getLogger("shop")
tracer = trace.get_tracer("shop")
logging.getLogger("opentelemetry.exporter").addHandler(logging.StreamHandler())  # what they lose, they tell there


class PaymentRefused(Exception):
    pass


def charge(order: int) -> None:
    with tracer.start_as_current_span("charge"), tracer.start_as_current_span("ask the bank"):
        raise PaymentRefused(f"order {order} cannot be paid")


@app.get("/ok")
async def ok() -> str:
    return "ok"


@app.get("/sync/{order}")
def sync(order: int) -> None:
    charge(order)


@app.get("/async/{order}")
async def async_(order: int) -> None:
    raise TypeError(f"order {order} has no items")


@app.get("/handled/{order}")
async def handled(order: int) -> str:
    try:
        raise KeyError(f"price of {order}")
    except KeyError as error:
        trace.get_current_span().record_exception(error)
    return "sorry"


@app.get("/both/{order}")
async def both(order: int) -> None:
    try:
        raise ValueError(f"order {order} is here and there")
    except ValueError:
        logger.exception("no reservation for %s", order)
        raise


@app.get("/logged/{order}")
async def logged(order: int) -> str:
    logger.error("order %s was left behind", order)
    logger.info("nothing to see")
    return "ok"
