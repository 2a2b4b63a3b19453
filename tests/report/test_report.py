import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from expansion.folders import write_images
from pipelines import pixel_pipeline
from report.browser import CHROMIUM, run_in_browser
from report.lines import write_dataset
from torch.utils.data import TensorDataset

from dreamda_aug import DreamDAugment
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion import Filter, expand
from dreamda_aug.models.unet import UNetModel
from dreamda_aug.report import write_report

EVIL = "<b>&\"'x"


class Odd(Filter):
    """Objects to every other image of a batch."""

    name = "odd"

    def measure(self, batch):
        return [0.5] * len(batch.labels), [i % 2 == 1 for i in range(len(batch.labels))]


@pytest.fixture(scope="module")
def augment():
    return DreamDAugment(UNetModel(pixel_pipeline()), "paper", steps=2, noise_scale=8.0,
                         cache=None, batch_size=8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, augment):
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", {EVIL: 2, "dog": 4})
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
    text = re.sub(r"data:image/[^\"]*", "", page)
    assert "http:" not in text and "https:" not in text
    assert "url(" not in page and "@import" not in page


def test_every_picture_has_a_text_alternative_and_every_control_a_label(page):
    found = Elements(page).found
    images = [a for tag, a in found if tag == "img" and a.get("src")]
    # six seed images with two replicas each, and the worst twelve behind their seed images, twice
    assert len(images) == 6 * 3 + 2 * 12 * 2
    assert sum(a["alt"].startswith("seed image ") for a in images) == 6 + 2 * 12
    assert all(a["alt"] for a in images)
    assert sum(tag == "select" for tag, _ in found) == sum(tag == "label" for tag, _ in found) == 3
    assert all(a.get("aria-label") for tag, a in found if tag == "svg")
    assert ("html", {"lang": "en"}) in found
    ids = [a["id"] for _, a in found if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["aria-labelledby"] in ids for _, a in found if "aria-labelledby" in a)


def test_without_seed_images_the_page_says_so(augment, tmp_path):
    expand(TensorDataset(torch.rand(2, 1, 16, 16), torch.tensor([0, 1])), tmp_path / "out",
           augment, 1)
    text = write_report(tmp_path / "out").read_text()
    assert "made from a dataset object: seed images are not shown" in text
    pictures = [a for tag, a in Elements(text).found if tag == "img" and a.get("src")]
    assert len(pictures) == 2 + 2 * 2


def test_seed_images_that_moved_can_be_shown_from_where_they_are(dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "out")
    spec = dataset.parent / "train"
    assert "The seed images could not be opened" in write_report(copy).read_text()
    out = write_report(copy, tmp_path / "page.html", source=spec)
    assert "could not be opened" not in out.read_text() and out == tmp_path / "page.html"


def test_metrics_are_shown_once_computed(dataset, augment, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "out")
    with pytest.raises(ValueError, match="metrics need the seed images.*give source"):
        write_report(copy, metrics=True)
    text = write_report(copy, source=dataset.parent / "train", metrics=True).read_text()
    assert "Compared with the real images" in text and '<th scope="row">fid</th>' in text
    assert json.loads((copy / "metrics.json").read_text())["synthetic_count"] == 12
    expand(TensorDataset(torch.rand(2, 1, 16, 16), torch.tensor([0, 1])), tmp_path / "shards",
           augment, 1, image_format="webdataset")
    with pytest.raises(ValueError, match="metrics need .* class folders"):
        write_report(tmp_path / "shards", metrics=True)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected an expanded dataset, found none"):
        write_report(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ExpansionError, match="plan.json: expected the metadata of an expansion"):
        write_report(tmp_path)


def test_a_page_without_pictures_is_a_page(tmp_path):
    root = write_dataset(tmp_path / "out", [], classes={"cat": 1}, skipped=["flagged: odd"])
    text = write_report(root).read_text()
    assert "0 images" in text and "None" not in text.split("Settings</h2>")[0]


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
const values = () => [...document.querySelectorAll('.class')].map(section =>
  [...section.querySelectorAll('.group')].map(group =>
    [...group.querySelectorAll('.synthetic')].map(item => Number(item.dataset.distance))));
const starts = () => [...document.querySelectorAll('#sheets .group')].map(group =>
  group.querySelector('li').className);
out.unsorted = values();
get('order').selectedIndex = 1; get('order').dispatchEvent(new Event('change'));
out.near = values();
get('order').selectedIndex = 2; get('order').dispatchEvent(new Event('change'));
out.far = values(); out.starts = starts();
choose('order', ''); out.again = values();
out.stops = [...document.querySelectorAll('.sheet')].map(sheet =>
  sheet.querySelectorAll('button.open[tabindex="0"]').length);
const buttons = [...document.querySelectorAll('#sheets button.open')];
buttons[0].focus();
buttons[0].dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
out.walked = document.activeElement === buttons[1] && buttons[1].tabIndex === 0
  && buttons[0].tabIndex === -1;
buttons[0].focus(); out.focus = document.activeElement === buttons[0];
buttons[0].click(); out.open = get('large').open; out.first = get('large-caption').textContent;
out.alone = get('large-seed').hidden;
key('ArrowRight'); out.second = get('large-caption').textContent;
out.compared = get('large-seed-image').alt;
key('ArrowLeft'); key('ArrowLeft'); out.back = get('large-caption').textContent;
get('close').click(); out.closed = !get('large').open;
setTimeout(() => { out.returned = document.activeElement === buttons[0];
  document.title = 'RESULT' + JSON.stringify(out) + 'END'; }, 50);
</script></body>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_filters_enlarging_and_keys_work_in_a_browser(page, tmp_path):
    result = run_in_browser(page.replace("</body>", USE), tmp_path, 2000)
    assert (result["all"], result["dog"], result["said"]) == (12, 8, "8 synthetic images shown")
    assert (result["flagged"], result["clean"]) == (6, 6)
    assert result["focus"] and result["open"] and result["closed"] and result["returned"]
    assert result["first"].startswith("seed image ") and result["second"].startswith("replica 0")
    assert result["back"] == result["first"] == result["compared"] and result["alone"]
    assert result["walked"] and set(result["stops"]) == {1}
    for name, worst in (("near", min), ("far", max)):
        for groups, before in zip(result[name], result["unsorted"], strict=True):
            sign = 1 if worst is min else -1
            expected = sorted((sorted(group, key=lambda value: sign * value) for group in before),
                              key=lambda group: sign * group[0])
            assert groups == expected
    assert result["near"] != result["far"] and result["again"] == result["unsorted"]
    assert set(result["starts"]) == {"seed"}


def test_the_pages_policy_names_the_script_that_stands_in_it(page):
    policy = next(a["content"] for tag, a in Elements(page).found if "http-equiv" in a)
    script = re.search("<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
