"""From HTML templates and values to text: every value is escaped."""

import base64
import hashlib
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

# Lone surrogates stand for bytes of a file name that are no text.
_SURROGATES = re.compile("[\ud800-\udfff]")


def render_html(template: str, **values: Any) -> str:
    """An HTML template filled with values, all of them escaped."""
    return _environment().get_template(template).render(values)


def packaged_text(name: str) -> Markup:
    """A style sheet or a script of ours, as it stands."""
    environment = _environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def content_hash(text: str) -> str:
    """What a content security policy calls a script by."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


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
