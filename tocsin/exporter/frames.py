"""Frames out of a stack's text, for errors whose frames nobody sent, and whose code a file is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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


# JavaScript: "    at async Cart.add [as put] (file:///app/src/cart.js:17:9)", where all but the place may be missing.
_AT = re.compile(r"[ \t]*at ", re.ASCII)
_PLACE = re.compile(r"(.*?)(?::(\d{1,9}))?(?::\d{1,9})?\Z", re.DOTALL)
_EVALUATED = re.compile(r".*\(([^()]+?:\d{1,9}:\d{1,9})\)", re.DOTALL)
_AS = re.compile(r" \[as [^\]]*\]\Z")
_CAUSE = re.compile(r"[ \t]*(?:\[cause\]|\[errors\]|Caused by):", re.IGNORECASE)
_MOST_OF_A_LINE = 2_000

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:(?=/)", re.IGNORECASE)
_BUNDLER = re.compile(r"(?:webpack|webpack-internal|turbopack|rsc|app)://", re.IGNORECASE)
_OF_NODE = re.compile(
    r"(?:node|bun|ext|wasm|native|internal|evalmachine|electron)[:/.]|<|native\Z|index \d+\Z|webpack/"
)
_OLD_NODE = re.compile(
    r"(?:assert|buffer|child_process|cluster|dgram|dns|domain|events|fs|https?|module|net|path|readline|stream|timers|tls"
    r"|util|vm|zlib|_[a-z_]+)(?:\.js)?\Z"
)
_EXTENSION = re.compile(r"\.(?:d\.)?(?:[cm]?[jt]sx?|vue|svelte)\Z")
_CONTENT_HASH = re.compile(
    r"(?!\A)[.-](?=[A-Za-z_]*\d)(?:[0-9a-f]{8,32}|[0-9A-Z]{8,16}|(?=[^.]*[A-Z])[0-9A-Za-z_]{8})(?=\.|\Z)"
)
_ROOT_FOLDERS_OF_JS = _ROOT_FOLDERS | {"dist", "out", "build", ".next", "_next", "static"}


@dataclass(frozen=True, slots=True)
class Outline:
    """What the text of a stack says of its exception; the same however far out it was written down."""

    exception_type: str  # as the stack has it: "shop.errors.OutOfStock", "TypeError"
    message: str
    innermost: str  #      the line of the frame that raised it


def parse(stack: str) -> list[Frame]:
    """
    Frames of a stack as Python or a JavaScript engine (V8) writes it, outermost first.

    Of a chained one those of the exception that arrived: Python writes its causes before it, V8 after it.
    Never raises, and finds none in what is no stack.
    """
    return _parse_js(stack) if _is_js(stack) else parse_python(stack)


def outline(stack: str) -> Outline | None:
    """
    What makes an exception the same in each stack that was written of it, None where that cannot be told.

    A span writes its stack only from itself inwards, so the spans that an exception passes have each more
    of it; a log record has another name for its class. The innermost frame and its own line are the same.
    """
    return _outline_of_js(stack) if _is_js(stack) else _outline_of_python(stack)


def headline(text: str) -> tuple[str, str]:
    """Class and message out of an exception's own line, ``KeyError: 'phone'``; some have a message alone."""
    kind, colon, message = text.strip().partition(": ")
    if not colon and " " in kind:
        kind, message = "", kind
    return kind.removeprefix("Uncaught ")[:_MOST_OF_A_LINE], message


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


def _outline_of_python(stack: str) -> Outline | None:
    lines = list(_without_margin(_last_block(stack)))
    innermost = ""
    at = 0
    while at < len(lines) and lines[at].strip() not in _HEADERS:
        at += 1
    for number in range(at + 1, len(lines)):
        line = lines[number]
        if line[:1] not in ("", " ", "\r"):
            return Outline(*headline("\n".join(lines[number:])), innermost) if innermost else None
        text = line.strip()
        if text.startswith('File "') and ", in " in text:
            innermost = text
    return None


def _is_js(stack: str) -> bool:
    return any(_AT.match(line) for line in _lines_before_python(stack))


def _lines_before_python(stack: str) -> Iterator[str]:
    """The first lines, as far as they cannot be a Python traceback's."""
    at, end = 0, 0
    while at < len(stack) and end >= 0:
        end = stack.find("\n", at)
        line = stack[at:] if end < 0 else stack[at:end]
        if line.strip(" |+\r") in _HEADERS or line.startswith('  File "'):
            return
        yield line
        at = end + 1


def _outline_of_js(stack: str) -> Outline | None:
    head, _, rest = stack.partition("\n    at ")
    if not rest:
        return None
    return Outline(*headline(head), rest.partition("\n")[0].strip())


def _parse_js(stack: str) -> list[Frame]:
    known: dict[str, tuple[str, bool]] = {}
    frames: list[Frame] = []
    for line in stack.split("\n"):
        if frames and _CAUSE.match(line):
            break
        if not _AT.match(line) or len(line) > _MOST_OF_A_LINE:
            continue
        function, file, number = _place_of(line.strip()[3:].removesuffix(" {"))
        if file not in known:
            known[file] = (js_module_of(file), js_in_app(file))
        module, own = known[file]
        frames.append(Frame(module=module, function=function, file=file, line=number, in_app=own))
        if len(frames) >= _MOST_FRAMES:
            break
    return frames[::-1]


def _place_of(text: str) -> tuple[str, str, int]:
    """Function, file and line of what stands behind "at"."""
    text = text.removeprefix("async ")
    function, bracket, place = text.partition(" (")
    if bracket and place.endswith(")"):
        place = place[:-1]
    elif bracket and _AS.search(function) is None and "/" not in function:
        place = place.rstrip(")")
    else:
        function, place = "", text
    if place.startswith("eval at "):
        evaluated = _EVALUATED.match(place)
        place = evaluated[1] if evaluated else "<anonymous>"
    found = _PLACE.match(place)
    file, number = (found[1], int(found[2] or 0)) if found else (place, 0)
    return _AS.sub("", function).strip() or "<anonymous>", file.removeprefix("file://"), number


def js_in_app(file: str) -> bool:
    """Whether a file that a JavaScript stack names is the team's own: not of the engine, not installed, not made up."""
    path = _js_path(file)
    return not (not path or "/node_modules/" in f"/{path}" or _OF_NODE.match(path) or _OLD_NODE.match(path))


def js_module_of(file: str) -> str:
    """
    What people call a file of a JavaScript stack: ``orders/create`` for ``/app/dist/orders/create.js``.

    No folder of a release gets into it, no build's hash, and no extension: it is part of the fingerprint.
    """
    path = _js_path(file)
    if _OF_NODE.match(path) or not path:
        return path
    *folders, name = path.split("/")
    name = _CONTENT_HASH.sub("", _EXTENSION.sub("", name)) or name
    installed = "node_modules" in folders
    if installed:
        folders = folders[len(folders) - folders[::-1].index("node_modules") :]
        return "/".join([*folders, name])
    if folders and (folders[0] == "" or folders[0].endswith(":")):  # no package lies at the root of a disk
        away = 2 if len(folders) > 2 and folders[1] in _FOLDERS_OF_PEOPLE else 1
        folders = folders[1 + away :]
    words = [name]
    for folder in reversed(folders):
        if (
            len(words) >= 3
            or folder in ("", ".", "..")
            or folder in _ROOT_FOLDERS_OF_JS
            or _RELEASE_FOLDER.match(folder)
        ):
            break
        words.append(folder)
    return "/".join(reversed(words))


def _js_path(file: str) -> str:
    """A place without the scheme and host before its path, and without what a bundler puts behind it."""
    path = file.replace("\\", "/").partition("?")[0]
    if bundled := _BUNDLER.match(path):
        rest = path[bundled.end() :]
        if "/./" in rest:
            return "./" + rest.partition("/./")[2]
        return rest.partition("/")[2].lstrip("/") if not rest.startswith(".") else rest
    if scheme := _SCHEME.match(path):
        rest = path[scheme.end() :]
        if scheme[0].lower() == "file:":
            rest = rest.lstrip("/")
            return rest if rest[1:2] == ":" else "/" + rest
        if len(scheme[0]) > 2 and rest.startswith("//"):
            return "./" + rest[2:].partition("/")[2]
    return path
