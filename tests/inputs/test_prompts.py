"""From labels to prompts, to classes, or to nothing, as the model asks."""

from types import SimpleNamespace

import pytest
import torch

from dreamda_aug.inputs.prompts import DEFAULT_PROMPT, Captions, Conditioner


def like_model(kind, class_names=None, null_class=False):
    return SimpleNamespace(name="tiny", condition_kind=kind, class_names=class_names,
                           guidable=null_class)


TEXT, CLASS, PLAIN = like_model("text"), like_model("class"), like_model("none")


@pytest.mark.parametrize("template, name, prompt", [
    (DEFAULT_PROMPT, "hot_dog", "A photo of a hot dog."),
    (DEFAULT_PROMPT, "Ankle boot", "A photo of an Ankle boot."),
    (DEFAULT_PROMPT, " cat_", "A photo of a cat."), ("an X-ray", "cat", "an X-ray"),
    ("{class_name}, {article} drawing", "owl", "owl, an drawing"),
])
def test_a_class_name_is_put_into_the_template(template, name, prompt):
    conditioner = Conditioner([name], template)
    assert conditioner.condition(0, TEXT) == prompt and conditioner.known_prompts() == [prompt]


def test_text_backbones_are_conditioned_on_the_prompt_of_the_label():
    named = Conditioner(["hot_dog", "apple"], DEFAULT_PROMPT)
    assert named.condition(1, TEXT) == named.condition("apple", TEXT) == "A photo of an apple."
    assert Conditioner(None, DEFAULT_PROMPT).condition("emu", TEXT) == "A photo of an emu."
    by_function = Conditioner(None, lambda label: f"number {label}")
    assert by_function.condition(7, TEXT) == "number 7"
    assert Conditioner(None, "an X-ray").condition(None, TEXT) == "an X-ray"
    assert Conditioner(None, "an X-ray").condition(5, PLAIN) is None
    with pytest.raises(ValueError, match="class_names must be given to put label 0 into a prompt"):
        Conditioner(None, DEFAULT_PROMPT).condition(0, TEXT)


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
    ("7_a", ["7-a", "7 a"], None), ("7 a", ["7-a", "7 a"], "7 a"),
    ("C++", ["C", "C#"], None), ("grade_-1", ["grade 1"], None), ("ab", ["a b"], None),
])
def test_a_class_is_known_under_the_name_that_its_folder_can_have_and_no_other(
    name, known, expected
):
    model = like_model("class", known, null_class=True)
    assert Conditioner([name], DEFAULT_PROMPT).condition(0, model) == expected


def test_class_backbones_are_conditioned_on_a_name_where_they_know_names_else_on_a_number():
    named, numbers = Conditioner(["cat", "dog"], DEFAULT_PROMPT), Conditioner(None, DEFAULT_PROMPT)
    assert named.condition(1, like_model("class", ["dog", "cat"])) == "dog"
    assert named.condition(1, CLASS) == numbers.condition(torch.tensor(1), CLASS) == 1
    assert numbers.condition(None, like_model("class", null_class=True)) is None
    with pytest.raises(ValueError, match="a label must be the number of one class .* got None"):
        numbers.condition(None, CLASS)


CAPTIONED = Conditioner(None, DEFAULT_PROMPT, Captions({"a": "x", "b": "y"}))


@pytest.mark.parametrize("conditioner, text, of_class, prompts", [
    (Conditioner(["cat", "emu"], DEFAULT_PROMPT), True, True,
     ["A photo of a cat.", "A photo of an emu."]),
    (Conditioner(None, DEFAULT_PROMPT), True, True, None),
    (Conditioner(["cat"], lambda label: "x"), True, True, None),
    (Conditioner(["cat", "emu"], "an X-ray"), False, True, ["an X-ray"]),
    (CAPTIONED, False, False, ["x", "y"]),
])
def test_labels_are_needed_and_prompts_known_ahead_as_the_condition_has_it(
    conditioner, text, of_class, prompts
):
    assert conditioner.needs_label(TEXT) == text and conditioner.needs_label(CLASS) == of_class
    assert conditioner.known_prompts() == prompts


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="captions take the place of the prompt, got prompt='x'"):
        Conditioner(None, "x", Captions(["y"]))
    with pytest.raises(ValueError, match="the name '.udc80' is not UTF-8"):
        Conditioner(["cat", "\udc80"], DEFAULT_PROMPT)
    for template in ("a {thing}", "{}", "{0}"):
        with pytest.raises(ValueError, match=r"prompt may use \{class_name\} and \{article\}, got"):
            Conditioner(None, template)
    with pytest.raises(ValueError, match="captions are for text-to-image models, and tiny is none"):
        CAPTIONED.condition(None, PLAIN, "a")
