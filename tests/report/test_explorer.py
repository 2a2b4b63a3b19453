"""The page with sliders: what it measures, what it says, and that it works in a browser."""


import pytest
import torch
from expansion.folders import write_images
from pipelines import pixel_pipeline
from report.browser import CHROMIUM, run_in_browser
from report.test_report import Elements

from dreamda_aug import Synthesizer
from dreamda_aug.cli.main import main
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.models.unet import UNetModel
from dreamda_aug.report.explorer import explore, write_exploration

EVIL = "<b>&\"'x"
GRIDS = dict(strengths=(0.5, 1.0), replays=(1.0, 0.5), noise_scales=(0.0, 4.0))


def noise(classes=2):
    """Dark and bright noise, by class."""
    labels = [i % classes for i in range(8)]
    images = [0.5 * label + 0.5 * torch.rand(
        1, 16, 16, generator=torch.Generator().manual_seed(i)) for i, label in enumerate(labels)]
    return open_seed_images(images, labels=labels, class_names=[EVIL, "dog"][:classes])


@pytest.fixture(scope="module")
def synthesizer():
    return Synthesizer(UNetModel(pixel_pipeline(), "tiny"), steps=8, cache=None)


def run(synthesizer, images=None, **options):
    return explore(images or noise(), synthesizer,
                   **{"images": 3, "steps": 4, **GRIDS, **options})


@pytest.fixture(scope="module")
def exploration(synthesizer):
    return run(synthesizer, command=["dreamda", "expand", "/home/me/my train", "--out", "o"],
               arguments={"model": "a/b", "lora": "/home/me/adapted"})


@pytest.fixture(scope="module")
def page(exploration, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "explore.html"
    write_exploration(exploration, path)
    return path.read_text()


def test_every_position_has_its_pictures_figures_and_lines(exploration):
    assert len(exploration.choices) == 8 and len(exploration.seeds) == 3
    assert {name for _, name in exploration.seeds} == {EVIL, "dog"}
    of = {(c.point.strength, c.point.replay, c.point.noise_scale): c
          for c in exploration.choices}
    still, wild = of[0.5, 1.0, 0.0], of[1.0, 0.5, 4.0]
    assert still.point.distance < 1e-3 < wild.point.distance
    assert still.point.agreement == 1 and still.point.images == 6
    assert len(wild.pictures) == 3 and all(len(each) == 2 for each in wild.pictures)
    # nothing moves at replay 1 without noise: the replicas are the seed images
    for (data, _), replicas in zip(exploration.seeds, still.pictures):
        assert set(replicas) == {data}
    command, python = exploration.lines(wild.point)
    # of paths of this machine the last part stands there
    assert command == ("dreamda expand 'my train' --out o --set strength=1 "
                            "--set replay=0.5 --set noise_scale=4")
    assert python == ("Synthesizer(model='a/b', lora='adapted', strength=1, replay=0.5, "
                      "noise_scale=4)")
    assert eval(python, {"Synthesizer": dict})["noise_scale"] == 4


def test_one_class_is_measured_without_a_judge(synthesizer, tmp_path):
    found = run(synthesizer, noise(classes=1), strengths=(0.5,))
    assert not found.judge and found.best == 0
    write_exploration(found, tmp_path / "page.html")
    assert "Labels were not judged" in (tmp_path / "page.html").read_text()


def test_the_page_asks_nothing_of_a_network_and_shows_names_as_they_are(page):
    assert EVIL not in page and "&lt;b&gt;" in page
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "data:image/").startswith("data:image/"), tag
    # every control has a name
    labels = {a["for"] for tag, a in Elements(page).found if tag == "label"}
    inputs = [a["id"] for tag, a in Elements(page).found if tag in ("input", "textarea")]
    assert set(inputs) <= labels and len(inputs) == 5


USE = """<script>
const out = {}, slider = get('strength'), other = get('noise_scale');
const state = () => ({
  strength: get('strength-value').textContent, command: get('command').value,
  distance: get('distance').textContent, agreement: get('agreement').textContent,
  shown: choices.filter(choice => !choice.hidden).length,
  pressed: cells.filter(cell => cell.getAttribute('aria-pressed') === 'true').length,
  said: slider.getAttribute('aria-valuetext'),
});
out.first = state();
const move = (input, value) => { input.value = value; input.dispatchEvent(new Event('input')); };
move(slider, 0); move(get('replay'), 0); move(other, 0);
out.mildest = state();
move(other, 1);
out.noisy = state();
out.overview = get('overview-noise').textContent;
cells[3].focus(); cells[3].click();
out.cell = state();
out.focus = document.activeElement === cells[3];
get('best').click();
out.best = state();
document.querySelector('.copy').click();
setTimeout(() => { out.copied = get('copied').textContent;
  out.selected = get('command').selectionEnd === get('command').value.length;
  document.title = 'RESULT' + JSON.stringify(out) + 'END'; }, 300);
</script></body>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_sliders_cells_and_lines_work_in_a_browser(page, exploration, tmp_path):
    result = run_in_browser(page.replace("</body>", USE), tmp_path, 3000)
    best, _ = exploration.lines(exploration.choices[exploration.best].point)
    for name in ("first", "best"):
        assert result[name]["command"] == best
    for name in ("first", "mildest", "noisy", "cell", "best"):
        assert result[name]["shown"] == result[name]["pressed"] == 1
        assert result[name]["said"] == result[name]["strength"]
    assert "strength=0.5" in result["mildest"]["command"]
    assert result["mildest"]["distance"] == "0.000" and result["mildest"]["agreement"] == "100 %"
    assert result["noisy"]["command"].endswith("noise_scale=4") and result["overview"] == "4"
    assert float(result["noisy"]["distance"]) > 0
    assert "strength=1 --set replay=0.5" in result["cell"]["command"] and result["focus"]
    assert result["selected"] and result["copied"] in ("Copied.", "Press Ctrl+C to copy.")


def test_the_command_writes_the_page_and_repeats_what_it_was_given(tmp_path, capsys):
    pixel_pipeline().save_pretrained(tmp_path / "model")
    write_images(tmp_path / "train", {"cat": 2, "dog": 2})
    arguments = ["explore", str(tmp_path / "train"), "--model", str(tmp_path / "model"),
                 "--out", str(tmp_path / "page.html"), "--strengths", "0.5", "--replays", "1",
                 "--noise-scales", "0", "2", "--steps", "2", "--images", "2"]
    assert main(arguments) == 0
    assert f"wrote {tmp_path / 'page.html'}" in capsys.readouterr().out
    text = (tmp_path / "page.html").read_text()
    assert "dreamda expand train --out train_synthetic --model model --set strength=0.5" in text
    assert "Synthesizer(model=&#39;model&#39;, " in text and str(tmp_path) not in text
    assert ">cat<" in text and "take 10" in text
