"""From templates and values to text: every value is escaped for the format of its template."""

import base64
import hashlib
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

# What means something to HTML, to CommonMark, or to the extensions that GitHub and the hub read:
# tables, strikethrough, formulas. A backslash before the first four works in every Markdown;
# before the others it does not, and character references do.
_SPECIAL = {ord(c): f"\\{c}" for c in "`*_#"} | {ord(c): f"&#{ord(c)};" for c in "\\[]|~$!{}"} | {
    ord("<"): "&lt;", ord(">"): "&gt;", ord("&"): "&amp;"}
# Line breaks, other control characters, what turns the reading direction, and lone surrogates,
# which stand for bytes of a file name that are no text.
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_SURROGATES = re.compile("[\ud800-\udfff]")
# At the start of a line these open a list, a quotation or a heading.
_OPENING = re.compile(r"\A(?P<number>\d{0,9})(?P<mark>[-+=.)])(?=\s|\Z|[-=])")
# Inside of a word an underscore is a letter.
_INNER_UNDERSCORES = re.compile(r"(?<=[^\W_])_+(?=[^\W_])")


def escape_markdown(text: object) -> Markup:
    """The text as one line that Markdown, and HTML after it, show character for character."""
    line = _SURROGATES.sub("\ufffd", _BREAKS.sub(" ", str(text))).strip()
    line = _INNER_UNDERSCORES.sub(lambda found: "\0" * len(found[0]), line)
    line = line.translate(_SPECIAL).replace("\0", "_")
    return Markup(_OPENING.sub(lambda found: f"{found['number']}&#{ord(found['mark'])};", line))


def render_markdown(template: str, **values: Any) -> str:
    """A Markdown template filled with values, all of them escaped by `escape_markdown`."""
    return _environment("markdown").get_template(template).render(values)


def render_html(template: str, **values: Any) -> str:
    """An HTML template filled with values, all of them escaped."""
    return _environment("html").get_template(template).render(values)


def packaged_text(name: str) -> Markup:
    """A style sheet or a script of ours, as it stands."""
    environment = _environment("html")
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def content_hash(text: str) -> str:
    """What a content security policy calls a script by."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


@cache
def _environment(kind: str) -> Environment:
    return Environment(
        loader=PackageLoader("dreamda_aug.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_for_markdown if kind == "markdown" else _for_html,
    )


def _for_markdown(value: object) -> Markup:
    return value if isinstance(value, Markup) else escape_markdown(value)


def _for_html(value: object) -> Markup:
    if isinstance(value, Markup):
        return value
    return escape(_SURROGATES.sub("\ufffd", str(value)))
