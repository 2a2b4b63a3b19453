"""Where an expansion may write and read: no foreign places, no circles, one process at a time."""

import os
import subprocess
import sys

import PIL.Image
import pytest

from dreamda_aug import Synthesizer
from dreamda_aug.expansion import Expansion, ExpansionError, expand
from dreamda_aug.inputs.seed_images import open_seed_images


def picture(path, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("L", (28, 28), value).save(path)


@pytest.fixture
def source(tmp_path):
    for name in ("cat", "dog"):
        for i in range(2):
            picture(tmp_path / "train" / name / f"{i}.png", 50 * i + 20)
    return tmp_path / "train"


@pytest.fixture
def synthesizer(bundled):
    return Synthesizer(bundled, "paper", steps=2, strength=1.0, cache=None)


def test_writing_between_the_seed_images_is_refused(source, synthesizer):
    with pytest.raises(ValueError, match="out must lie outside the seed images' folder"):
        expand(source, source / "cat", synthesizer, 1)
    assert sorted(os.listdir(source / "cat")) == ["0.png", "1.png"]


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_source_is_refused(text, synthesizer, tmp_path):
    with pytest.raises(ValueError, match="source must name a folder"):
        expand(text, tmp_path / "out", synthesizer, 1)


def test_a_link_in_a_circle_is_followed_once(source):
    os.symlink(source / "cat", source / "cat" / "again")
    os.symlink(source, source / "dog" / "all")
    found = open_seed_images(source)
    assert [p for p in found.paths if "again" in p] == []
    assert len(found.paths) == len(set(found.paths)) < 20
    assert any("was not followed" in problem for problem in found.problems)


def test_hidden_files_and_folders_are_no_seeds(source):
    picture(source / ".git" / "0.png")
    picture(source / "cat" / ".hidden.png")
    picture(source / "cat" / ".thumbs" / "0.png")
    found = open_seed_images(source)
    assert found.classes == ["cat", "dog"] and len(found.paths) == 4


def test_a_pipe_is_no_image_and_is_not_waited_for(source, synthesizer, tmp_path):
    os.mkfifo(source / "cat" / "pipe.png")
    summary = expand(source, tmp_path / "out", synthesizer, 1)
    assert summary.stats.made == 4 and sum(summary.stats.unreadable.values()) == 1


def test_a_name_that_is_no_utf8_is_refused_before_anything_is_made(source):
    os.mkdir(os.fsencode(source) + b"/b\xffd")
    with pytest.raises(ValueError, match="not UTF-8"):
        open_seed_images(source)


def test_a_second_process_on_the_same_share_is_refused(source, synthesizer, tmp_path):
    out = tmp_path / "out"
    expansion = Expansion(source, synthesizer, 1)
    code = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'wb'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); time.sleep(60)"
    )

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expansion.run(out, progress=interrupt)
    lock = out / ".dreamda" / "lock-0-of-1"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)],
                          stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ExpansionError, match="another process is at work here"):
            expansion.run(out)
        other.kill()
    assert expansion.run(out).whole
