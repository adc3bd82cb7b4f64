"""The exception that a runtime prints when it ends a process, read as its instrumentation has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import missing_part
from tocsin.exporter.deathnote import Evidence, as_line
from tocsin.exporter.decode import Source, decode
from tocsin.exporter.otlp import Reader
from tocsin.exporter.printed import exception_in
from tocsin.ids import uuid7
from tocsin.model import ErrorRecord
from tocsin.settings import Settings

NOW_NS = 1_773_480_413_589_793_000
SOURCE = Source("shop", "production", None, None, None)

NODE = """\
/srv/shop/app.js:7
    throw error;
    ^

CheckoutError: stock is
negative
    at take (/srv/shop/lib/stock.js:3:11)
    at Layer.handle (/srv/shop/node_modules/express/lib/router/layer.js:95:5)
    at node:internal/main/run_main_module:28:49

Node.js v20.20.2
"""

ELIDED = """\
/srv/shop/app.js:2
function fail() { throw error }
                  ^

TypeError [ERR_SHOP]: outer
    at fail (/srv/shop/app.js:1:11)
    at Module._compile (node:internal/modules/cjs/loader:1521:14)
    ... 2 lines matching cause stack trace ...
    at node:internal/main/run_main_module:28:49 {
  code: 'ERR_SHOP',
  [cause]: Error: inner
      at other (/srv/shop/app.js:1:71)
      at Module._compile (node:internal/modules/cjs/loader:1521:14)
      at load (/srv/shop/loader.js:5:1)
      at start (/srv/shop/loader.js:9:1)
      at node:internal/main/run_main_module:28:49 {
    code: 'INNER'
  }
}

Node.js v22.1.0
npm error code 1
"""

PYTHON = """\
Traceback (most recent call last):
  File "/srv/shop/job.py", line 3, in main
    int("x")
ValueError: invalid literal

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/srv/shop/job.py", line 5, in main
    raise shop.errors.JobFailed("no job")
shop.errors.JobFailed: no job
today
"""


def printed_by(died: subprocess.CompletedProcess[bytes]) -> ErrorRecord:
    """The error that the watching parent makes of it."""
    line = as_line(
        Evidence(
            error_id=uuid7(), service="shop", began_ns=1, ended_ns=NOW_NS, code=died.returncode, stderr=died.stderr
        )
    )
    assert line is not None
    return decoded(json.loads(line))


def decoded(line: dict[str, Any]) -> ErrorRecord:
    entry = decode(line, SOURCE)
    assert isinstance(entry, ErrorRecord)
    return entry


@pytest.mark.parametrize(
    ("said", "kind", "message", "frames"),
    [
        (NODE, "CheckoutError", "stock is\nnegative", 3),
        (f"listening\n{NODE}", "CheckoutError", "stock is\nnegative", 3),
        (NODE.replace("CheckoutError", "Error") + NODE, "CheckoutError", "stock is\nnegative", 3),
        (ELIDED, "ERR_SHOP", "outer", 5),
        (NODE.replace(": stock is\nnegative", ""), "CheckoutError", "", 3),
    ],
    ids=["plain", "after other output", "the last of two", "cause and code", "no message"],
)
def test_an_uncaught_exception_of_node_is_read(said: str, kind: str, message: str, frames: int) -> None:
    """As OpenTelemetry's SDK for Node has it: the code before the name, and every frame."""
    found = exception_in(said)

    assert found is not None
    assert (found.type, found.message) == (kind, message)
    assert sum(line.startswith("    at ") for line in found.stack.splitlines()) == frames
    assert found.stack.splitlines()[-1] == "    at node:internal/main/run_main_module:28:49"


def test_frames_that_a_cause_shares_are_put_back() -> None:
    found = exception_in(ELIDED)

    assert found is not None
    assert found.stack.splitlines()[3:5] == [
        "    at load (/srv/shop/loader.js:5:1)",
        "    at start (/srv/shop/loader.js:9:1)",
    ]


def test_an_uncaught_exception_of_python_is_read() -> None:
    found = exception_in(f"starting\n{PYTHON}")

    assert found is not None
    assert (found.type, found.message) == ("shop.errors.JobFailed", "no job\ntoday")
    assert found.stack == PYTHON.rstrip("\n")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Error: cannot start\n",
        "Traceback (most recent call last):\n",
        f"{PYTHON}{'and on it went' * 2}\n" + "request served\n" * 30,
        NODE.removesuffix("Node.js v20.20.2\n"),  # logged, and it lived on
        "Node.js v20.20.2\n",
        "x:1\n\n\n\nNode.js v20.20.2\n",
    ],
)
def test_what_did_not_end_the_program_is_no_exception(said: str) -> None:
    assert exception_in(said) is None


APP = """\
function take(order) {
  const error = new Error('no stock for ' + order);
  %s
  return error;
}
function fail() { return take('tea'); }
"""


@pytest.mark.parametrize("extra", ["", "error.code = 'E_STOCK';", "error.cause = new TypeError('inner');"])
def test_a_printed_exception_joins_the_group_that_opentelemetry_makes(extra: str, tmp_path: Path) -> None:
    """The same exception by way of a log record of Node's SDK, with `err.stack`, and off stderr."""
    code = APP % extra
    reported = "const e = fail();\nconsole.log(JSON.stringify([e.code ?? e.name, e.message, e.stack]));\n"
    try:
        (tmp_path / "app.js").write_text(code + "const e = fail();" + reported.partition("\n")[2])
        said = subprocess.run(["node", "app.js"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        (tmp_path / "app.js").write_text(code + "const e = fail(); throw e;")
        died = subprocess.run(["node", "app.js"], cwd=tmp_path, capture_output=True, check=False)
    except FileNotFoundError:
        missing_part("node")
    kind, message, stack = json.loads(said)

    told = decoded(_by_otlp(kind, message, stack))
    printed = printed_by(died)

    assert (printed.exception_type, printed.message, printed.culprit) == (kind, message, told.culprit)
    assert printed.fingerprint == told.fingerprint


def _by_otlp(kind: str, message: str, stack: str) -> dict[str, Any]:
    """The line that the door makes of a log record."""
    values = {"exception.type": kind, "exception.message": message, "exception.stacktrace": stack}
    record = {
        "timeUnixNano": str(NOW_NS),
        "severityNumber": 21,
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in values.items()],
    }
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    reading = Reader(Settings()).logs(json.dumps(body).encode(), is_json=True, now_ns=NOW_NS)
    (line,) = reading.lines
    return dict(json.loads(line))


def test_a_printed_exception_of_python_has_its_frames(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("def main():\n    {}['phone']\n\nmain()\n")
    died = subprocess.run([sys.executable, "job.py"], cwd=tmp_path, capture_output=True, check=False)

    found = printed_by(died)

    assert (found.exception_type, found.message) == ("KeyError", "'phone'")
    assert (found.culprit or "").endswith("job in main")
