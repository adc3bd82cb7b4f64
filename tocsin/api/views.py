"""Turning data into pages: templates that escape everything, and the few files that belong to them."""

from __future__ import annotations

import hashlib
import json
import mimetypes
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

import tocsin
from tocsin import clock
from tocsin.api.calls import Caller, Right, form_token

_HERE = Path(__file__).parent
STATIC = {
    path.name: path.read_bytes()
    for path in sorted((_HERE / "static").iterdir())
    if path.suffix in (".css", ".js", ".svg")
}
"""The files of the page: read once, and no others can be asked for."""

_VERSIONS = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in STATIC.items()}


def page(
    request: Request,
    template: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> Response:
    """A page from its template."""
    caller = getattr(request.state, "caller", None)
    root = root_of(request)
    known = {
        "root": root,
        "url": lambda path, **query: _address(root + path, query),
        "static": lambda name: f"{root}/admin/debug/static/{name}?v={_VERSIONS[name]}",
        "now": clock.now(),
        "version": tocsin.__version__,
        "is_logged_in": isinstance(caller, Caller),
        "has_session": isinstance(caller, Caller) and caller.session is not None,
        "may_act": isinstance(caller, Caller) and caller.may(Right.FULL),
        "form_token": form_token(caller.session) if isinstance(caller, Caller) and caller.session else "",
    }
    body = _templates.get_template(template).render(known | values)
    return HTMLResponse(body.encode("utf-8", "replace"), status, dict(headers or {}))


def failure(request: Request, status: int, text: str, headers: Mapping[str, str]) -> Response:
    """The page for what went wrong; who is not logged in gets the log-in form, and comes back afterwards."""
    if status == 401:
        # Not `request.url`, which is made from the Host header, so from what a stranger says.
        path = quote(request.scope["path"].removeprefix(root_of(request))) if request.method == "GET" else ""
        target = _address(path, dict(request.query_params)) if path else None
        return page(request, "login.html", status=401, headers=headers, code=None, next=target)
    return page(request, "failure.html", status=status, headers=headers, text=text, status_code=status)


def static_file(name: str) -> Response:
    """One of the page's files."""
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(STATIC[name], media_type=media_type, headers={"cache-control": "public, max-age=604800"})


def root_of(request: Request) -> str:
    """The path under which this application is mounted; empty for a server of its own."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _address(path: str, query: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(kept)}" if kept else path


# How values read


def _ago(moment: datetime | None, now: datetime) -> str:
    """How long ago, in one unit: ``5 min ago``."""
    if moment is None:
        return "never"
    seconds = (now - moment) // timedelta(seconds=1)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago" if seconds >= 1 else "now"


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else ""


def _short(number: int) -> str:
    """A count in few characters: 999, 1.2k, 34k, 5.6M."""
    size = float(number)
    for unit in ("", "k", "M", "G"):
        if size < 1000 or unit == "G":
            break
        size /= 1000
    return f"{size:.0f}{unit}" if unit == "" or size >= 10 else f"{size:.1f}{unit}"


def _pretty(value: Any) -> str:
    """A value of a context, as text."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def web_link(address: str | None) -> str | None:
    """An address that may stand behind a link: http or https, and nothing hidden in it."""
    if not address or any(ord(char) <= 0x20 for char in address):
        return None
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return address if parts.scheme in ("http", "https") and parts.netloc else None


_templates = Environment(
    loader=FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {"ago": _ago, "when": _when, "short": _short, "pretty": _pretty}
