import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import PIL.Image
import pytest
import torch
from conftest import pixel_pipeline
from torch.utils.data import TensorDataset

from dreamda_aug import DreamDAugment
from dreamda_aug.backbones.unet import PixelBackbone
from dreamda_aug.expansion import ExpansionError, expand, write_report
from dreamda_aug.expansion.report import _data_uri, _histogram
from dreamda_aug.expansion.report_page import render

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
EVIL = "<b>&\"'x"


class Odd:
    """Objects to every other image of a batch."""

    name = "odd"

    def describe(self):
        return {"name": self.name}

    def prepare(self, source, backbone):
        pass

    def measure(self, batch):
        return [0.5] * len(batch.labels), [i % 2 == 1 for i in range(len(batch.labels))]


@pytest.fixture(scope="module")
def augment():
    return DreamDAugment(PixelBackbone(pixel_pipeline()), "paper", steps=2, noise_scale=8.0,
                         cache=None, batch_size=8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, augment):
    root = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for name, count in ((EVIL, 2), ("dog", 4)):
        (root / "train" / name).mkdir(parents=True)
        for i in range(count):
            pixels = torch.randint(256, (16, 16), generator=generator, dtype=torch.uint8)
            PIL.Image.fromarray(pixels.numpy()).save(root / "train" / name / f"{i}.png")
    expand(root / "train", root / "out", augment, 2, filters=[Odd()], keep_flagged=True)
    return root / "out"


@pytest.fixture(scope="module")
def page(dataset):
    return write_report(dataset).read_text()


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_page_holds_everything_it_shows_and_asks_nothing_of_a_network(page):
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "action", "data", "srcset"):
            if attributes.get(name):
                assert attributes[name].startswith(("data:image/", "#")), (tag, attributes[name])
    assert "http" not in re.sub(r"data:image/[^']*", "", page)
    assert "url(" not in page and "@import" not in page


def test_every_picture_has_a_text_alternative_and_every_control_a_label(page):
    found = Elements(page).found
    images = [a for tag, a in found if tag == "img" and a.get("src")]
    assert len(images) == 6 * 3
    assert sum(a["alt"].startswith("seed image ") for a in images) == 6
    assert all(a["alt"] for a in images)
    assert sum(tag == "select" for tag, _ in found) == sum(tag == "label" for tag, _ in found) == 2
    assert all(a.get("aria-label") for tag, a in found if tag == "svg")
    assert ("html", {"lang": "en"}) in found
    ids = [a["id"] for _, a in found if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["aria-labelledby"] in ids for _, a in found if "aria-labelledby" in a)


def test_names_from_outside_are_escaped(page):
    assert "<b>" not in page and "&lt;b&gt;&amp;&quot;&#x27;x" in page


def test_without_seed_images_the_page_says_so(augment, tmp_path):
    expand(TensorDataset(torch.rand(2, 1, 16, 16), torch.tensor([0, 1])), tmp_path / "out",
           augment, 1)
    text = write_report(tmp_path / "out").read_text()
    assert "made from a dataset object: seed images are not shown" in text
    assert text.count("<img src=") == 2


def test_seed_images_that_moved_can_be_shown_from_where_they_are(dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "out")
    facts = json.loads((copy / "plan.json").read_text())
    spec = facts["where"]["source"]["spec"]
    facts["where"]["source"]["spec"] = str(tmp_path / "gone")
    (copy / "plan.json").write_text(json.dumps(facts))
    assert "The seed images could not be opened" in write_report(copy).read_text()
    out = write_report(copy, tmp_path / "page.html", source=spec)
    assert "could not be opened" not in out.read_text() and out == tmp_path / "page.html"


def test_metrics_are_shown_once_computed(dataset, augment, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "out")
    text = write_report(copy, metrics=True).read_text()
    assert "Compared with the real images" in text and "<th scope='row'>fid</th>" in text
    assert json.loads((copy / "metrics.json").read_text())["synthetic_count"] == 12
    expand(TensorDataset(torch.rand(2, 1, 16, 16), torch.tensor([0, 1])), tmp_path / "shards",
           augment, 1, image_format="webdataset")
    with pytest.raises(ValueError, match="metrics need .* class folders"):
        write_report(tmp_path / "shards", metrics=True)


def test_a_folder_that_is_no_dataset_is_refused(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected an expanded dataset, found none"):
        write_report(tmp_path)
    copy = shutil.copytree(dataset, tmp_path / "out")
    (copy / "plan.json").write_text("[]")
    with pytest.raises(ExpansionError, match="plan.json: expected a JSON object"):
        write_report(copy)
    (copy / "plan.json").write_text("{}")
    with pytest.raises(ExpansionError, match="plan.json: expected the facts of an expansion"):
        write_report(copy)


def test_histograms_count_every_value_once():
    histogram = _histogram("x", [0.0, 0.5, 0.5, 1.0])
    assert sum(histogram.counts) == 4 and histogram.counts[0] == histogram.counts[-1] == 1
    assert (histogram.low, histogram.high, histogram.median, histogram.mean) == (0, 1, 0.5, 0.5)
    assert _histogram("x", [0.3, 0.3]).counts[0] == 2


def test_pictures_are_small_whatever_the_image():
    assert _data_uri(PIL.Image.new("RGBA", (2000, 1000))).startswith("data:image/jpeg")
    assert len(_data_uri(PIL.Image.new("RGB", (2000, 1000)))) < 20_000
    deep = PIL.Image.fromarray(torch.randint(60000, (20, 20)).to(torch.uint16).numpy())
    assert _data_uri(deep).startswith("data:image/png")
    flat = PIL.Image.fromarray(torch.full((4, 4), 300).to(torch.uint16).numpy())
    assert _data_uri(flat).startswith("data:image/png")


def test_a_page_without_pictures_is_a_page():
    text = render(title="none", total=0, warnings=[], rows=[], histograms=[],
                  class_table=[("class",)], metrics=[], settings=[])
    assert "0 images" in text


USE = """
<script>
const out = {}, count = () => document.querySelectorAll('.synthetic').length
  - document.querySelectorAll('.class[hidden] .synthetic, .row[hidden] .synthetic, '
    + '.synthetic[hidden]').length;
function choose(id, value) {
  get(id).value = value;
  get(id).dispatchEvent(new Event('change'));
}
const key = name => get('large').dispatchEvent(new KeyboardEvent('keydown', {key: name}));
out.all = count();
choose('class', 'dog'); out.dog = count(); out.said = get('count').textContent;
choose('class', ''); choose('flag', '*'); out.flagged = count();
choose('flag', '-'); out.clean = count(); choose('flag', '');
const buttons = [...document.querySelectorAll('button.open')];
buttons[0].focus(); out.focus = document.activeElement === buttons[0];
buttons[0].click(); out.open = get('large').open; out.first = get('large-caption').textContent;
key('ArrowRight'); out.second = get('large-caption').textContent;
key('ArrowLeft'); key('ArrowLeft'); out.back = get('large-caption').textContent;
get('close').click(); out.closed = !get('large').open;
setTimeout(() => { out.returned = document.activeElement === buttons[0];
  document.title = 'RESULT' + JSON.stringify(out) + 'END'; }, 50);
</script></body>
"""


def chromium(tmp_path, *arguments) -> str:
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_filters_enlarging_and_keys_work_in_a_browser(page, tmp_path):
    (tmp_path / "page.html").write_text(page.replace("</body>", USE))
    dom = chromium(tmp_path, "--virtual-time-budget=2000", "--dump-dom",
                   f"file://{tmp_path / 'page.html'}")
    found = re.search(r"RESULT(\{.*?\})END", dom)
    assert found, dom[:500]
    result = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert (result["all"], result["dog"], result["said"]) == (12, 8, "8 synthetic images shown")
    assert (result["flagged"], result["clean"]) == (6, 6)
    assert result["focus"] and result["open"] and result["closed"] and result["returned"]
    assert result["first"].startswith("seed image ") and result["second"].startswith("replica 0")
    assert result["back"] == result["first"]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_draws_the_page(page, dataset, tmp_path):
    shot = tmp_path / "shot.png"
    chromium(tmp_path, "--window-size=900,1600", f"--screenshot={shot}",
             f"file://{dataset / 'report.html'}")
    with PIL.Image.open(shot) as image:
        assert image.size == (900, 1600)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50
