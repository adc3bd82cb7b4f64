"""A shop in Django in one file, which knows nothing of tocsin: ``python -m tests.interop.django_shop runserver``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from django.conf import settings  # type: ignore[import-untyped]
from django.core.asgi import get_asgi_application  # type: ignore[import-untyped]
from django.core.management import execute_from_command_line  # type: ignore[import-untyped]
from django.core.wsgi import get_wsgi_application  # type: ignore[import-untyped]
from django.http import HttpResponse, StreamingHttpResponse  # type: ignore[import-untyped]
from django.urls import path  # type: ignore[import-untyped]

if not settings.configured:
    settings.configure(
        ROOT_URLCONF=__name__,
        WSGI_APPLICATION=f"{__name__}.application",
        ALLOWED_HOSTS=["127.0.0.1"],
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        SECRET_KEY="x",
    )


def pid(request: Any) -> HttpResponse:
    return HttpResponse(str(os.getpid()))


def order(request: Any, number: int) -> HttpResponse:
    raise LookupError(f"no order in {os.getpid()}")


async def order_async(request: Any, number: int) -> HttpResponse:
    raise TypeError("no order")


def unavailable(request: Any) -> HttpResponse:
    return HttpResponse("later", status=503)


def stream(request: Any) -> StreamingHttpResponse:
    def rows() -> Iterator[str]:
        yield "a"
        raise KeyError("row")

    return StreamingHttpResponse(rows())


urlpatterns = [
    path("pid", pid),
    path("orders/<int:number>", order),
    path("async/<int:number>", order_async),
    path("unavailable", unavailable),
    path("stream", stream),
]

application = get_wsgi_application()
asgi_application = get_asgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
