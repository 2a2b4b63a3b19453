import socket
from collections import Counter

import pytest
from huggingface_hub import DatasetCard
from report.hostile import HOSTILE

from dreamda_aug.expansion.card import Stats, dataset_card, license_of
from dreamda_aug.models.load import BUNDLED

NOT_STATED = "not stated where the model lies"


def metadata(**changes):
    paths = {"source": {"spec": "../train", "data_root": None}, "model": "org/model"}
    paths |= {name: changes.pop(name) for name in ("model",) if name in changes}
    return {
        "source": {"images": 3, "classes": {"cat": 3}, "problems": []}, "license": "mit",
        "settings": {"steps": 50, "guidance_interval": [0.0, 1.0], "source_prompt": ""},
        "expansion": {"expansion_ratio": 2}, "filters": [{"name": "copy", "threshold": 0.3}],
        "rng_seed": 0, "batch_size": 32, "image_format": "folder", "device": "cpu", "threads": 1,
        "model": "abc", "versions": {"torch": "2"}, "conditions": {"cat": None}, "paths": paths,
    } | changes


def hostile(text):
    found = metadata(model=text, license=text, conditions={text: text})
    found["source"] = {"images": 3, "classes": {text: 1, "cat": 2}, "problems": [text]}
    found["settings"] |= {"source_prompt": text, "inversion": {"type": text}}
    found["expansion"] |= {"only_classes": [text]}
    found["filters"] = [{"name": text, "classifier": text}]
    return found


def body(card):
    return card[card.index("\n---\n") + 5:]


def kinds(card):
    markdown_it = pytest.importorskip("markdown_it")
    reader = markdown_it.MarkdownIt("commonmark").enable("table")
    return [kind for token in reader.parse(body(card))
            for kind in (token.type, *(child.type for child in token.children or ()))
            if kind not in ("text", "text_special")]


def test_whatever_names_and_texts_hold_the_card_has_the_same_shape():
    def stats(name):
        return Stats(Counter({name: 2, "cat": 4}), Counter({name: 1}), Counter({name: 1}),
                     Counter({name: 1}), 0, {f"{name}/1.png": f"cat/{name}"})

    tame = dataset_card(hostile("dog"), stats("dog"))
    for text in HOSTILE:
        card = dataset_card(hostile(text), stats(text))
        assert body(card).count("\n") == body(tame).count("\n") and kinds(card) == kinds(tame)
        names = DatasetCard(card).data.configs[0]["features"][1]["dtype"]["class_label"]["names"]
        assert names == {"0": text, "1": "cat"}
        assert not {"html_block", "html_inline", "link_open", "image"} & set(kinds(card))
        card.encode()


def test_the_card_counts_and_says_what_was_done():
    card = dataset_card(metadata(conditions={"cat": "a photo of a cat"}),
                        Stats(Counter(cat=6), Counter(copy=1), Counter(label=2)))
    assert card.startswith("---\ntags:\n- synthetic\n") and "\n---\n\n# Synthetic images" in card
    for line in ("| cat | 3 | 6 |", "Flagged and kept: copy 1.", "Flagged and left out: label 2.",
                 "| cat | a photo of a cat |", "| settings.steps | 50 |",
                 "Model org/model: mit. The seed images' licence applies as well."):
        assert line in card.splitlines()
    assert "\n\n\n" not in card and "## Warnings" in card
    quiet = dataset_card(metadata(), Stats(Counter(cat=6)))
    assert "Conditions" not in quiet and "Warnings" not in quiet and "\n\n\n" not in quiet


@pytest.mark.parametrize("card, stated", [
    ("\ufeff---\r\nlicense: 'apache-2.0'  # a comment\r\n---\r\n", "apache-2.0"),
    ("---\nlicense: other\nlicense_name: stabilityai-community\nlicense_link: LICENSE.md\n---\n",
     "stabilityai-community (LICENSE.md)"),
    ("# no front matter\nlicense: mit\n", NOT_STATED),
    ("---\nlicense: [mit\n---\n", NOT_STATED),
])
def test_the_licence_is_what_the_model_card_states(card, stated, tmp_path):
    (tmp_path / "README.md").write_text(card, newline="")
    assert license_of(str(tmp_path)).startswith(stated)


def test_the_licence_is_looked_up_without_a_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("org/model", "StableDiffusionPipeline", "no valid: id/at/all"):
        assert license_of(name).startswith(NOT_STATED)
    assert license_of(BUNDLED).startswith("Apache-2.0")
    snapshot = tmp_path / "models--org--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert license_of("org/model") == "mit"


def test_what_a_user_should_look_into_is_named():
    stats = Stats(Counter(cat=8), Counter({"seed-copy": 3}), Counter(copy=2), Counter(broken=1),
                  events=4, small_batches=5, losses=Counter({"rounded to 8 bits": 6}), filtered=2)
    assert stats.made == 8 and stats.left_out == 3
    found = stats.warnings(["cat", "dog", "owl"])
    for part in ("3 of 10 images hardly differ", "2 images look like a training image other",
                 "1 images were not made", "4 images failed a check",
                 "memory ran out: 5 images were made in smaller batches", "6 images are rounded",
                 "2 classes have no synthetic image ('dog', 'owl'). Their folders are empty"):
        assert any(part in warning for warning in found), part
    assert Stats(Counter(cat=1)).warnings(["cat"]) == []
