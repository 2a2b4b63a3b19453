"""From labels to prompts, to classes, or to nothing, as the model asks."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from pictures import picture

from dreamda_aug import DreamDAugment, load_model
from dreamda_aug.inputs.captions import Captions
from dreamda_aug.inputs.prompts import (
    DEFAULT_PROMPT,
    Conditioner,
    class_prompt,
    template_fields,
)

FAST = dict(preset="paper", steps=3, noise_scale=8.0, p=1.0, cache=None)


def like_model(kind, class_names=None, null_class=False):
    return SimpleNamespace(name="tiny", condition_kind=kind, class_names=class_names,
                           guidable=null_class)


TEXT, CLASS, PLAIN = like_model("text"), like_model("class"), like_model("none")


@pytest.mark.parametrize("name, prompt", [
    ("hot_dog", "A photo of a hot dog."), ("apple", "A photo of an apple."),
    ("Ankle boot", "A photo of an Ankle boot."), (" cat_", "A photo of a cat."),
])
def test_a_class_name_is_put_into_the_authors_template(name, prompt):
    assert class_prompt(DEFAULT_PROMPT, name) == prompt


def test_a_template_of_ones_own_may_use_the_name_the_article_or_neither():
    assert class_prompt("{class_name}, {article} drawing", "owl") == "owl, an drawing"
    assert template_fields("{class_name} {article}") == {"class_name", "article"}
    assert template_fields("an X-ray") == template_fields("{{braces}}") == set()
    for template in ("a {thing}", "{}", "{0}"):
        with pytest.raises(ValueError, match=r"prompt may use \{class_name\} and \{article\}, got"):
            template_fields(template)


def test_text_backbones_are_conditioned_on_the_prompt_of_the_label():
    named = Conditioner(["hot_dog", "apple"], DEFAULT_PROMPT)
    assert named.condition(1, TEXT) == named.condition("apple", TEXT) == "A photo of an apple."
    assert Conditioner(None, DEFAULT_PROMPT).condition("emu", TEXT) == "A photo of an emu."
    by_function = Conditioner(None, lambda label: f"number {label}")
    assert by_function.condition(7, TEXT) == "number 7"
    assert Conditioner(None, "an X-ray").condition(None, TEXT) == "an X-ray"


def test_a_class_that_the_backbone_does_not_know_is_made_without_one_and_said_once():
    known = like_model("class", ["dog", "cat"], null_class=True)
    conditioner = Conditioner(["emu", "dog"], DEFAULT_PROMPT)
    with pytest.warns(UserWarning, match=r"tiny does not have the classes \['emu'\], .* it has "
                                         r"\['dog', 'cat'\]"):
        assert conditioner.condition(0, known) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert conditioner.condition(0, known) is None
        assert conditioner.condition(1, known) == "dog"
    # without a null class the name goes on to the model, which refuses it
    assert conditioner.condition(0, like_model("class", ["dog", "cat"])) == "emu"


def test_all_classes_that_the_backbone_does_not_know_are_said_at_once():
    known = like_model("class", [f"c{number}" for number in range(12)], null_class=True)
    conditioner = Conditioner(["emu", "c3", "owl"], DEFAULT_PROMPT)
    with pytest.warns(UserWarning, match=r"have the classes \['emu', 'owl'\], and makes their "
                                         r"images without a class; it has \['c0', .*") as said:
        assert [conditioner.condition(label, known) for label in range(3)] == [None, "c3", None]
    assert len(said) == 1


@pytest.mark.parametrize("name, known_as", [
    ("T-shirt_top", "T-shirt/top"), ("ankle_boot", "Ankle boot"), ("Ankle boot", "Ankle boot"),
])
def test_a_class_is_known_under_the_name_that_its_folder_can_have(name, known_as):
    known = like_model("class", ["T-shirt/top", "Ankle boot"], null_class=True)
    assert Conditioner([name], DEFAULT_PROMPT).condition(0, known) == known_as


@pytest.mark.parametrize("name, known", [
    ("7_a", ["7-a", "7 a"]), ("C++", ["C", "C#"]), ("-1", ["1"]), ("grade_-1", ["grade 1"]),
    ("+", ["-"]), ("ab", ["a b"]),
])
def test_names_that_may_be_others_are_not_guessed(name, known):
    model = like_model("class", known, null_class=True)
    assert Conditioner(known, DEFAULT_PROMPT).condition(1 % len(known), model) == known[-1]
    with pytest.warns(UserWarning, match="does not have the classes"):
        assert Conditioner([name], DEFAULT_PROMPT).condition(0, model) is None


def test_no_label_is_the_null_class_where_there_is_one():
    conditioner = Conditioner(None, DEFAULT_PROMPT)
    assert conditioner.condition(None, like_model("class", null_class=True)) is None
    with pytest.raises(ValueError, match="a label must be the number of one class .* got None"):
        conditioner.condition(None, CLASS)


def test_class_backbones_are_conditioned_on_a_name_where_they_know_names_else_on_a_number():
    named = Conditioner(["cat", "dog"], DEFAULT_PROMPT)
    assert named.condition(1, like_model("class", ["dog", "cat"])) == "dog"
    assert named.condition(1, CLASS) == 1
    assert Conditioner(None, DEFAULT_PROMPT).condition(torch.tensor(1), CLASS) == 1


@pytest.mark.parametrize("conditioner, text, of_class", [
    (Conditioner(["a"], DEFAULT_PROMPT), True, True),
    (Conditioner(None, lambda label: "x"), True, True),
    (Conditioner(None, "an X-ray"), False, True),
    (Conditioner(None, DEFAULT_PROMPT, Captions(["x"])), False, False),
])
def test_labels_are_needed_only_where_the_condition_says_them(conditioner, text, of_class):
    assert conditioner.needs_label(TEXT) == text and conditioner.needs_label(CLASS) == of_class


@pytest.mark.parametrize("conditioner, expected", [
    (Conditioner(["cat", "emu"], DEFAULT_PROMPT), ["A photo of a cat.", "A photo of an emu."]),
    (Conditioner(None, "an X-ray"), ["an X-ray"]), (Conditioner(["cat"], "an X-ray"), ["an X-ray"]),
    (Conditioner(None, DEFAULT_PROMPT, Captions({"a": "x", "b": "y"})), ["x", "y"]),
    (Conditioner(None, DEFAULT_PROMPT), None), (Conditioner(["cat"], lambda label: "x"), None),
    (Conditioner(None, DEFAULT_PROMPT, Captions(lambda name: "x")), None),
])
def test_all_prompts_are_known_ahead_unless_a_function_or_an_open_label_makes_them(
    conditioner, expected
):
    assert conditioner.known_prompts() == expected


def test_a_number_without_a_name_cannot_be_put_into_words():
    with pytest.raises(ValueError, match="class_names must be given to put label 0 into a prompt"):
        Conditioner(None, DEFAULT_PROMPT).condition(0, TEXT)
    assert Conditioner(None, "an X-ray").condition(5, PLAIN) is None


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="class_names must be a list of names, got the string 'ca"):
        Conditioner("cat", DEFAULT_PROMPT)
    with pytest.raises(ValueError, match="captions take the place of the prompt, got prompt='x'"):
        Conditioner(None, "x", Captions(["y"]))
    with pytest.raises(ValueError, match=r"prompt may use .* with thing"):
        Conditioner(None, "a {thing}")
    with pytest.raises(ValueError, match="the name '.udc80' is not UTF-8"):
        Conditioner(["cat", "\udc80"], DEFAULT_PROMPT)


def test_the_model_gets_the_prompts_of_the_class_names(sd_pipeline, monkeypatch):
    model, prompts = load_model(copy.deepcopy(sd_pipeline)), []
    embed = model.embed
    monkeypatch.setattr(model, "embed",
                        lambda given: prompts.extend(filter(None, given)) or embed(given))
    augment = DreamDAugment(model, class_names=["hot_dog", "apple"], **FAST)
    augment((picture("RGB"), 0))
    augment({"image": picture("RGB"), "label": torch.tensor(1)})
    augment(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))
    assert prompts == ["A photo of a hot dog.", "A photo of an apple.", "A photo of a hot dog.",
                       "A photo of an apple."]
