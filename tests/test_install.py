"""The command that gets what is missing works as it is printed, wherever tocsin came from."""

from __future__ import annotations

import json
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from tocsin import install

REQUIRES = ("sqlalchemy>=2.1", "asyncpg>=0.31; extra == 'postgres'", "sqlalchemy[asyncio]>=2.1; extra == 'postgres'")


def installed(folder: Path, origin: dict[str, Any] | None) -> Distribution:
    """A tocsin as pip leaves it."""
    place = folder / "tocsin-0.1.0.dist-info"
    place.mkdir()
    required = "\n".join(f"Requires-Dist: {line}" for line in REQUIRES)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tocsin\nVersion: 0.1.0\n{required}\n")
    if origin is not None:
        (place / "direct_url.json").write_text(json.dumps(origin))
    return Distribution.at(place)


@pytest.mark.parametrize(
    ("origin", "command", "source"),
    [
        (None, "pip install 'tocsin[postgres]'", "tocsin"),
        ({"url": "file:///", "dir_info": {"editable": True}}, "pip install '/[postgres]'", "/"),
        (
            {"url": "https://git.example/tocsin.git", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}},
            "pip install 'tocsin[postgres] @ git+https://git.example/tocsin.git'",
            "'tocsin @ git+https://git.example/tocsin.git'",
        ),
        (
            {"url": "https://example.com/tocsin-0.1.0.whl", "archive_info": {}},
            "pip install 'tocsin[postgres] @ https://example.com/tocsin-0.1.0.whl'",
            "'tocsin @ https://example.com/tocsin-0.1.0.whl'",
        ),
        (
            {"url": "file:///not/there", "dir_info": {}},
            "pip install 'asyncpg>=0.31' 'sqlalchemy[asyncio]>=2.1'",
            "tocsin",
        ),
    ],
    ids=["index", "checkout", "repository", "wheel", "checkout that is gone"],
)
def test_the_command_leads_to_where_tocsin_came_from(
    origin: dict[str, Any] | None, command: str, source: str, tmp_path: Path
) -> None:
    of = installed(tmp_path, origin)

    assert install.command("postgres", of) == command
    assert install.source("", of) == source


def test_this_one_names_its_extra() -> None:
    assert install.command("server").endswith(("[server]'", "[server]"))
