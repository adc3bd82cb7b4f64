"""HTTP, as far as the demo needs it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any


class Client:
    """Calls one server on this machine; no proxy of the user stands between."""

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address
        self.token = token
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Status and JSON of an answer (None for another body); raises OSError when there is none."""
        request = urllib.request.Request(self.address + path, method=method)  # noqa: S310
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        if body is not None:
            request.add_header("Content-Type", "application/json")
            request.data = json.dumps(body).encode()
        try:
            with self._open(request, timeout=10) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, _json(refused.read())

    def is_up(self, path: str) -> bool:
        """Whether a path answers 200."""
        try:
            return self.call("GET", path)[0] == 200
        except OSError:
            return False

    def curl(self, path: str, method: str = "GET") -> str:
        """The same call for a shell, to be pasted as it is."""
        post = "-X POST " if method == "POST" else ""
        return f"curl -s {post}-H 'Authorization: Bearer {self.token}' '{self.address}{path}'"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
