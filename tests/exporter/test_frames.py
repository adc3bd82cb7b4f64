"""Frames out of formatted tracebacks."""

from __future__ import annotations

import shutil
import subprocess
import time
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.postgres import missing_part
from tocsin.exporter.frames import in_app, js_in_app, js_module_of, module_of, outline, parse, parse_python


def _order(depth: int) -> None:
    if depth:
        _order(depth - 1)
    raise KeyError("phone")


def test_a_traceback_gives_its_frames_outermost_first() -> None:
    """What Python wrote can be read back: function, file, line and text of each frame."""
    try:
        _order(1)
    except KeyError:
        stack = traceback.format_exc()

    frames = parse_python(stack)

    assert [frame.function for frame in frames] == [
        "test_a_traceback_gives_its_frames_outermost_first",
        "_order",
        "_order",
    ]
    assert frames[-1].text == 'raise KeyError("phone")'
    assert frames[-1].file == __file__
    assert frames[-1].line == _order.__code__.co_firstlineno + 3
    assert all(frame.in_app for frame in frames)


def test_of_a_chain_the_last_exception_has_the_frames() -> None:
    """What it came from stands before it in the text."""
    try:
        try:
            try:
                raise OSError("line\nbroken")
            except OSError as gone:
                raise ValueError("bad") from gone
        except ValueError:
            raise RuntimeError("outer")
    except RuntimeError:
        stack = traceback.format_exc()

    assert [frame.text for frame in parse_python(stack)] == ['raise RuntimeError("outer")']


def test_a_group_has_its_own_frames_and_not_those_of_its_members() -> None:
    """The margin of an exception group is not part of its text."""
    members: list[Exception] = []
    try:
        _order(0)
    except KeyError as one:
        members.append(one)
    try:
        raise ExceptionGroup("both", members)
    except ExceptionGroup:
        stack = traceback.format_exc()

    frames = parse_python(stack)

    assert [frame.text for frame in frames] == ['raise ExceptionGroup("both", members)']


def test_a_traceback_inside_a_message_adds_no_frames() -> None:
    """A worker's error often carries the text of another process's traceback."""
    try:
        raise RuntimeError('remote:\nTraceback (most recent call last):\n  File "/far.py", line 1, in far\nKeyError: 1')
    except RuntimeError:
        frames = parse_python(traceback.format_exc())

    assert [frame.function for frame in frames] == ["test_a_traceback_inside_a_message_adds_no_frames"]


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("/app/releases/2024-01-01/shop/orders.py", "shop.orders"),
        ("/srv/releases/20240101120000/shop/orders.py", "shop.orders"),
        ("/srv/v12/shop/orders.py", "shop.orders"),
        ("/srv/3f9d2c1ab/shop/orders.py", "shop.orders"),
        ("/app/shop/orders.py", "shop.orders"),
        ("/home/anna/shop/orders.py", "shop.orders"),
        ("/app/main.py", "main"),
        ("/code/src/shop/api/orders/__init__.py", "shop.api.orders"),
        ("shop/orders.py", "shop.orders"),
        ("C:\\srv\\shop\\orders.py", "shop.orders"),
        ("/usr/lib/python3.11/asyncio/tasks.py", "asyncio.tasks"),
        ("/x/.venv/lib/python3.12/site-packages/httpx/_client.py", "httpx._client"),
        ("C:\\Python312\\Lib\\json\\decoder.py", "json.decoder"),
        ("<frozen importlib._bootstrap>", "importlib._bootstrap"),
        ("<string>", "<string>"),
        ("", ""),
    ],
)
def test_a_module_is_read_from_its_path_without_the_folder_of_a_release(file: str, module: str) -> None:
    """Else each deploy would make every error new."""
    assert module_of(file) == module


@pytest.mark.parametrize(
    ("file", "is_own"),
    [
        ("/app/shop/orders.py", True),
        ("shop/orders.py", True),
        ("/app/.venv/lib/python3.11/site-packages/httpx/_client.py", False),
        ("/usr/lib/python3/dist-packages/yaml/__init__.py", False),
        ("/usr/lib/python3.11/asyncio/tasks.py", False),
        ("/app/.venv/bin/uvicorn", False),
        ("C:\\Python312\\Lib\\json\\decoder.py", False),
        ("<frozen runpy>", False),
        ("<string>", False),
        ("/opt/team/lib/python3.11/site-packages/shop/orders.py", True),
        ("/opt/team/lib/python3.11/site-packages/venv/lib/python3.11/site-packages/x.py", False),
    ],
)
def test_what_is_installed_or_made_up_is_not_the_teams_own(file: str, is_own: bool) -> None:
    """A team's folder may lie anywhere, and hold an environment."""
    assert in_app(file, roots=["/app", "/opt/team/lib/python3.11/site-packages/"]) is is_own


def test_each_file_is_judged_once() -> None:
    """The caller's judgement may be slow."""
    asked: list[str] = []
    stack = "Traceback (most recent call last):\n" + '  File "/a.py", line 1, in f\n    x\n' * 50 + "KeyError: 1\n"

    def is_own(file: str) -> bool:
        asked.append(file)
        return True

    frames = parse_python(stack, is_app=is_own)

    assert len(frames) == 50
    assert asked == ["/a.py"]


@given(st.text(alphabet='Traceback (most recent call last):\n File ".py", line 1in f|+-^~\r\x00é', max_size=400))
def test_no_text_makes_the_parser_fail(text: str) -> None:
    """It reads what strangers send."""
    parse_python(text)
    parse_python("Traceback (most recent call last):\n" + text)


@pytest.mark.parametrize("unit", ['  File "/a.py", line 1, in f\n', "| ", "+-+--\n", 'File "', "x\n", " " * 9 + "\n"])
def test_a_megabyte_of_anything_is_read_in_linear_time(unit: str) -> None:
    """Twice the text may take about twice the time, never four times."""
    text = "Traceback (most recent call last):\n" + unit * (500_000 // len(unit))
    start = time.process_time()
    parse_python(text)
    half = time.process_time() - start
    start = time.process_time()
    parse_python(text + text)

    assert time.process_time() - start < 4 * half + 0.2


# JavaScript

NODE = """\
TypeError: order 5
has no items
    at new Cart (/srv/releases/20240101120000/dist/orders/cart.js:17:9)
    at Object.<anonymous> (file:///app/src/index.mjs:3:1)
    at Cart.add [as put] (C:\\srv\\shop\\cart.ts:1:2)
    at eval (eval at render (/app/src/view.js:8:3), <anonymous>:1:7)
    at Array.map (<anonymous>)
    at async Promise.all (index 0)
    at async /app/node_modules/.pnpm/express@5.1.0/node_modules/express/lib/router.js:22:43
    at process.processTicksAndRejections (node:internal/process/task_queues:95:5) {
  [cause]: Error: connect ECONNREFUSED
      at TCPConnectWrap.afterConnect (node:net:1611:16)
}"""


def test_a_stack_of_node_gives_its_frames_outermost_first() -> None:
    """As Python's; the causes that stand behind it have frames of their own."""
    frames = parse(NODE)

    assert [(frame.module, frame.function, frame.line, frame.in_app) for frame in frames] == [
        ("node:internal/process/task_queues", "process.processTicksAndRejections", 95, False),
        ("express/lib/router", "<anonymous>", 22, False),
        ("index 0", "Promise.all", 0, False),
        ("<anonymous>", "Array.map", 0, False),
        ("view", "eval", 8, True),
        ("shop/cart", "Cart.add", 1, True),
        ("index", "Object.<anonymous>", 3, True),
        ("orders/cart", "new Cart", 17, True),
    ]


def test_node_itself_is_understood() -> None:
    """What it really writes, whichever version is installed here."""
    node = shutil.which("node")
    if node is None:
        missing_part("node")
    assert node is not None
    code = """
        class Refused extends Error {}
        async function reserve() { await null; throw new Refused('order 5 is gone', { cause: new Error('inner') }) }
        reserve().catch((error) => console.log(error.stack + '\\n' + require('util').inspect(error)))
    """
    stack = subprocess.run([node, "-e", code], capture_output=True, text=True, check=True).stdout

    frames = parse(stack)

    assert frames[-1].function == "reserve"
    assert outline(stack) is not None


@pytest.mark.parametrize(
    ("file", "module", "is_own"),
    [
        ("/app/src/x.ts", "x", True),
        ("/app/dist/orders/create.js", "orders/create", True),
        ("/app/my-shop/server.cjs", "my-shop/server", True),
        ("/home/anna/shop/api/x.mjs", "shop/api/x", True),
        ("file:///C:/srv/app/src/x.js", "x", True),
        ("webpack://shop/./src/orders/x.ts", "orders/x", True),
        ("webpack-internal:///(rsc)/./src/app/page.tsx", "app/page", True),
        ("webpack:///src/x.ts", "x", True),
        ("webpack://shop/node_modules/pg/lib/x.js", "pg/lib/x", False),
        ("webpack/bootstrap 1", "webpack/bootstrap 1", False),
        ("https://shop.example/static/main.3f2a1b9c.js?v=7", "main", True),
        ("/app/dist/chunk-AB12CD34.js", "chunk", True),
        ("/app/src/orders/refund-policy.js", "orders/refund-policy", True),
        ("/app/node_modules/@prisma/client/runtime/library.js", "@prisma/client/runtime/library", False),
        ("internal/process/task_queues.js", "internal/process/task_queues.js", False),
        ("events.js", "events", False),
        ("app.js", "app", True),
        ("native", "native", False),
        ("", "", False),
    ],
)
def test_a_module_of_javascript_is_its_path_without_what_a_release_changes(
    file: str, module: str, is_own: bool
) -> None:
    """No release's folder, no build's hash, no extension; what is installed or the engine's is nobody's own."""
    assert (js_module_of(file), js_in_app(file)) == (module, is_own)


def test_a_release_makes_no_error_of_node_new() -> None:
    """Another folder, other lines: the same names."""
    later = NODE.replace("20240101120000", "20240202130000").replace(":17:9", ":21:3")

    assert [(one.module, one.function) for one in parse(later)] == [(one.module, one.function) for one in parse(NODE)]


def test_python_and_no_stack_at_all_are_told_apart_from_javascript() -> None:
    """A message may say anything."""
    python = 'Traceback (most recent call last):\n  File "/a.py", line 1, in f\n    at x (y:1:2)\nKeyError: 1'

    assert [frame.file for frame in parse(python)] == ["/a.py"]
    assert parse("it broke") == []


def test_what_makes_an_exception_the_same_is_the_same_from_each_span() -> None:
    """Further out there is more of the stack; the innermost frame and the exception's own line stay."""

    def inner() -> None:
        raise KeyError("phone\nnumber")

    def outer() -> None:
        try:
            inner()
        except KeyError:
            seen.append(traceback.format_exc())
            raise

    seen: list[str] = []
    try:
        outer()
    except KeyError:
        seen.append(traceback.format_exc())

    assert len({outline(stack) for stack in seen}) == 1
    told = outline(seen[0])
    assert told is not None
    assert (told.exception_type, told.message) == ("KeyError", "'phone\\nnumber'")


def test_two_exceptions_of_one_place_are_told_apart_by_what_they_say() -> None:
    assert outline(NODE) != outline(NODE.replace("order 5", "order 6"))
    assert outline(NODE) == outline(NODE.replace("at async", "at"))
    assert outline("nothing of the kind") is None


@given(st.text(alphabet="at (eval:1/node_modules<>)\n [as]{}ync .jsTraceback", max_size=400))
def test_no_text_makes_the_parser_of_javascript_fail(text: str) -> None:
    """It reads what strangers send."""
    parse(text)
    parse("Error: x\n    at " + text)
    outline("Error: x\n    at " + text)


@pytest.mark.parametrize("unit", ["    at f (/a.js:1:2)\n", "    at ", "eval at (", "(", ":1", "[as x] ", "\n    at x"])
def test_a_megabyte_of_javascript_is_read_in_linear_time(unit: str) -> None:
    text = "Error: x\n    at " + unit * (500_000 // len(unit))
    start = time.process_time()
    parse(text)
    outline(text)
    half = time.process_time() - start
    start = time.process_time()
    parse(text + text)
    outline(text + text)

    assert time.process_time() - start < 4 * half + 0.2
