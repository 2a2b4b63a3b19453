import re

import pytest
from markupsafe import Markup
from report.hostile import HOSTILE

from dreamda_aug.report.rendering import content_hash, escape_markdown

markdown_it = pytest.importorskip("markdown_it")
READERS = {
    "CommonMark": markdown_it.MarkdownIt("commonmark"),
    "GitHub": markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]),
}


def shown(text: str) -> str:
    """What a reader should see: one line without what cannot be seen."""
    text = re.sub("[\x00-\x1f\x7f\u2028\u2029\u202a-\u202e]+", " ", text)
    return " ".join(re.sub("[\ud800-\udfff]", "\ufffd", text).split())


def read(reader, source: str) -> list:
    """Kinds of all tokens, and the text in them."""
    kinds, words = [], []
    for token in reader.parse(source):
        kinds.append(token.type)
        for child in token.children or ():
            kinds.append(child.type)
            words.append(child.content)
    return kinds, " ".join("".join(words).split())


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_character_for_character_wherever_it_stands(reader, text):
    escaped = escape_markdown(text)
    assert "\n" not in escaped and "\r" not in escaped
    for before, after, kinds in (
        ("", "", ["paragraph_open", "inline", "paragraph_close"]),
        ("- ", "", ["bullet_list_open", "list_item_open", "paragraph_open", "inline",
                      "paragraph_close", "list_item_close", "bullet_list_close"]),
        ("words ", " words", ["paragraph_open", "inline", "paragraph_close"]),
    ):
        found, words = read(reader, f"{before}{escaped}{after}\n")
        assert [kind for kind in found if kind not in ("text", "text_special")] == kinds
        assert words == f"{before.removeprefix('- ')}{shown(text)}{after}"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_in_its_cell(text):
    table = f"| a | b |\n| --- | --- |\n| {escape_markdown(text)} | end |\n"
    found = READERS["GitHub"].parse(table)
    cells = [token.content for token in found if token.type == "inline"]
    assert len(cells) == 4 and cells[3] == "end"
    assert [token.type for token in found].count("tr_open") == 2


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_no_markup_for_html_either(text):
    assert not re.search("[<>]", escape_markdown(text))


@pytest.mark.parametrize("text", [
    "T-shirt/top", "noise_scale", "a_b_c", "0.5", "-1", "3 images (of 4): 75%.", "1.5 x", "Grün",
    "torchvision:CIFAR10", "stabilityai/sd-turbo", "猫", "👩‍🚀",
])
def test_ordinary_names_stay_as_they_are(text):
    assert escape_markdown(text) == text


def test_markup_is_what_it_says():
    assert isinstance(escape_markdown("<"), Markup)
    # of the empty text, as `printf '' | openssl sha256 -binary | base64` says
    assert content_hash("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
