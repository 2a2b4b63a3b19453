"""Counts of a finished dataset, and what a user is warned of."""

from dreamda_aug.expansion.stats import Stats


def test_equal_seed_images_are_named_as_far_as_there_is_room():
    few, many = (Stats(same_pixels={f"dog/{i}.bmp": f"cat/{i}.png" for i in range(count)})
                 for count in (2, 11))
    assert (few.repeated, many.repeated) == (2, 11)
    said, = few.warnings()
    assert "(dog/0.bmp = cat/0.png, dog/1.bmp = cat/1.png)" in said
    said, = many.warnings()
    assert said.startswith("11 seed images") and "dog/9.bmp = cat/9.png, ...)" in said
    assert "dog/10.bmp" not in said
