"""
What the drain has found out of errors that only count, told to the door: they need not be written out twice.

Beyond the cap of its group (`throttle`) an error leaves nothing but a count. Once the drain has met one, the
door puts the next like it into the spool without stack and attributes, for the rest of that minute.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tocsin import semconv
from tocsin.model import Severity

if TYPE_CHECKING:
    from tocsin.exporter.foreign import Error

MOST_KINDS: Final = 20_000
_MOST_OF_A_MESSAGE = 2_000

# Addresses and answers: what an error is taken for may hang on a number in them.
_NUMBERS_TELL = re.compile(r"[.:/@]\w*\d|\d\w*[.:/@]|[Ss]tatus|[Ff]ailed with")
_NUMBERS = dict.fromkeys(map(ord, "123456789"), "0")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error of some kind is taken for; all of it hangs on what `kind_of` looks at."""

    fingerprint: str
    severity: Severity
    category: str
    culprit: str | None
    title: str  #            of one of them
    until_s: float  # of `time.monotonic`: from then on the group may have full errors again


class Briefs:
    """The verdicts of this minute, by kind; written by the drain's thread, read by the door's."""

    def __init__(self) -> None:
        self._verdicts: OrderedDict[int, Verdict] = OrderedDict()

    def tell(self, kind: int, verdict: Verdict) -> None:
        """Errors of a kind only count, for a while."""
        self._verdicts[kind] = verdict
        while len(self._verdicts) > MOST_KINDS:
            self._verdicts.popitem(last=False)

    def of(self, kind: int, now_s: float) -> Verdict | None:
        """What errors of a kind are taken for, if they only count now."""
        verdict = self._verdicts.get(kind)
        return verdict if verdict is not None and now_s < verdict.until_s else None


def without_numbers(text: str) -> str:
    """A text in which any number is 0; all such texts have the same `fingerprint.template`."""
    text = text.translate(_NUMBERS)
    for _ in range(4):
        text = text.replace("00", "0")
    return text


def kind_of(error: Error) -> int | None:
    """
    A number that only errors have in common that are taken for the same, and belong to one group.

    All that the exporter decides by goes in; of the message what is left when its numbers are taken out,
    as the fingerprint does. It means nothing in another process.

    Returns:
        None for an error that has to be written out.
    """
    stack = error.stack
    if error.is_shipped or len(error.message) > _MOST_OF_A_MESSAGE or (stack.encoded and stack.said is None):
        return None
    message = error.message
    if not _NUMBERS_TELL.search(message):
        message = without_numbers(message)
    attributes = error.attributes
    return hash(
        (
            error.resource.encoded,
            error.exception_type,
            message,
            stack.frames,
            (stack.said or "").removesuffix(error.message),
            error.mechanism,
            error.severity_number,
            error.severity,
            error.category,
            error.handled,
            error.exit,
            error.logger,
            error.status,
            str(attributes.get(semconv.SERVER_ADDRESS)),
            str(attributes.get(semconv.URL_FULL)),
        )
    )
