"""Frames out of formatted tracebacks."""

from __future__ import annotations

import time
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.exporter.frames import in_app, module_of, parse_python


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
