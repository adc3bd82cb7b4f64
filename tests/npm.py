"""Packages from npm, installed once for this virtual environment."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.postgres import missing_part

_OPTIONS = ("--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


def installed(packages: Mapping[str, str]) -> Path:
    """The ``node_modules`` that has these packages in these versions; skips where there is no npm."""
    if not shutil.which("node") or not shutil.which("npm"):
        missing_part("Node with npm")
    content = json.dumps({"private": True, "dependencies": packages}, sort_keys=True)
    folder = Path(sys.prefix) / "share" / f"node-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # one test installs, the others wait for it
        if not (folder / "complete").exists():
            (folder / "package.json").write_text(content)
            done = subprocess.run(
                ["npm", "install", *_OPTIONS], cwd=folder, capture_output=True, text=True, timeout=300, check=False
            )
            if done.returncode:
                missing_part(f"what npm should install ({done.stderr[-300:]})")
            (folder / "complete").touch()
    return folder / "node_modules"
