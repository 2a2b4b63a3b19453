"""How synthetic images lie on disk."""

import string

from dreamda_aug.expansion.layouts import folder_names


def test_class_folders_have_names_that_every_file_system_bears():
    names = folder_names(["T-shirt/top", "t-shirt_TOP", "..", "", "a\\b:c", "Größe", string.digits])
    assert list(names.values()) == [
        "T-shirt_top", "t-shirt_TOP_2", "class", "class_2", "a_b_c", "Größe", string.digits]
