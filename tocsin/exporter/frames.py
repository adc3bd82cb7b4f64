"""Frames out of a formatted traceback, for errors whose frames nobody sent, and whose code a file is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from tocsin.model import Frame

_MOST_FRAMES = 2_000

_HEADERS = ("Traceback (most recent call last):", "Exception Group Traceback (most recent call last):")
_JOINTS = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_FILE = re.compile(r'File "([^"\n]{1,1024})", line (\d{1,9})(?:, in (.{1,512}))?\Z')
_GROUP_MARGIN = re.compile(r"(?:  )?[|+] ")

# What no team writes itself: the standard library, what an installer put there, and scripts that it made.
_LIBRARY = re.compile(
    r"/(?:site|dist)-packages/|/lib(?:64)?/(?:python|pypy)\d[\d.]*t?/|/python\d+\.zip/|/python\d+/lib/"
    r"|/(?:bin|scripts)/[^/.]+\Z",
    re.IGNORECASE,
)
_INSTALLED = re.compile(
    r".*(?:/(?:site|dist)-packages/|/lib(?:64)?/(?:python|pypy)\d[\d.]*t?/|/python\d+\.zip/|/python\d+/lib/)",
    re.IGNORECASE | re.DOTALL,
)
# A folder that a deploy makes: its name changes with each release.
_RELEASE_FOLDER = re.compile(
    r"v?\d[\d_]*\Z|(?=[a-z_]*\d)[0-9a-f]{7,64}\Z|(?:release|build|deploy)s?[-_]?\d*\Z", re.IGNORECASE
)
_ROOT_FOLDERS = frozenset({"src", "current", "lib", "www"})
_FOLDERS_OF_PEOPLE = frozenset({"home", "Users", "tmp"})


def parse_python(stack: str, is_app: Callable[[str], bool] | None = None) -> list[Frame]:
    """
    Frames of a formatted traceback, outermost first; of a chained one those of its last exception.

    Never raises on what is not a traceback: no line of it looks like a frame, so there is none.

    Args:
        stack: as ``traceback.format_exception`` writes it, exception groups included; not trusted.
        is_app: asked once for each file (default: `in_app`).
    """
    is_app = is_app or in_app
    known: dict[str, tuple[str, bool]] = {}
    frames: list[Frame] = []
    expects_text = False
    for line in _frame_lines(_last_block(stack)):
        found = _FILE.match(line) if line.startswith('File "') else None
        if found is None:
            if expects_text:
                frames[-1].text = line
                expects_text = False
            continue
        expects_text = found[3] is not None
        if not expects_text:  # the place of a SyntaxError, not a frame
            continue
        file = found[1]
        if file not in known:
            known[file] = (module_of(file), bool(is_app(file)))
        module, own = known[file]
        frames.append(Frame(module=module, function=found[3], file=file, line=int(found[2]), in_app=own))
        if len(frames) >= 2 * _MOST_FRAMES:
            del frames[:_MOST_FRAMES]
    return frames[-_MOST_FRAMES:]


def in_app(file: str, roots: Sequence[str] = ()) -> bool:
    """
    Whether a file is the team's own: not of the standard library, not installed, not made up.

    Args:
        roots: the team's folders; only what comes after one is looked at, so that a service which
            itself was installed into such a folder is the team's own.
    """
    path = file.replace("\\", "/")
    if not path or path.startswith("<"):
        return False
    for root in roots:
        base = root.replace("\\", "/").rstrip("/") + "/"
        if len(base) > 1 and path.startswith(base):
            path = path[len(base) - 1 :]
            break
    return _LIBRARY.search(path) is None


def module_of(file: str) -> str:
    """
    The module that a file most likely is: ``shop.orders`` for ``/srv/releases/2024-01-01/shop/orders.py``.

    No folder of a release gets into it, since it is part of the fingerprint.
    """
    path = file.replace("\\", "/")
    if path.startswith("<"):
        return path[8:-1] if path.startswith("<frozen ") and path.endswith(">") else path
    installed = _INSTALLED.match(path)
    if installed:
        parts = path[installed.end() :].split("/")
        limit = len(parts)
    else:
        parts = path.split("/")
        if parts[0] == "" or parts[0].endswith(":"):  # no package lies at the root of a disk
            away = 2 if len(parts) > 3 and parts[1] in _FOLDERS_OF_PEOPLE else 1
            parts = parts[1 + away :] if len(parts) > 1 + away else parts[-1:]
        limit = 3
    name = parts[-1].rpartition(".")[0] or parts[-1]
    words = [name] if name != "__init__" or len(parts) == 1 else []
    for part in reversed(parts[:-1]):
        if len(words) >= limit or not part.isidentifier():
            break
        if not installed and (part in _ROOT_FOLDERS or _RELEASE_FOLDER.match(part)):
            break
        words.append(part)
    return ".".join(reversed(words)) or name


def _last_block(stack: str) -> list[str]:
    """The lines of the last exception of a chained traceback: the one that was raised last."""
    lines = stack.split("\n")
    joints = (at for at in range(len(lines) - 1, -1, -1) if lines[at].rstrip("\r") in _JOINTS)
    return lines[next(joints, -1) + 1 :]


def _without_margin(lines: list[str]) -> Iterator[str]:
    """The lines of an exception group without its margin, its members left out."""
    for line in lines:
        if line.lstrip().startswith("+-+--"):
            return
        margin = _GROUP_MARGIN.match(line)
        yield line[margin.end() :] if margin else line


def _frame_lines(lines: list[str]) -> Iterator[str]:
    """The indented lines between a header and the exception's own line, stripped; marks left out."""
    has_header = any(line.strip(" |+\r") in _HEADERS for line in lines)
    is_inside = not has_header
    for line in _without_margin(lines):
        text = line.strip()
        if not is_inside:
            is_inside = text in _HEADERS
        elif line[:1] not in ("", " ", "\r"):
            if has_header:
                return  # the exception's line: what follows is its message
        elif text and text.strip("^~ "):
            yield text
