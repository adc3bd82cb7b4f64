"""tocsin's own failures: held back, counted, said so that a terminal can take it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tocsin.contained import contained, failures


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    yield
    failures.clear()


def test_a_failure_of_our_own_is_held_back_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """It is said once a minute for each kind of work."""
    for _ in range(3):
        with contained("holding back"):
            raise ValueError("it broke")

    assert failures["holding back"] == 3
    assert capsys.readouterr().err == "tocsin: holding back failed: ValueError: it broke\n"


def test_an_interrupt_is_not_ours() -> None:
    """Ctrl-C stays Ctrl-C."""
    with pytest.raises(KeyboardInterrupt), contained("being interrupted"):
        raise KeyboardInterrupt


def test_what_is_said_of_a_failure_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """The text may quote what an attacker sent: no bell, no escape, no return to the line's start."""
    with contained("quoting"):
        raise ValueError("\x1b[2J\x07one\rtwo\nthree «ы»")

    said = capsys.readouterr().err
    assert said.endswith("\n")
    assert said[:-1].isprintable()
    assert said.isascii()
    assert "one two three" in said
