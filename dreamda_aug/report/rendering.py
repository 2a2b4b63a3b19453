"""From HTML templates and values to text: every value is escaped."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

# Lone surrogates stand for bytes of a file name that are no text.
_SURROGATES = re.compile("[\ud800-\udfff]")


def render_page(template: str, script: str, *styles: str, **values: Any) -> str:
    """A page as one file that asks nothing of a network: every value is escaped, and its policy
    lets no other script run than this one.

    Args:
        template: name of the page's template.
        script: name of its script.
        styles: names of its style sheets, joined in this order.
        values: what the template is filled with.
    """
    def packaged(name: str) -> str:
        return (files("dreamda_aug.report") / "templates" / name).read_text("utf-8")

    source = packaged(script)
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return _environment().get_template(template).render(
        values, style=Markup("".join(map(packaged, styles))), script=Markup(source),
        script_hash=f"sha256-{digest}")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("dreamda_aug.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_for_html,
    )


def _for_html(value: object) -> Markup:
    if isinstance(value, Markup):
        return value
    return escape(_SURROGATES.sub("\ufffd", str(value)))
