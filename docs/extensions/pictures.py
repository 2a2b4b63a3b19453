"""A gallery's cell that ends in a PIL image shows it, as a notebook does."""

from typing import Any

import PIL.Image
from sphinx_gallery.scrapers import figure_rst

# where sphinx-gallery keeps the value of a cell's last expression
_LAST = "___"


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the image that a cell ended in, if it did; see sphinx-gallery's ``image_scrapers``."""
    names = block_vars["example_globals"]
    image = names.get(_LAST)
    if not isinstance(image, PIL.Image.Image):
        return ""
    # or a later cell without a last expression would show it again
    names[_LAST] = None
    path = next(block_vars["image_path_iterator"])
    image.save(path)
    return str(figure_rst([path], gallery_conf["src_dir"]))
