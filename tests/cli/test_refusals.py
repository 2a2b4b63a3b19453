"""Bad arguments and lists: one clear line, before a model is loaded."""

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
    "limit=0", "batch-size=-3", "class-ratio=cat", "class-ratio=cat=x", "class-ratio=cow=2",
    "only-classes=cow", "set=steps", "set=pace=1", "set=steps=nan", "set=eta=[]", "set=paths={}",
    "set=solver=x", "set=noise_scale=Infinity", "set=replay=true", "filter=x", "filter=", "preset=",
    "image-format=x", "device=abacus", "shard=2/2", "shard=1", "shard=-1/2", "shard=a/b",
    "prompt={", "prompt={x}", "classes=nowhere", "unheard-of=1",
])
def test_a_bad_option_of_expand_is_refused(option, refused):
    assert len(refused("expand", "train", "--out", "out", f"--{option}")) > 30


@pytest.mark.parametrize("name, content", [
    ("list.csv", b""), ("list.csv", b"path,label\na.png,\xff\n"), ("list.csv", b"path\n\0"),
    ("list.jsonl", b"[1]"), ("list.jsonl", b'{"path": 3}'), ("list.jsonl", b"\0"),
    ("classes.txt", b"cat\ncat"), ("classes.txt", b"\xff"), ("classes.txt", b"tabby\n"),
])
def test_a_damaged_list_is_named(name, content, refused, tmp_path):
    (tmp_path / name).write_bytes(content)
    words = ["train", "--classes", name] if name == "classes.txt" else [name]
    err = refused("expand", *words, "--out", "out")
    assert name in err or "must name the source's 2 classes, got 1" in err
