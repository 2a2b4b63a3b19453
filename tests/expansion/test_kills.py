"""Runs that are killed, once their first batch is there: the result is that of a quiet run."""

import builtins
import os
import shutil
import signal

import pytest
from expansion.folders import content, in_child, once_per_batch

from dreamda_aug.expansion.expansion import Expansion


class Killer:
    """Kills its own process at the n-th change to a file, counted from some moment on.

    A file that is being written is left half-written.
    """

    def __init__(self, number):
        self.left, self.counting = number, False
        os.replace, os.link, os.unlink = map(self.watch, (os.replace, os.link, os.unlink))
        os.rmdir, os.remove = self.watch(os.rmdir), self.watch(os.remove)
        real = builtins.open

        def opened(path, mode="r", *args, **kwargs):
            file = real(path, mode, *args, **kwargs)
            return Writing(file, self) if "x" in mode else file

        builtins.open = opened

    def step(self):
        self.left -= self.counting
        return self.counting and self.left == 0

    def watch(self, real):
        def call(*args, **kwargs):
            if self.step():
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call

    def begin(self, progress):
        """As a run's ``progress``: counts once the first batch is there."""
        self.counting = self.counting or progress.done > 0


class Writing:
    """A file that is opened for writing."""

    def __init__(self, file, killer):
        self.file, self.killer = file, killer

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def write(self, data):
        if self.killer.step():
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)


@pytest.mark.parametrize("image_format", ["folder", "webdataset"])
def test_a_run_that_is_killed_at_any_change_to_a_file_ends_with_the_same_bytes(
    train, synthesizer, tmp_path, image_format
):
    """For every n: a run dies at its n-th change to a file, and one goes on."""
    expansion = Expansion(train, synthesizer, 2, image_format=image_format, shard_samples=8)
    expansion.maker.make = once_per_batch(expansion.maker.make)  # the images are made once
    expansion.run(tmp_path / "whole")
    expected, kills = content(tmp_path / "whole"), 0

    def die(out, number):
        killer = Killer(number)
        expansion.run(out, progress=killer.begin)

    out = tmp_path / "out"
    for number in range(1, 200):
        child = in_child(lambda number=number: die(out, number))
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        kills += child.exitcode != 0
        summary = expansion.run(out)
        assert summary.whole and not any("as they had been written" in w for w in summary.warnings)
        assert content(out) == expected, f"killed at change {number}"
        shutil.rmtree(out)
        if child.exitcode == 0:
            break
    assert kills >= 20


@pytest.mark.parametrize("image_format", ["folder", "webdataset"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    train, synthesizer, tmp_path, image_format
):
    """Also while it goes on with what the one before left."""
    expansion = Expansion(train, synthesizer, 2, image_format=image_format, shard_samples=8)
    expansion.maker.make = once_per_batch(expansion.maker.make)
    expansion.run(tmp_path / "whole")
    out, kills = tmp_path / "out", 0
    for number in range(8, 200, 3):

        def die(number=number):
            killer = Killer(number)
            killer.counting = (out / ".dreamda").exists()
            expansion.run(out, progress=killer.begin)

        child = in_child(die)
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode == 0:
            break
        kills += 1
    assert kills >= 5 and content(out) == content(tmp_path / "whole")
