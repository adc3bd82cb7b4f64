"""The ``.env`` file, written line by line: what is not ours stays as it is."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path


def write(path: Path, values: Mapping[str, str]) -> None:
    """
    Set some names in a ``.env`` file, which is then its user's alone (mode 0600).

    A name that is there already keeps its place, a new one goes to the end; comments and other lines
    stay. The file is exchanged as a whole, so nobody meets half of it.
    """
    path = path.resolve()  # a link goes on pointing to the file
    try:
        lines = path.read_text("utf-8", "surrogateescape").splitlines()
    except FileNotFoundError:
        lines = []
    missing = dict(values)
    written = []
    for line in lines:
        match = re.match(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=", line)
        if match and match[1] in values:
            if match[1] not in missing:
                continue  # it stands there twice; the last one would win
            line = f"{match[1]}={missing.pop(match[1])}"  # noqa: PLW2901
        written.append(line)
    written += [f"{name}={value}" for name, value in missing.items()]
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".env-")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as out:
            out.write("\n".join(written) + "\n")
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
