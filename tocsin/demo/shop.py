"""
The demo's shop: an ordinary Starlette service that knows nothing of tocsin.

`tocsin demo` copies this file into a folder of its own and runs it by ``tocsin run -- uvicorn shop:app``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

logger = logging.getLogger("shop.payments")

PRICES = {"tea": 350, "cup": 900}


class OutOfStockError(Exception):
    """A product was sold that is not there."""


class DeadCrm(httpx.AsyncBaseTransport):
    """A CRM that takes a request and never answers; nothing leaves this machine."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("The read operation timed out", request=request)


async def create_order(request: Request) -> Response:
    order: dict[str, Any] = await request.json()
    logger.warning("no delivery before Monday, the courier is ill")
    async with httpx.AsyncClient(base_url=str(request.base_url), trust_env=False) as shelves:
        await shelves.get("/stock/tea")
    return JSONResponse({"sms_to": phone_of(order)}, status_code=201)


async def get_stock(request: Request) -> Response:
    return JSONResponse({request.path_params["product"]: 12})


def phone_of(order: dict[str, Any]) -> str:
    """The customer's number, which not every customer gives."""
    return str(order["customer"]["phone"])


async def get_order(request: Request) -> Response:
    raise HTTPException(404, f"no order {request.path_params['order_id']}")


async def push_lead(request: Request) -> Response:
    async with httpx.AsyncClient(transport=DeadCrm()) as crm:
        await crm.post("https://teashop.amocrm.ru/api/v4/leads", json={"name": "Anna"}, timeout=2)
    return Response(status_code=204)


async def refund(request: Request) -> Response:
    try:
        raise ConnectionRefusedError(111, "payment gateway refused the connection")
    except ConnectionRefusedError:
        logger.exception("refund of order %s is put off", request.path_params["order_id"])
    return JSONResponse({"refund": "later"}, status_code=202)


async def pay(request: Request) -> Response:
    return JSONResponse({"paid": True}, background=BackgroundTask(send_receipt, request.path_params["order_id"]))


def send_receipt(order_id: int) -> None:
    receipt = {"order": order_id, "lines": []}
    if not receipt["lines"]:
        raise ValueError("a receipt needs at least one line")


async def sync_stock(request: Request) -> Response:
    task = asyncio.create_task(count_stock("tea"), name="sync-stock")
    await asyncio.wait([task])
    return Response(status_code=202)  # nobody ever asks what became of the task


async def count_stock(product: str) -> int:
    raise OutOfStockError(f"{product}: -3 in stock")


async def update_prices(request: Request) -> Response:
    worker = threading.Thread(target=raise_prices, args=("coffee",), name="price-worker")
    worker.start()
    await asyncio.to_thread(worker.join)
    return Response(status_code=202)


def raise_prices(product: str) -> None:
    PRICES[product] = PRICES[product] * 11 // 10


async def cart(request: Request) -> Response:
    items = int(request.query_params.get("items", "0"))
    return JSONResponse({"each": PRICES["tea"] / items})


async def is_up(request: Request) -> Response:
    return Response("ok")


app = Starlette(
    routes=[
        Route("/", is_up),
        Route("/orders", create_order, methods=["POST"]),
        Route("/orders/{order_id:int}", get_order),
        Route("/orders/{order_id:int}/refund", refund, methods=["POST"]),
        Route("/orders/{order_id:int}/pay", pay, methods=["POST"]),
        Route("/leads", push_lead, methods=["POST"]),
        Route("/stock/sync", sync_stock, methods=["POST"]),
        Route("/stock/{product}", get_stock),
        Route("/prices", update_prices, methods=["POST"]),
        Route("/cart", cart),
    ]
)
