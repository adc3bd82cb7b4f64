"""Frames as text: what goes in comes out."""

from __future__ import annotations

import pytest

from tocsin.model import Frame
from tocsin.packing import pack, unpack


def test_frames_come_back_as_capture_writes_them() -> None:
    frames = [
        Frame(
            module="shop.orders", function="Cart.add", file="/srv/shop/orders.py", line=42, text="a = b", in_app=True
        ),
        Frame(module="заказы", function="<lambda>", file="C:\\shop\\a b.js", line=0),
    ]

    assert unpack(pack(frames)) == [
        {
            "module": one.module,
            "function": one.function,
            "file": one.file,
            "line": one.line,
            "text": one.text,
            "in_app": one.in_app,
        }
        for one in frames
    ]


def test_no_name_breaks_out_of_its_place() -> None:
    """A file may be called anything; its frame stays one frame."""
    hostile = "a\tb\nc\td\te\t1\t+\tf  g\u2028h"
    (frame,) = unpack(pack([Frame(module=hostile, function=hostile, file=hostile, line=7, text=hostile)]))

    assert (frame["line"], frame["in_app"]) == (7, False)
    assert frame["module"] == frame["function"] == frame["file"] == "a b c d e 1 + f  g\u2028h"
    assert frame["text"] == hostile.replace("\n", " ")


@pytest.mark.parametrize("text", ["", "no frames", "a\tb\tc\tx\t+\tt", "\n\n", "a\tb\tc\t٣\t+\tt"])
def test_what_is_no_frame_is_left_out(text: str) -> None:
    """Whatever stands there, a list comes out, and numbers in it are numbers."""
    assert all(isinstance(frame["line"], int) for frame in unpack(text))
