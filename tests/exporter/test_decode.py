"""What the spool holds, read: what was worked out of one stack serves for the next."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tocsin.exporter.decode import Known, Source, decode
from tocsin.model import ErrorRecord

SOURCE = Source.of({"kind": "segment", "door": True})
PYTHON = """Traceback (most recent call last):
  File "/srv/shop/orders.py", line 31, in send
    order.send(1)
  File "/srv/.venv/lib/python3.11/site-packages/mails/send.py", line 9, in send
    raise Refused(text)
"""
NODE = """
    at charge (/srv/shop/pay.js:7:9)
    at next (/srv/shop/node_modules/express/lib/router.js:9:1)"""


def line(message: str, stack: str, exception_type: str = "mails.Refused") -> dict[str, Any]:
    return {
        "v": 1,
        "kind": "error",
        "door": True,
        "id": "00000000-0000-8000-8000-000000000000",
        "time_unix_nano": time.time_ns(),
        "body": message,
        "attributes": {"exception.type": exception_type, "exception.stacktrace": stack},
    }


def read(content: dict[str, Any], known: Known | None = None) -> ErrorRecord:
    record = decode(content, SOURCE, known=known)
    assert isinstance(record, ErrorRecord)
    return record


MESSAGES = ["no", "no such mail", "", "a\nb", "send", ": x", "raise Refused(text)", 'File "/etc/passwd", line 1, in x']


@pytest.mark.parametrize("make", [
    lambda message: line(message, f"{PYTHON}mails.Refused: {message}"),
    lambda message: line(message, f"{PYTHON}mails.Refused: {message}\n"),
    lambda message: line(message, PYTHON),
    lambda message: line(message, f"Refused: {message}{NODE}", "Refused"),
    lambda message: line(message, f"Error: {message}{NODE}", "Refused"),
], ids=["python", "python with its end", "python without its last line", "node", "node of another name"])  # fmt: skip
def test_what_is_known_of_a_stack_changes_nothing(make: Any) -> None:
    """The one who comes second gets what the first would have got, whatever either says."""
    known = Known()
    for message in (*MESSAGES, *reversed(MESSAGES)):
        first, again = read(make(message)), read(make(message), known)

        assert (again.fingerprint, again.culprit, again.context) == (first.fingerprint, first.culprit, first.context)
        assert again.stack == make(message)["attributes"]["exception.stacktrace"]
        assert again.culprit in ("orders in send", "shop.orders in send", "pay in charge", "shop/pay in charge")


@pytest.mark.parametrize("stack", [f"{PYTHON}mails.Refused: ", "Refused: "])
def test_the_same_place_with_other_words_is_worked_out_once(stack: str) -> None:
    """Most messages hold a number or a name; each would else be a stack of its own."""
    known = Known()
    kind = "mails.Refused" if stack.startswith("Trace") else "Refused"
    for number in range(50):
        said = f"order {number}"
        read(line(said, f"{stack}{said}{NODE if kind == 'Refused' else ''}", kind), known)

    assert len(known) == 1


def test_what_is_known_has_an_end() -> None:
    known = Known(most_chars=2_000)
    for number in range(100):
        read(line("no", f"{PYTHON.replace('orders', f'orders{number}')}mails.Refused: no"), known)

    assert 1 < len(known) < 10
