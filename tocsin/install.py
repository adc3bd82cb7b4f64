"""How to get what is missing: the command that fits where this tocsin itself was installed from."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from importlib.metadata import Distribution

ROOT = Path(__file__).resolve().parents[1]


def command(extra: str, of: Distribution | None = None) -> str:
    """
    ``pip install '/usr/local/src/tocsin[server]'``, or whatever else gets the libraries of an extra here.

    Args:
        of: what was installed (default: this tocsin).
    """
    return f"pip install {source(extra, of)}"


def source(extra: str = "", of: Distribution | None = None) -> str:
    """
    What to give to pip: a checkout or another address that tocsin came from, else its name.

    Where that is gone, as in an image that was built from it, the libraries themselves; without an extra the name.

    Source: Direct URL of a distribution (PEP 610).
    """
    from importlib.metadata import PackageNotFoundError, distribution  # noqa: PLC0415  (dear, and rarely needed)

    wanted = f"[{extra}]" if extra else ""
    if of is None:
        try:
            of = distribution("tocsin")
        except PackageNotFoundError:  # it runs from a folder that is on the path
            return shlex.quote(f"{ROOT}{wanted}" if (ROOT / "pyproject.toml").exists() else f"tocsin{wanted}")
    origin = json.loads(of.read_text("direct_url.json") or "null")
    if origin is None:
        return shlex.quote(f"tocsin{wanted}")
    if system := origin.get("vcs_info", {}).get("vcs"):
        return shlex.quote(f"tocsin{wanted} @ {system}+{origin['url']}")
    if not origin["url"].startswith("file:"):
        return shlex.quote(f"tocsin{wanted} @ {origin['url']}")
    path = unquote(urlsplit(origin["url"]).path)
    if Path(path).exists():
        return shlex.quote(f"{path}{wanted}")
    return _libraries(extra, of) or "tocsin"


def _libraries(extra: str, of: Distribution) -> str:
    parts: list[Any] = [line.partition(";") for line in of.requires or ()]
    return " ".join(
        shlex.quote(library.strip()) for library, _, marker in parts if marker.strip() in _markers_of(extra)
    )


def _markers_of(extra: str) -> tuple[str, str]:
    return f"extra == '{extra}'", f'extra == "{extra}"'
