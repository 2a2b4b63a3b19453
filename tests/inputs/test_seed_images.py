"""Whatever a user hands over as one sequence of images."""

import io
import json
import sys

import PIL.Image
import pytest
import torch
from PIL.PngImagePlugin import PngInfo
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder

from dreamda_aug.errors import ExpansionError
from dreamda_aug.inputs.seed_images import open_seed_images


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "b/deep/1.PNG", "a/10.jpg", "a/9.jpg"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (4, 4)).save(path)
    (tmp_path / "train" / "a" / "notes.txt").write_text("")
    return tmp_path / "train"


def test_a_folder_lists_what_image_folder_lists_in_the_same_order(folder):
    images, reference = open_seed_images(folder), ImageFolder(folder)
    assert images.classes == images.names == reference.classes
    assert images.labels == reference.targets
    assert [str(folder / path) for path in images.paths] == [path for path, _ in reference.samples]
    assert images.root == folder and images.is_folder and not images.problems
    first = images.open(0)
    assert first.put_back(first.image) == (first.image, 0)
    assert first.pixels.values.shape == (1, 1, 4, 4)


def test_an_empty_class_keeps_its_number_and_loose_images_are_said(folder):
    (folder / "aa").mkdir()
    PIL.Image.new("L", (4, 4)).save(folder / "loose.png")
    (folder / "b" / "._2.png").touch()  # as macOS leaves them
    images = open_seed_images(folder)
    assert images.classes == ["a", "aa", "b"] and images.labels == [0, 0, 2, 2]
    assert images.problems == ["1 images beside the class folders are left out",
                               "class 'aa' has no images"]
    flat = open_seed_images(folder / "a")
    assert (flat.paths, flat.labels, flat.classes) == (["10.jpg", "9.jpg"], [], [])
    assert flat.open(0).put_back("x") == "x" and flat.is_folder
    with pytest.raises(ValueError, match="expected one sub-folder per class, or labels, found no"):
        flat.labeled()
    assert open_seed_images(folder / "a", labels=[1, 0]).classes == ["0", "1"]


def test_listing_opens_no_image_and_the_digest_follows_names_sizes_and_labels(
    folder, monkeypatch
):
    monkeypatch.setattr(PIL.Image, "open", lambda *_: pytest.fail("an image was opened"))
    digest = open_seed_images(folder).digest()
    (folder / "a" / "9.jpg").write_bytes(b"other size")
    images = open_seed_images(folder)
    assert images.size(1) == 10 and len(images.file_digest(1)) == 64
    (folder / "a" / "9.jpg").rename(folder / "a" / "8.jpg")
    assert images.file_digest(1) == ""
    assert len({digest, images.digest(), open_seed_images(folder).digest()}) == 3


def test_files_of_gigabytes_are_told_apart_by_their_pixels_and_not_hashed(folder):
    with open(folder / "b" / "2.png", "wb") as file:
        file.truncate(3_000_000_000)
    images = open_seed_images(folder)
    assert [bool(images.file_digest(images.paths.index(path))) for path in (
        "a/10.jpg", "b/2.png")] == [True, False]


def test_lists_give_paths_and_labels_and_repeated_entries_are_counted(folder):
    rows = [("b/2.png", "dog"), ("a/9.jpg", "cat"), ("b/2.png", "dog")]
    (folder / "list.csv").write_text("path,label\n" + "".join(f"{p},{c}\n" for p, c in rows))
    (folder / "list.jsonl").write_text(
        "".join(json.dumps({"file_name": p, "class": c}) + "\n" for p, c in rows))
    for name in ("list.csv", "list.jsonl"):
        images = open_seed_images(folder / name)
        assert images.classes == images.names == ["cat", "dog"] and images.labels == [1, 0]
        assert images.paths == ["b/2.png", "a/9.jpg"] and images.open(0).image.size == (4, 4)
        assert "1 images are listed more than once" in images.problems[0]
        assert images.root == folder and not images.is_folder
    named = open_seed_images(folder / "list.csv", class_names=["dog", "cat", "fox"])
    assert named.labels == [0, 1] and named.problems[1] == "class 'fox' has no images"


def test_labels_of_a_list_may_be_numbers(folder):
    (folder / "list.csv").write_text("path,label\na/9.jpg,10\nb/2.png,9\n")
    images = open_seed_images(folder / "list.csv")
    assert images.labels == [10, 9] and images.names is None and len(images.classes) == 11
    assert images.problems[-1] == "4 more classes have no images"
    names = [f"c{i}" for i in range(11)]
    assert open_seed_images(folder / "list.csv", class_names=names).classes == names
    with pytest.raises(ValueError, match="list.csv: a label must be one of the 3 classes, 0 to 2"):
        open_seed_images(folder / "list.csv", class_names=["a", "b", "c"])


@pytest.mark.parametrize("name, text, message", [
    ("x.csv", "path\na.png\n", r"line 2: expected a .* 'label' .*, found {'path': 'a.png'}"),
    ("x.csv", "path,label\na.png,1\na.png,2\n", "line 3: a.png is listed as '1' and as '2'"),
    ("x.csv", "path,label\na.png,\n", "line 2: expected .* text or an integer, .* 'label': ''}"),
    ("x.csv", "path,label\n", "the list holds no images"),
    ("x.jsonl", '{"path": 3, "label": "a"}\n', "line 1: expected a column 'path' with text,"),
    ("x.jsonl", "{\n", "line 1: expected JSON"),
    ("x.txt", "a", "expected a folder, a .csv or a .jsonl list"),
])
def test_a_bad_list_is_refused_with_file_and_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, ExpansionError), match=message) as caught:
        open_seed_images(tmp_path / name)
    assert name in str(caught.value)


def test_what_is_not_there_is_said_with_what_could_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder of class folders, a .csv"):
        open_seed_images(tmp_path / "nothing")
    with pytest.raises(ValueError, match="expected one sub-folder per class, or image files, fou"):
        open_seed_images(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="the class folders hold no image files"):
        open_seed_images(tmp_path)
    for source, message in (
            ("torchvision:Nothing", "torchvision has no dataset 'Nothing'"),
            ("torchvision:MNIST", "split of MNIST must be 'train' or 'test', got 'val'"),
            ("torchvision:Flowers102", "Flowers102 could not be opened in .*download=True"),
            (" ", "source must name a folder, .* got an empty text"),
            (iter([]), "source must be a path, a name, images or a map-style dataset, got")):
        with pytest.raises((ValueError, TypeError), match=message):
            open_seed_images(source, split="val", data_root=tmp_path)


def test_torchvision_datasets_open_by_name():
    images = open_seed_images("torchvision:FakeData", labels=None)
    assert images.open(0).image.size == (224, 224) and images.spec["spec"] == "torchvision:FakeData"
    assert len(open_seed_images("bundled")) == 200
    assert len(open_seed_images("bundled", split="test")) == 300


def test_a_dataset_gives_its_untransformed_images():
    data = FakeData(4, (1, 6, 5), num_classes=3, transform=lambda image: 1 / 0)
    images = open_seed_images(data)
    assert images.open(1).image.size == (5, 6) and len(images.labels) == 4
    assert images.paths[1] == "#1" and images.spec is images.root is None
    assert (images.size(0), images.file_digest(0)) == (-1, "")
    tensors = TensorDataset(torch.rand(3, 3, 4, 4), torch.tensor([0, 2, 2]))
    images = open_seed_images(Subset(tensors, [2, 0]))
    assert images.labels == [2, 0] and images.open(0).label == 2
    assert torch.equal(images.open(0).image, tensors[2][0])
    assert images.classes == ["0", "1", "2"] and images.problems == ["class '1' has no images"]
    assert images.names is None


def rows(*samples, **attributes):
    class Rows(Dataset):
        def __len__(self):
            return len(samples)

        def __getitem__(self, index):
            return samples[index]

    data = Rows()
    vars(data).update(attributes)
    return data


IMAGE = torch.rand(1, 4, 4)


@pytest.mark.parametrize("data, message", [
    (rows((IMAGE, 0), (IMAGE, 2), targets=[0, 2], classes=["a", "b"]),
     "one of the 2 classes, 0 to 1, got 2"),
    (rows((IMAGE, 1), targets=[0], classes=["a", "b"]),
     "sample 0 has label 1, and the list says 0"),
    (rows(), "the source holds no images"),
    (rows((IMAGE, 0), target_transform=lambda label: 1 - label, targets=[1], classes=["a", "b"]),
     "class_names must be given for a dataset whose target_transform changes labels"),
])
def test_samples_that_do_not_fit_their_dataset_are_refused_at_the_door(data, message):
    with pytest.raises(ValueError, match=message):
        open_seed_images(data)


def with_text(length):
    text, file = PngInfo(), io.BytesIO()
    text.add_text("text", "a" * length, zip=True)
    PIL.Image.new("L", (8, 8)).save(file, "png", pnginfo=text)
    return file.getvalue()


# Pillow raises an OSError, and a ValueError
@pytest.mark.parametrize("broken", [b"broken", with_text(2**21)], ids=["no image", "long text"])
def test_a_first_image_that_is_broken_is_left_to_its_turn(tmp_path, broken):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.png").write_bytes(broken)
    images = open_seed_images(ImageFolder(tmp_path))
    with pytest.raises(ValueError, match="^#0: could not be read as an image: "):
        images.read(0)


def test_labels_may_be_names_and_are_looked_at_later_if_so_asked():
    data = rows((IMAGE, "dog"), (IMAGE, "cat"), (IMAGE, "dog"))
    images = open_seed_images(data)
    assert images.classes == images.names == ["cat", "dog"] and images.labels == [1, 0, 1]
    later = open_seed_images(rows((IMAGE, 0.5), (IMAGE, "cat")), labels="later")
    assert later.names is None and later.open(1).label == "cat"
    assert later.given_labels == [0.5, "cat"]
    with pytest.raises(ValueError, match="a label must be the number of one class"):
        _ = later.labels


def test_images_in_memory_and_datasets_of_images_alone_have_the_labels_that_are_given():
    tensor = torch.rand(3, 4, 4)
    for source in (tensor, tensor[:, None], list(tensor[:, None]), rows(*tensor[:, None]),
                   rows(*((image, 9) for image in tensor[:, None]))):
        images = open_seed_images(source, labels=torch.tensor([2, 0, 2]))
        assert images.labels == [2, 0, 2] and torch.equal(images.open(2).image, tensor[2:3])
        none = open_seed_images(images, labels=None)
        assert none.labels == none.classes == []
    assert open_seed_images(tensor.numpy(), labels=None).open(0).image.shape == (4, 4)
    with pytest.raises(ValueError, match="labels must be given for images in memory"):
        open_seed_images(tensor)
    with pytest.raises(ValueError, match="labels must be one for each of the 3 images, got 1"):
        open_seed_images(tensor, labels=[1])
    with pytest.raises(ValueError, match=r"a tensor of images must have shape .* got \(4, 4\)"):
        open_seed_images(tensor[0], labels=None)
    with pytest.raises(ValueError, match="labels must be a list .*'source', 'later' or None, got"):
        open_seed_images(tensor, labels="none")


def test_a_subset_keeps_names_numbers_and_labels(folder):
    reference = ImageFolder(folder)
    for part in (open_seed_images(folder).subset([2, 0]),
                 open_seed_images(Subset(reference, [2, 0]))):
        assert part.file_names == ["b/2.png", "a/10.jpg"] and part.labels == [1, 0]
        assert part.classes == ["a", "b"]
    data = TensorDataset(torch.rand(4, 1, 4, 4), torch.tensor([0, 0, 5, 5]))
    later = open_seed_images(data, labels="later").subset([3, 1])
    assert later.labels == [5, 0] and later.paths == ["#3", "#1"]
    image, label = later.put_back(0, "other")
    assert (image, int(label)) == ("other", 5)


def test_a_draw_is_even_over_classes_and_the_same_every_time():
    images = open_seed_images(torch.rand(63, 4, 4), labels=[0] * 50 + [1] * 10 + [2] * 3)
    drawn = images.spread()
    assert sorted(drawn) == list(range(63)) and drawn == images.spread()
    assert [images.labels[i] for i in drawn[:9]] == [images.labels[i] for i in drawn[:3]] * 3
    assert {images.labels[i] for i in drawn[:3]} == {0, 1, 2}
    assert images.spread(5) == drawn[:5] and set(images.spread(among=[3, 60])) == {3, 60}
    assert len({images.labels[i] for i in images.spread(most_classes=2)}) == 2
    alone = open_seed_images(torch.rand(5, 4, 4), labels=[0, 1, 1, 2, 2])
    assert {alone.labels[i] for i in alone.spread(most_classes=2)} == {1, 2}


def test_hugging_face_tables_open_by_name(monkeypatch):
    datasets, asked = pytest.importorskip("datasets"), []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **named: asked.append(
        (args, named)) or rows((IMAGE, "dog"), (IMAGE, "cat")))
    images = open_seed_images("hf:user/pets", split="validation")
    assert asked == [(("user/pets",), {"split": "validation", "cache_dir": None})]
    assert images.classes == ["cat", "dog"] and images.labels == [1, 0]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="need an extra package"):
        open_seed_images("hf:user/pets")
