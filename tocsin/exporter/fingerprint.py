"""
Which errors are the same: a pure function of what is stored of an error.

The version stands in front of each value. Whoever changes what goes in makes every old error new and
rings for all of them: make version 2 beside it instead.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tocsin.model import Frame
from tocsin.text import one_line

VERSION = "1"

_MOST_FRAMES = 30
_MOST_FOREIGN_FRAMES = 10
_TITLE_LIMIT = 200
_TEMPLATE_LIMIT = 300
_READ_LIMIT = 2_000

# Python 3.12 gives these no frame of their own any more: an upgrade shall make no old error new.
_INLINED = ("<listcomp>", "<setcomp>", "<dictcomp>")
_ADDRESS = re.compile(r"0x[0-9A-Fa-f]+|\d{6,}")

_VARYING = re.compile(
    r"""
      (?P<url> \b[A-Za-z][A-Za-z0-9+.-]{0,20}+:// [^\s'"<>]*+ )
    | (?P<quoted> (?<!\w) (?: '[^']*+(?:'|\Z) | "[^"]*+(?:"|\Z) | `[^`]*+(?:`|\Z) | «[^»]*+(?:»|\Z) ) )
    | (?P<mail> (?<![\w.+-]) [\w.+-]{1,64}+ @ [\w.-]{1,255}+ )
    | (?P<mixed> (?<![\w]) [-+]? [^\W\d]*+ \d \w*+ (?: [-:.,/+] [^\W\d]*+ \d \w*+ ){0,12} )
    """,
    re.VERBOSE,
)
_STARS = re.compile(r"\*(?:[\s,;:/.-]*+\*)+")


def fingerprint(
    *,
    exception_type: str | None,
    frames: Sequence[Frame],
    message: str,
    logger: str | None = None,
    place: str | None = None,
    is_partial: bool = False,
) -> str:
    """
    The value that errors of one group share: ``1-`` and 32 hex digits.

    The exception's type, the team's own frames as module and function, and the text of the raising
    line go in (the message, where a stack has no source lines); neither line numbers nor paths, so that a
    deploy makes no old error new. Without frames it is the type or the logger, the place, and the message
    with all that varies taken out.

    Args:
        frames: outermost first.
        place: where it was seen, when there are no frames: a route, a task's name.
        is_partial: the stack begins anywhere, as a Python span tells what it saw of one: only its end, and
            what was said, are the same however it was seen.
    """
    kind = _ADDRESS.sub("*", exception_type or "")
    own = [frame for frame in frames if frame.in_app]
    if is_partial and frames and not _has_no_source(frames[-1]):
        last = own[-1] if own else frames[-1]
        parts = ["end", kind, " ".join(last.text.split()), template(message), _name(last)]
    elif own:
        if kind.rpartition(".")[2] == "RecursionError":
            parts = ["recursion", kind, *_recursion(own)]
        else:
            parts = ["own", kind, _raising(own[-1], message), *_names(own)[-_MOST_FRAMES:]]
    elif frames:
        said = [template(message)] if _has_no_source(frames[-1]) else []
        parts = ["foreign", kind, *said, *_names(frames)[-_MOST_FOREIGN_FRAMES:]]
    else:
        parts = ["message", kind or logger or "", place or "", template(message)]
    from hashlib import blake2b  # noqa: PLC0415  (it loads OpenSSL, for which no program shall wait)

    digest = blake2b(digest_size=16, usedforsecurity=False)
    for part in parts:
        data = part.encode("utf-8", "backslashreplace")
        digest.update(b"%d:%s" % (len(data), data))
    return f"{VERSION}-{digest.hexdigest()}"


def of_place(place: str) -> str:
    """The fingerprint of what its place alone tells, whatever is said there: "redis is away"."""
    return fingerprint(exception_type=None, frames=[], message="", place=place)


def template(message: str) -> str:
    """
    The message without what varies from one error to the next, on one line.

    Numbers, ids, dates, quoted text, addresses and the variable parts of URLs become ``*``.
    """
    text = _VARYING.sub(_star, " ".join(message[:_READ_LIMIT].split()))
    return _STARS.sub("*", text)[:_TEMPLATE_LIMIT]


def title(exception_type: str | None, message: str) -> str:
    """What people read in a list, on one line of at most 200 characters: ``KeyError: 'phone'``."""
    kind = (exception_type or "").rpartition(".")[2]
    text = one_line(message[:_READ_LIMIT], _TITLE_LIMIT)
    if kind and text:
        return one_line(f"{kind}: {text}", _TITLE_LIMIT)
    return one_line(kind, _TITLE_LIMIT) or text or "Error"


def culprit(frames: Sequence[Frame]) -> str | None:
    """The team's own innermost frame as people say it, ``shop.orders in create_order``; None without one."""
    for frame in reversed(frames):
        if frame.in_app:
            return one_line(f"{frame.module} in {frame.function}")
    return None


def _raising(frame: Frame, message: str) -> str:
    """The text of the raising line; where a stack has none, and many functions no name, what was said there."""
    return template(message) if _has_no_source(frame) else " ".join(frame.text.split())


def _has_no_source(frame: Frame) -> bool:
    """Whether it is of a language whose stacks never show source lines."""
    return not frame.text and not frame.file.endswith((".py", ".pyc", ">"))


def _names(frames: Iterable[Frame]) -> list[str]:
    """Each place once, where it comes first: a recursion is the same at any depth."""
    return list(dict.fromkeys(name for name in map(_name, frames) if name))


def _recursion(frames: Sequence[Frame]) -> list[str]:
    """The way into a recursion, then what goes round in it: where exactly the stack ended is chance."""
    counts = Counter(name for name in map(_name, frames) if name)
    round_about = sorted(name for name, count in counts.items() if count > 1)
    if not round_about:
        return list(counts)[-_MOST_FRAMES:]
    way_in = []
    for name in counts:
        if counts[name] > 1:
            break
        way_in.append(name)
    return [*way_in[-_MOST_FRAMES:], *round_about[:_MOST_FRAMES]]


def _name(frame: Frame) -> str:
    module, function = frame.module, frame.function
    if module == "__main__":  # the same file, started or imported
        stem = frame.file.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
        module = stem or module
    if function.endswith(_INLINED):
        function = function.rpartition(".<locals>.")[0]
        if not function:
            return ""
    return f"{module}:{function}"


def _star(match: re.Match[str]) -> str:
    if match.lastgroup != "url":
        return "*"
    address = match[0].partition("?")[0].partition("#")[0]
    scheme, _, rest = address.partition("://")
    host, *path = rest.rpartition("@")[2].split("/")
    host = host.partition(":")[0]
    return "/".join([f"{scheme}://{host}", *("*" if any(map(str.isdigit, part)) else part for part in path)])
