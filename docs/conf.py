"""How the site is built: ``sphinx-build -W --keep-going docs docs/_build/html``."""

import os
import sys
from pathlib import Path

from dreamda_aug.version import __version__

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

# Examples ask nothing of a network, and neither read nor fill a user's cache.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DREAMDA_CACHE"] = str(DOCS / "_build" / "cache")

project = "dreamda_aug"
copyright = "the dreamda_aug authors, Apache-2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "extensions.docstrings",
    "extensions.names",
    "extensions.repository",
]
exclude_patterns = ["_build", "extensions", "gallery/*.ipynb", "gallery/*.py"]
nitpicky = True

# Pages outside docs/ that have a place in the navigation; others come along where they are linked.
repository_pages = ["CHANGELOG.md", "CONTRIBUTING.md", "dreamda_aug/weights/README.md"]

# `Name` in a docstring is a link to where the name is described; see extensions/names.py.
default_role = "py:obj"
autosummary_generate = False
# its callback alone needs it
autodoc_mock_imports = ["lightning"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_use_ivar = True
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"
python_display_short_literal_types = True

myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib", "extensions.pictures.scrape"),
    "doc_module": ("dreamda_aug",),
    "reference_url": {"dreamda_aug": None},
    "backreferences_dir": "gallery/backreferences",
    "download_all_examples": False,
    "write_computation_times": False,
    "show_memory": False,
    "min_reported_time": 3600,
    "thumbnail_size": (400, 224),
}

html_theme = "furo"
html_title = f"dreamda_aug {version}"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
