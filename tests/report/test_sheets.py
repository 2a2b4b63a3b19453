"""The page over datasets that no diffusion model made: hostile names, places, what is shown."""

import json
import re

import PIL.Image
import pytest
from report.hostile import HOSTILE
from report.lines import line, write_dataset
from report.test_report import Elements

from dreamda_aug.report.contents import write_report


def hostile_dataset(root, names):
    """One class for each name, which is prompt, seed path, flag and event as well."""
    lines = [
        line(number, replica, name, 0.1 + number / 100, label=number, condition=name,
             seed_path=name, flags=[name] * replica, events=[name] * replica,
             scores={"label": 0.5, name: 0.5})
        for number, name in enumerate(names) for replica in range(2)
    ]
    return write_dataset(
        root, lines, filters=[{"name": name, "about": name} for name in names[:3]],
        settings={name: name for name in names},
        paths={"model": names[0]}, license=names[1],
        source={"images": len(names), "classes": dict.fromkeys(names, 1), "problems": names})


def shape(text):
    """Tags and names of attributes, without what follows from the order of names."""
    return [(tag, sorted(attributes)) for tag, attributes in Elements(text).found]


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    root = hostile_dataset(tmp_path_factory.mktemp("hostile") / "out", HOSTILE)
    return write_report(root).read_bytes().decode()


def test_hostile_names_captions_and_licences_change_nothing_but_text(hostile_page, tmp_path):
    tame = hostile_dataset(tmp_path / "out", [f"name {i}" for i in range(len(HOSTILE))])
    assert shape(hostile_page) == shape(write_report(tame).read_text())
    handlers = [name for _, attributes in Elements(hostile_page).found for name in attributes
                if name.startswith("on")]
    assert not handlers and hostile_page.count("<script") == 1


def test_the_page_names_no_path_of_the_machine(tmp_path):
    folder = tmp_path / "my data" / "train"
    (folder / "cat").mkdir(parents=True)
    for name in ("0.png", "1.png"):
        PIL.Image.new("L", (8, 8), 90).save(folder / "cat" / name)
    listing = folder / "list.jsonl"
    listing.write_text("".join(json.dumps({"path": path, "label": "cat"}) + "\n" for path in (
        "cat/0.png", str(folder / "cat" / "1.png"))))
    paths = ["cat/0.png", "cat/1.png"]
    lines = [line(number, replica, seed_path=path) for number, path in enumerate(paths)
             for replica in range(2)]
    data = str(tmp_path / "torch data")
    places = {"source": {"spec": str(listing), "split": None, "data_root": data},
              "model": str(tmp_path / "a model")}
    root = write_dataset(tmp_path / "out", lines, paths=places,
                         license=f"see {tmp_path}/LICENSE")
    page = write_report(root).read_text()
    assert "seed image cat/1.png, cat" in page and page.count("not at hand") == 0
    assert "<td>a model</td>" in page and "<td>see LICENSE</td>" in page
    listing.unlink()
    without = write_report(root).read_text()
    assert "could not be opened, and are not shown: list.jsonl: expected a folder" in without
    for text in (page, without):
        text = re.sub('data:image/[^"]*', "", text)
        assert str(tmp_path) not in text and not re.search(r"(?<![\w<])/(tmp|home|root)/", text)


def test_seed_images_that_are_gone_are_marked(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    PIL.Image.new("L", (8, 8), 90).save(tmp_path / "train" / "cat" / "0.png")
    (tmp_path / "train" / "cat" / "1.png").write_bytes(b"no image")
    lines = [line(number) for number in range(3)]
    paths = {"source": {"spec": str(tmp_path / "train"), "split": None, "data_root": None}}
    page = write_report(write_dataset(tmp_path / "out", lines, paths=paths)).read_text()
    marks = [a for tag, a in Elements(page).found if tag == "span" and a.get("class") == "missing"]
    # two of three on the sheet, and in both lists of the worst
    assert len(marks) == 2 * 3 and all(mark["role"] == "img" for mark in marks)


def test_classes_stand_in_the_order_of_the_source_and_worst_images_come_from_all(tmp_path):
    lines = [line(seed, 0, "zebra" if seed < 3 else "ant", 0.1 + seed / 1000)
             for seed in range(30)]
    root = write_dataset(tmp_path / "out", lines, classes={"zebra": 3, "ant": 27})
    found = Elements(write_report(root).read_text()).found
    assert [a["data-class"] for _, a in found if "data-class" in a] == ["zebra", "ant"]
    poor = [a["data-distance"] for _, a in found if a.get("class") == "poor"]
    assert poor[:12] == [f"{0.1 + seed / 1000:.4f}" for seed in range(12)]
    assert poor[12:] == [f"{0.1 + seed / 1000:.4f}" for seed in range(29, 17, -1)]
