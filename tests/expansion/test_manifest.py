import hashlib
import json

import pytest

from dreamda_aug import DDIMInversion, Settings
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.manifest import (
    ManifestLine,
    read_manifest,
    settings_from_json,
    settings_to_json,
)

LINE = ManifestLine(
    id="00000001_0002", file="cat/00000001_0002.png", class_name="cät", label=0, seed_index=1,
    seed_path="cat/b.png", seed_digest="ab" * 32, replica=2, epoch=0, rng_seed=0, condition=None,
    batch=0, row=2, layout=[[0, 2], [2, 1]], batch_size=4, settings=settings_to_json(Settings()),
    model="cd" * 32, versions={"torch": "2"}, pixels="ef" * 32, distance=0.25,
    scores={"copy": 1.5}, flags=["copy"], events=[],
)


@pytest.mark.parametrize("value", [
    Settings(), Settings(eta=0.0, inversion=DDIMInversion(exact=False), noise_scale=None),
])
def test_settings_come_back_as_they_were(value):
    assert settings_from_json(json.loads(json.dumps(settings_to_json(value)))) == value


@pytest.mark.parametrize("change, message", [
    ({"inversion": {"type": "Popen"}}, "KeyError: 'Popen'.*pass the synthesizer"),
    ({"steps": -1}, "cannot be made .* steps must be an integer >= 1"),
    ({"temperature": 1}, "TypeError: .*Settings"),
])
def test_settings_that_are_not_ours_are_refused(change, message):
    with pytest.raises(ExpansionError, match=message):
        settings_from_json({**settings_to_json(Settings()), **change})


@pytest.mark.parametrize("change, message", [
    ({"label": "0"}, r"label must be of type int, got '0'"),
    ({"condition": 1.5}, r"condition must be of type str \| int \| None, got 1.5"),
    ({"file": "../../etc/passwd"}, r"file must be a path in the dataset's folder"),
    ({"flags": {}}, r"flags must be of type list"),
    ({"extra": 1}, r"unexpected keyword argument 'extra'"),
])
def test_a_damaged_line_is_named_with_what_is_wrong(tmp_path, change, message):
    data = {**json.loads(LINE.to_json()), **change}
    path = tmp_path / "manifest.jsonl"
    path.write_text(f"{LINE.to_json()}\n{json.dumps(data)}\n")
    with pytest.raises(ExpansionError, match=rf"manifest.jsonl, line 2: .*{message}"):
        list(read_manifest(tmp_path))


def test_a_folder_without_manifest_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="when the same command is run again"):
        list(read_manifest(tmp_path))


def test_a_line_has_the_digest_of_its_file_and_the_image_carries_the_rest():
    line = LINE.with_file(b"png")
    assert json.loads(line.to_json())["file_digest"] == hashlib.sha256(b"png").hexdigest()
    assert line.in_image() == LINE.to_json() and LINE.to_json().isascii()
    again = ManifestLine.from_json(line.to_json())
    assert again == line and again.file_digest == line.file_digest
