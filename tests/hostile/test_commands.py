"""Every command on damaged and hostile files: one clear line with the file's name, or the work."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
from expansion.folders import content, write_images
from pipelines import pixel_pipeline

from dreamda_aug.cli.main import main
from dreamda_aug.models.unet import UNetModel

QUICK = ["--preset", "paper", "--set", "steps=25", "--batch-size", "4"]
FEW = ["--preset", "paper", "--batch-size", "4", "--set", "steps=2", "--set", "strength=0.5"]


def png(width, height, data=b""):
    """A PNG file of 8-bit grey whose header says this size."""
    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data))
            + chunk(b"IEND", b""))


GOOD = png(4, 4, b"\0\1\2\3\4" * 4)
IMAGES = {
    "empty": b"", "cut": GOOD[: len(GOOD) // 2], "no columns": png(0, 4),
    "bomb": png(100_000, 100_000), "a tiff's head": b"II*\0\x08\0\0\0\xff\xff" + bytes(30),
}
JSON = {"half": b'{"a": 1', "binary": bytes(range(256)), "list": b"[1, 2]"}


@pytest.fixture(autouse=True, scope="module")
def tiny():
    """Whatever is loaded, a tiny model comes."""
    model = UNetModel(pixel_pipeline())
    model.name = "bundled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamda_aug.models.ModelSpec.load", lambda spec: model)
        yield


def run(capsys, *arguments):
    """Status, output and lines of errors of a command; warnings are left out."""
    capsys.readouterr()
    try:
        status = main([str(each) for each in arguments])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, [line for line in err.splitlines() if not line.startswith("warning:")]


def is_refused(capsys, name, *arguments):
    status, _, lines = run(capsys, *arguments)
    assert status == 2 and len(lines) == 1, (status, lines)
    assert str(name) in lines[0] and lines[0].startswith("dreamda "), lines[0]


@pytest.fixture
def train(tmp_path):
    return write_images(tmp_path / "train", {"cat": 2, "dog": 2})


def test_a_broken_image_is_named_by_preview_and_calibrate(train, tmp_path, capsys):
    (train / "cat" / "1.png").write_bytes(IMAGES["cut"])
    for command in ("preview", "calibrate"):
        is_refused(capsys, train / "cat" / "1.png", command, train, "--out", tmp_path / "x.png",
                   *QUICK)
    assert not (tmp_path / "x.png").exists()


def test_what_is_no_image_is_left_out_by_expand_and_counted(train, tmp_path, capsys):
    for name, data in IMAGES.items():
        (train / name).write_bytes(data)
    places = ["cat/0.png", "/dev/zero", "..", "d/" * 3000, "cat/0.png/x", *IMAGES]
    (train / "list.jsonl").write_text("".join(
        json.dumps({"path": place, "label": "a"}) + "\n" for place in places))
    status, out, lines = run(capsys, "expand", train / "list.jsonl", "--out", tmp_path / "out",
                             "--expansion-ratio", "1", *FEW)
    assert status == 0 and "1 synthetic images, 9 left out" in out and not lines, lines
    entries = map(json.loads, (tmp_path / "out" / "skipped.jsonl").read_text().splitlines())
    reasons = {entry["seed_path"].rpartition("/")[2]: entry["skipped"] for entry in entries}
    for name in IMAGES:
        assert reasons[name].startswith(
            "larger than 67,108,864 pixels" if name == "bomb" else "unreadable (")


@pytest.fixture(scope="module", params=["folder", "webdataset"])
def finished(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    train = write_images(root / "train", {"cat": 2, "dog": 2})
    command = ["expand", str(train), "--out", str(root / "out"), "--expansion-ratio", "2",
               "--image-format", request.param, *FEW]
    assert main(command) == 0
    return root, command[6:]


@pytest.fixture
def made(finished, train, tmp_path):
    """A finished dataset beside its seed images."""
    return shutil.copytree(finished[0] / "out", tmp_path / "out")


@pytest.fixture
def again(finished, train, made):
    """The command that goes on with it."""
    return ["expand", train, "--out", made, "--expansion-ratio", "2", *finished[1]]


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize("name", ["plan.json", "manifest.jsonl", "skipped.jsonl", "metrics.json"])
def test_a_damaged_record_is_named_or_made_anew(made, again, capsys, name, kind):
    expected = content(made)
    (made / name).write_bytes(JSON[kind])
    is_refused(capsys, name, "report", made)
    if name in ("plan.json", "manifest.jsonl"):
        is_refused(capsys, made, "regenerate", made, "00000000_0000")
    if name == "plan.json":
        is_refused(capsys, name, *again)
    elif name != "metrics.json":
        assert run(capsys, *again)[0] == 0
        assert {n: data for n, data in content(made).items() if n != "report.html"} == expected


@pytest.mark.parametrize("kind", ["text", "cut"])
def test_a_damaged_image_of_a_dataset_is_named(made, capsys, kind):
    path = next(path for path in sorted(made.rglob("*")) if path.suffix in (".png", ".tar"))
    path.write_bytes(b"text" * 300 if kind == "text" else path.read_bytes()[:40])
    is_refused(capsys, path, "report", made)


@pytest.mark.parametrize("name", ["out", "out/plan.json"])
def test_a_file_where_a_folder_should_be_is_named(train, tmp_path, capsys, name):
    (tmp_path / "out").write_bytes(b"")
    for command in (["expand", train, "--out", tmp_path / name, *FEW],
                    ["report", tmp_path / name], ["regenerate", tmp_path / name, "x"],
                    ["preview", tmp_path / name, "--out", tmp_path / "x.png"],
                    ["metrics", tmp_path / name, tmp_path / name]):
        is_refused(capsys, tmp_path / "out", *command)


NAMES = ["manifest.jsonl", "plan.json", "report.html", "README.md", "skipped.jsonl",
         "SHA256SUMS", "metadata.jsonl", "Manifest.JSONL", "nul", "CON.txt", "shard-000000.tar",
         "a b", "..b", "cat_2", ".dreamda"]


def test_classes_called_like_our_files_lose_nothing(tmp_path, capsys):
    rows = "".join(f"{i}.png,{name}\n" for i, name in enumerate(NAMES))
    for i in range(len(NAMES)):
        PIL.Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    out = tmp_path / "out"
    command = ["expand", tmp_path / "list.csv", "--out", out, "--expansion-ratio", "2", *FEW]
    assert run(capsys, *command)[0] == 0
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert {line["class_name"] for line in lines} == set(NAMES)
    assert len({line["file"].casefold() for line in lines}) == 2 * len(NAMES)
    assert all((out / line["file"]).is_file() for line in lines)
    before = content(out)
    assert run(capsys, *command)[0] == 0 and content(out) == before
    status, _, lines = run(capsys, "report", out)
    assert status == 0, lines


def test_a_byte_order_mark_is_no_part_of_a_name(train, tmp_path, capsys):
    path = train / "list.csv"
    command = ["expand", path, "--out", tmp_path / "out", "--expansion-ratio", "1", *FEW]
    path.write_text("path,label\ncat/0.png,cat\n", "utf-16")
    is_refused(capsys, path, *command)
    path.write_text("path,label\ncat/0.png,cat\n", "utf-8-sig")
    assert "1 synthetic images" in run(capsys, *command)[1]


def test_a_list_names_no_place_of_this_machine(train, tmp_path, capsys):
    """Absolute paths in a list: neither in the records nor in an image."""
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "list.csv").write_text(
        f"path,label\n{train}/cat/0.png,cat\n{train}/dog/0.png,dog\n{train}/cat/0.png,cat\n")
    out = tmp_path / "out"
    command = ["expand", lists / "list.csv", "--out", out, "--expansion-ratio", "1", *FEW]
    assert run(capsys, *command)[0] == 0
    assert not any(str(tmp_path).encode() in data for data in content(out).values())
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["seed_path"] for line in lines] == ["cat/0.png", "dog/0.png"]
    assert run(capsys, "regenerate", out, lines[1]["id"])[1].strip().endswith("stored image")
    # together, dataset and seed images may move
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(out, moved / "out")
    is_refused(capsys, "lists/list.csv", "regenerate", moved / "out", lines[1]["id"])
    status, out, _ = run(capsys, "regenerate", moved / "out", lines[1]["id"], "--source",
                         lists / "list.csv")
    assert status == 0 and "equal to" in out


def test_what_shares_no_folder_with_the_dataset_is_asked_for(train, made, capsys):
    plan = json.loads((made / "plan.json").read_text())
    plan["paths"]["source"]["spec"] = "?/train"
    (made / "plan.json").write_text(json.dumps(plan))
    is_refused(capsys, "give source (--source)", "regenerate", made, "00000000_0000")
    assert run(capsys, "regenerate", made, "00000000_0000", "--source", train)[0] == 0
    plan["paths"]["model"] = "?/model"
    (made / "plan.json").write_text(json.dumps(plan))
    is_refused(capsys, "give model (--model)", "regenerate", made, "00000000_0000",
               "--source", train)
    status, out, _ = run(capsys, "regenerate", made, "00000000_0000", "--source", train,
                         "--model", "anything")
    assert status == 0 and "equal to" in out


def test_a_closed_output_is_written_to_in_vain():
    code = "import sys; from dreamda_aug.cli.main import main; sys.exit(main(['--version']))"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE,
                          preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [["--help"], ["info"]])
def test_a_closed_pipe_ends_a_command_quietly(arguments):
    code = "import sys; from dreamda_aug.cli.main import main; sys.exit(main(sys.argv[1:]))"
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=closed,
                              stderr=subprocess.PIPE, text=True)
    # argparse itself drops what it cannot print
    assert done.returncode in ((0, 141) if "--help" in arguments else (141,)) and not done.stderr


@pytest.mark.parametrize("name, command", [
    ("c.csv", "expand {train} --out {out} --captions {path}"),
    ("c.jsonl", "expand {train} --out {out} --captions {path}"),
    ("c.pt", "expand {train} --out {out} --filter label={path}"),
    ("c.onnx", "expand {train} --out {out} --filter label={path}"),
    ("c.safetensors", "expand {train} --out {out} --filter label=resnet18:{path}"),
    ("d.safetensors", "metrics {train} {train} --classifier resnet18:{path}"),
    ("i.pt", "metrics {train} {train} --inception {path}"),
    ("c.txt", "expand {train} --out {out} --classes {path}"),
])
@pytest.mark.parametrize("is_fifo", [False, True], ids=["binary", "FIFO"])
@pytest.mark.timeout(60)
def test_a_damaged_file_that_is_given_beside_the_images_is_named(
    train, tmp_path, capsys, name, command, is_fifo
):
    if name == "c.onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / name
    os.mkfifo(path) if is_fifo else path.write_bytes(JSON["binary"])
    places = {"train": train, "out": tmp_path / "out", "path": path}
    is_refused(capsys, path, *(word.format(**places) for word in command.split()))


WRONG = [
    ["report", "{made}", "--out", "{tmp}/no/x.html"],
    ["regenerate", "{made}", "00000000_0000", "--out", "{tmp}"],
    ["regenerate", "{made}", "00000000_0000", "--source", "bundled"],
    ["expand", "{train}", "--out", "/dev/null"], ["expand", "{train}", "--out", "{train}/cat/x"],
    ["expand", "{train}", "--out", "{tmp}/" + "x" * 300], ["expand", "hf:", "--out", "{tmp}/o"],
    ["preview", "{train}", "--out", "{tmp}/x.no"],
    ["calibrate", "{train}", "--out", "{tmp}/no/x.png"], ["metrics", "{train}", "{tmp}/no"],
]


@pytest.mark.parametrize("finished", ["folder"], indirect=True)
@pytest.mark.parametrize("arguments", WRONG, ids=lambda words: " ".join(words)[:70])
def test_wrong_arguments_end_in_one_clear_line(
    made, train, tmp_path, capsys, monkeypatch, arguments
):
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    places = {"made": made, "train": train, "tmp": tmp_path}
    status, out, lines = run(capsys, *(word.format(**places) for word in arguments))
    assert status == 2 and len(lines) == 1 and lines[0].startswith("dreamda "), (status, lines)
    assert len(lines[0]) > 25 and not out
    left = {name: data for name, data in content(tmp_path).items() if "default_cache" not in name}
    assert left == before
