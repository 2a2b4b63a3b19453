"""Progress bars: late, and only on a terminal."""

import io

import pytest

from dreamda_aug import progress
from dreamda_aug.progress import bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """What a piece of work leaves on a standard error of some kind."""
    def run(stream, delay):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(progress, "_DELAY_SECONDS", delay)
        assert list(bar("counting", items=[1, 2, 3], unit="numbers")) == [1, 2, 3]
        with bar("inverting", 4, "images") as moved:
            moved.update(4)
        return stream.getvalue().strip("\r ")

    return run


def test_on_a_terminal_they_say_what_is_done(shown):
    text = shown(Terminal(), 0)
    assert "counting" in text and "inverting" in text and " images" in text


def test_elsewhere_and_for_quick_work_they_are_silent(shown):
    assert shown(io.StringIO(), 0) == shown(Terminal(), 60) == ""
