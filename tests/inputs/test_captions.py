"""A prompt of its own for each image: files, mappings, sequences, functions; from every door."""

import copy
import json
import shutil

import PIL.Image
import pytest
import torch
from torch.utils.data import ConcatDataset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dreamda_aug import AugmentedDataset, DreamDAugment, load_model
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion import expand, read_manifest
from dreamda_aug.inputs.prompts import Captions

TEXTS = {"cat/0.png": "a tabby, asleep", "cat/1.png": "a cat on a wall", "dog/0.png": "a pug"}
FAST = dict(preset="paper", steps=2, strength=0.5, noise_scale=2.0, cache=None)


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"file_name": name, "text": text}) + "\n"
                            for name, text in texts.items()))
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "train"
    for i, name in enumerate(TEXTS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(i)
        v2.functional.to_pil_image(torch.rand(3, 16, 16)).save(root / name)
    return root


@pytest.fixture
def model(sd_pipeline):
    return load_model(copy.deepcopy(sd_pipeline))


@pytest.fixture
def told(model, monkeypatch):
    """Every prompt that the model was told in generation, in order."""
    prompts, embed = [], model.embed
    monkeypatch.setattr(model, "embed",
                        lambda given: prompts.extend(filter(None, given)) or embed(given))
    return prompts


def test_jsonl_csv_and_mapping_say_the_same(tmp_path):
    csv = tmp_path / "captions.csv"
    csv.write_text("file_name,text,more\n" + "".join(f'{name},"{text}",x\n'
                                                     for name, text in TEXTS.items()))
    for source in (write_jsonl(tmp_path / "c.jsonl", TEXTS), str(csv), TEXTS):
        captions = Captions(source)
        assert [captions.text(name) for name in TEXTS] == list(TEXTS.values()) == captions.texts


def test_a_file_name_fits_the_end_of_a_path_by_whole_parts(tmp_path):
    captions = Captions({"./cat/0.png": "a", "cat\\1.png": "b"})
    assert captions.text("/data/train/cat/0.png") == "a"
    assert captions.text("C:\\train\\cat\\1.png") == "b"
    with pytest.raises(ValueError, match=r"expected a caption for 'tomcat/0.png', found .* 2 o"):
        captions.text("tomcat/0.png")


@pytest.mark.parametrize("name, text, message", [
    ("c.jsonl", '{"file_name": "a", "text": "x"}\n\n{"file_name": "./a", "text": "x"}',
     r"c\.jsonl, line 3: expected each file once, found 'a' again"),
    ("c.csv", "file,text\na,x\n", r"line 2: expected 'file_name' and 'text', found 'file'"),
    ("c.jsonl", '{"file_name": "a", "text": " "}', r"line 1: expected a text in UTF-8, found ' '"),
    ("c.csv", "file_name,text\na\n", r"line 2: expected a text in UTF-8, found None"),
    ("c.jsonl", '{"file_name": 7, "text": "x"}', r"file_name must be text, got 7"),
    ("c.txt", "", r"c\.txt: expected a \.csv or a \.jsonl file of captions"),
])
def test_damaged_files_are_refused_with_place_expected_and_found(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, ExpansionError), match=message):
        Captions(tmp_path / name)


def test_a_missing_file_and_other_texts_are_refused():
    with pytest.raises(FileNotFoundError, match="expected a file of captions, found none"):
        Captions("c.jsonl")
    with pytest.raises(ValueError, match=r"captions\('x'\): expected a text in UTF-8, found None"):
        Captions(lambda name: None).text("x")
    with pytest.raises(ValueError, match="source must be .* got 5"):
        Captions(5)


def test_files_of_one_name_in_two_folders_are_told_apart(folder, model, told, tmp_path):
    both = ConcatDataset([ImageFolder(folder),
                          ImageFolder(shutil.copytree(folder, tmp_path / "more"))])
    with pytest.raises(ValueError, match=r"'cat/0\.png' fits '.*train/cat/0\.png' and '.*more/cat"):
        AugmentedDataset(both, DreamDAugment(model, captions=TEXTS, **FAST))
    texts = {f"{root}/{name}": f"{text}, {root}"
             for root in ("train", "more") for name, text in TEXTS.items()}
    data = AugmentedDataset(both, DreamDAugment(model, captions=texts, **FAST), 1)
    data.__getitems__([6, 9])
    assert told == ["a tabby, asleep, train", "a tabby, asleep, more"]


def test_a_dataset_without_file_names_takes_a_sequence_or_a_function(model, told):
    plain = TensorDataset(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))
    for captions in (["one", "two"], lambda index: ["one", "two"][index]):
        told.clear()
        data = AugmentedDataset(plain, DreamDAugment(model, captions=captions, **FAST), 1)
        data.__getitems__([2, 3])
        assert told == ["one", "two"]
    with pytest.raises(ValueError, match="keeps no file names .* pass a list with one text per"):
        AugmentedDataset(plain, DreamDAugment(model, captions=TEXTS, **FAST))
    with pytest.raises(ValueError, match="one text for each of the 2 images, got 1"):
        AugmentedDataset(plain, DreamDAugment(model, captions=["one"], **FAST))


def test_as_a_transform_it_finds_the_file_name_in_the_sample(folder, model, told):
    image = PIL.Image.open(folder / "dog" / "0.png")
    augment = DreamDAugment(model, p=1.0, captions=TEXTS, **FAST)
    augment(image, 1)
    augment({"image": image.copy(), "label": 1, "file_name": "cat/0.png"})
    augment({"image": torch.rand(2, 3, 16, 16), "file_name": ["cat/1.png", "dog/0.png"]})
    by_hand = DreamDAugment(model, p=1.0, captions=TEXTS, labels_getter=lambda s: s[1], **FAST)
    by_hand(torch.rand(3, 16, 16), "cat/1.png")
    assert told == ["a pug", "a tabby, asleep", "a cat on a wall", "a pug", "a cat on a wall"]
    with pytest.raises(ValueError, match="the image has none: use AugmentedDataset or expand"):
        augment(torch.rand(3, 16, 16), 1)
    with pytest.raises(ValueError, match="for '.*0.png', found .* 3 other .* goes by index"):
        DreamDAugment(model, p=1.0, captions=["a", "b", "c"], **FAST)(image)


def test_expand_records_each_caption_and_refuses_to_go_on_with_others(
    folder, model, tmp_path
):
    path = write_jsonl(tmp_path / "c.jsonl", TEXTS)

    def run(captions, out="out"):
        augment = DreamDAugment(model, captions=captions, batch_size=4, **FAST)
        return expand(folder, tmp_path / out, augment, 2)

    assert run(path).whole and run(path).made == 0
    made = [line.condition for line in read_manifest(tmp_path / "out")]
    assert made == [text for text in TEXTS.values() for _ in range(2)]
    with pytest.raises(ExpansionError, match="other settings: conditions.captions"):
        run({**TEXTS, "dog/0.png": "a cup"})
    with pytest.raises(ValueError, match="expected a caption for each of the 3 images"):
        run({"cat/0.png": "a"}, "third")
