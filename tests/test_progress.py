"""Progress bars: late, and only on a terminal."""

import io

import pytest

from dreamda_aug import progress
from dreamda_aug.progress import bar


@pytest.mark.parametrize("is_terminal, delay", [(True, 0), (True, 60), (False, 0)])
def test_bars_show_on_a_terminal_and_for_long_work_alone(monkeypatch, is_terminal, delay):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "_DELAY_SECONDS", delay)
    assert list(bar("counting", items=[1, 2, 3], unit="numbers")) == [1, 2, 3]
    with bar("inverting", 4, "images") as moved:
        moved.update(4)
    text = stream.getvalue().strip("\r ")
    shown = all(word in text for word in ("counting", "inverting", " images"))
    assert shown if is_terminal and not delay else not text
