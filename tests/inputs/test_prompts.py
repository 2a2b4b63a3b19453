"""From labels to prompts, to classes, or to nothing, as the model asks."""

from types import SimpleNamespace

import pytest
import torch

from dreamda_aug.inputs.prompts import (
    DEFAULT_PROMPT,
    Captions,
    Conditioner,
    class_prompt,
    template_fields,
)


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


def test_classes_that_the_model_lacks_are_made_without_one_and_said_once():
    names = [f"c{number}" for number in range(12)]
    known = like_model("class", names, null_class=True)
    conditioner = Conditioner(["emu", "c3", "owl"], DEFAULT_PROMPT)
    with pytest.warns(UserWarning, match=r"tiny does not have the classes \['emu', 'owl'\], and "
                                         r"makes .* without a class; it has \['c0', .*") as said:
        made = [conditioner.condition(label, known) for label in (0, 1, 2, 0)]
    assert made == [None, "c3", None, None] and len(said) == 1
    # without a null class the name goes on to the model, which refuses it
    assert conditioner.condition(0, like_model("class", names)) == "emu"


@pytest.mark.filterwarnings("ignore:tiny does not have")
@pytest.mark.parametrize("name, known, expected", [
    ("T-shirt_top", ["T-shirt/top", "Dress"], "T-shirt/top"),
    ("ankle_boot", ["Ankle boot"], "Ankle boot"),
    ("7_a", ["7-a", "7 a"], None), ("C++", ["C", "C#"], None), ("grade_-1", ["grade 1"], None),
    ("ab", ["a b"], None),
])
def test_a_class_is_known_under_the_name_that_its_folder_can_have_and_no_other(
    name, known, expected
):
    model = like_model("class", known, null_class=True)
    assert Conditioner([name], DEFAULT_PROMPT).condition(0, model) == expected


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
    (Conditioner(["cat"], "an X-ray"), ["an X-ray"]), (Conditioner(None, DEFAULT_PROMPT), None),
    (Conditioner(None, DEFAULT_PROMPT, Captions({"a": "x", "b": "y"})), ["x", "y"]),
    (Conditioner(["cat"], lambda label: "x"), None),
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
    with pytest.raises(ValueError, match="the name '.udc80' is not UTF-8"):
        Conditioner(["cat", "\udc80"], DEFAULT_PROMPT)
