"""A fork waits for a library that a thread of ours is loading, and does not wait for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LIBRARY = """
import logging, threading
is_half_made, may_go_on = threading.Event(), threading.Event()
is_half_made.set()
may_go_on.wait(10)
logging.getLogger("library")  # whose lock is held over a fork
whole = True
"""

PROGRAM = """
import os, sys, threading, time
from tocsin import loading

def load():
    with loading.loading():
        import library

thread = threading.Thread(target=load)
thread.start()
while "library" not in sys.modules or not hasattr(sys.modules["library"], "is_half_made"):
    time.sleep(0.001)
half = sys.modules["library"]
half.is_half_made.wait()
{release}
began = time.monotonic()
child = os.fork()
if child == 0:
    os._exit(0 if hasattr(sys.modules["library"], "whole") else 1)
waited = time.monotonic() - began
half.may_go_on.set()
thread.join()
print(os.waitpid(child, 0)[1], waited < loading.MOST_S + 5)
"""


@pytest.mark.parametrize(
    ("release", "says"),
    [("threading.Timer(0.05, half.may_go_on.set).start()", "0 True"), ("loading.MOST_S = 0.1", "256 True")],
    ids=["loaded in time", "loaded too slowly"],
)
def test_a_child_has_the_whole_library(release: str, says: str, tmp_path: Path) -> None:
    """Half of one it would have for ever, since the thread that loads it is not there; but a fork must come about."""
    (tmp_path / "library.py").write_text(LIBRARY)
    (tmp_path / "program.py").write_text(PROGRAM.format(release=release))

    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.strip() == says, done.stderr
