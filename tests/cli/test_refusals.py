"""Bad arguments and lists: one clear line, before a model is loaded."""

import json
import os

import pytest
from expansion.folders import write_images

from dreamda_aug.cli.main import main


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs a command that is refused; gives the line that it prints."""
    write_images(tmp_path / "train", {"cat": 2, "dog": 2})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dreamda_aug.models.ModelSpec.load",
                        lambda spec: pytest.fail("a bad input got as far as the model"))

    def run(*words):
        try:
            status = main(list(words))
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("dreamda"), err
        return err

    return run


@pytest.mark.parametrize("command, message", [
    ("fly", "invalid choice: 'fly'"), ("preview", "arguments are required: source"),
    ("preview /nowhere/at/all", "/nowhere/at/all"),
    ("preview train --images 0", "images must be an integer >= 1, got 0"),
    ("preview train --device abacus", "device must be such as"),
    ("calibrate train --images 0", "images must be an integer >= 1, got 0"),
    ("calibrate train --preset best", "best"),
    ("metrics train train --inception a --classifier b", "in two ways; give one"),
    ("adapt train --class-map left", "expected NAME=VALUE, got 'left'"),
    ("adapt train --no-early-stopping", "steps must be given where early_stopping is False"),
    ("adapt train --rank 0", "rank must be an integer >= 1, got 0"),
    ("train train --image-size 17", "image_size must be a multiple of"),
    ("train train --minutes nan", "minutes must be a finite number or None, got nan"),
    ("train train --device abacus", "device must be such as"),
    ("evaluate train --draws 1", "draws must be an integer >= "),
    ("evaluate train --set pace=1", "'pace' is no setting"),
])
def test_bad_arguments_end_in_one_line_that_names_them(command, message, refused):
    assert message in refused(*command.split())


@pytest.mark.parametrize("option", [
    "expansion-ratio=x", "expansion-ratio=0", "expansion-ratio=-1", "expansion-ratio=1e3",
    "expansion-ratio=1000001", "limit=0", "batch-size=-3", "class-ratio=cat", "class-ratio=cat=x",
    "class-ratio=cow=2",
    "only-classes=cow", "set=steps", "set=pace=1", "set=steps=nan", "set=eta=[]", "set=paths={}",
    "set=solver=x", "set=noise_scale=Infinity", "set=replay=true", "filter=x", "filter=", "preset=",
    "image-format=x", "device=abacus", "shard=2/2", "shard=1", "shard=-1/2", "shard=a/b",
    "prompt={", "prompt={x}", "classes=nowhere", "unheard-of=1",
])
def test_a_bad_option_of_expand_is_refused(option, refused):
    assert len(refused("expand", "train", "--out", "out", f"--{option}")) > 30


def row(label, path="cat/0.png"):
    return json.dumps({"path": path, "label": label}).encode()


@pytest.mark.parametrize("name, content, message", [
    ("a.csv", b"path,label\na.png,\xff\n", "a.csv"), ("a.csv", b"path\n\0", "a.csv"),
    ("a.csv", None, "a.csv: expected a regular file, found a FIFO"), ("a.jsonl", b"\0", "a.jsonl"),
    ("a.jsonl", row("\ud800"), "is not UTF-8"), ("a.jsonl", row("a", "\ud800.png"), "is not UTF-8"),
    ("a.jsonl", row(10**400), "a.jsonl: a label must be one of the 1,000,000 classes"),
    ("a.jsonl", row("a", "a\0.png"), "a.jsonl, line 1: expected a column 'path' with text"),
    ("\udcff", None, "is not UTF-8"),
    ("classes.txt", b"tabby\n", "must name the source's 2 classes, got 1"),
])
def test_a_damaged_list_or_name_is_refused_before_anything_is_made(
    name, content, message, refused, tmp_path
):
    path, words = tmp_path / "train" / name, ["train"]
    if not path.suffix:
        write_images(tmp_path / "train", {name: 1})
    else:
        os.mkfifo(path) if content is None else path.write_bytes(content)
        words = ["train", "--classes", str(path)] if name == "classes.txt" else [str(path)]
    assert message in refused("expand", *words, "--out", "out")
    assert not (tmp_path / "out").exists()
