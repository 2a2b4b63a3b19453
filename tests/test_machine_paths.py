import pytest

from dreamda_aug.machine_paths import path_name, relative_name, without_paths


@pytest.mark.parametrize("place, name", [
    ("/home/ann/models/my sd", "my sd"),
    ("C:\\Users\\ann\\sd.safetensors", "sd.safetensors"),
    ("\\\\server\\share\\models\\sd", "sd"),
    ("/home/ann/.cache/huggingface/hub/models--stabilityai--sd-turbo/snapshots/0a1b2c",
     "stabilityai/sd-turbo"),
    ("stabilityai/sd-turbo", "stabilityai/sd-turbo"),
    ("models/sd", "models/sd"),
])
def test_a_place_is_called_by_its_name_and_a_hub_id_stays(place, name):
    assert path_name(place) == name


@pytest.mark.parametrize("path, folder, name", [
    ("cat/0.png", "/data/train", "cat/0.png"),
    ("#12", None, "#12"),
    ("/data/train/cat/0.png", "/data/train", "cat/0.png"),
    ("/elsewhere/cat/0.png", "/data/train", "0.png"),
    ("D:\\train\\cat\\0.png", "D:\\train", "cat/0.png"),
])
def test_an_image_is_called_as_its_source_sees_it(path, folder, name):
    assert relative_name(path, folder) == name


@pytest.mark.parametrize("text, expected", [
    ("/home/ann/my data/train: expected a folder.", "train: expected a folder."),
    ("[Errno 13] Permission denied: '/home/ann/x.png'", "[Errno 13] Permission denied: 'x.png'"),
    ("see (/opt/licences/sd.txt), please", "see (sd.txt), please"),
    ("cache at C:\\Users\\ann\\hub, none", "cache at hub, none"),
    ("file:///home/ann/x.html", "x.html"),
    ("hf:/home/ann/table", "hf:table"),
    ("https://huggingface.co/a/b stays", "https://huggingface.co/a/b stays"),
    ("T-shirt/top and a/b/c stay", "T-shirt/top and a/b/c stay"),
    ("either / or, 1 / 2", "either / or, 1 / 2"),
])
def test_sentences_name_no_folders_of_the_machine(text, expected):
    known = ["/home/ann/my data/train", "/", "stabilityai/sd-turbo"]
    assert without_paths(text, known) == expected
