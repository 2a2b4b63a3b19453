"""The card of a synthetic dataset: what it holds, what it was made with, and its licence."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from dreamda_aug.expansion.exports import hub_fields
from dreamda_aug.expansion.metadata import LICENSE, PATHS
from dreamda_aug.expansion.stats import Stats
from dreamda_aug.method.settings import DIALS
from dreamda_aug.models.load import BUNDLED

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
_NOT_STATED = "not stated where the model lies on this machine; look it up before publishing"


def dataset_card(metadata: Mapping[str, Any], stats: Stats) -> str:
    """The card: YAML, and Markdown in which names and texts from outside are never markup."""
    import yaml

    source = metadata["source"]
    fields = yaml.safe_dump(hub_fields(metadata), sort_keys=False, allow_unicode=True,
                            width=float("inf"))
    return f"---\n{fields}---\n\n" + _template().render(
        made=stats.made,
        seed_images=source["images"],
        model=PurePosixPath(metadata[PATHS]["model"]).name
        if metadata[PATHS]["model"].startswith(("./", "../")) else metadata[PATHS]["model"],
        license=metadata[LICENSE],
        classes=[(name, count, stats.images[name]) for name, count in source["classes"].items()],
        flagged=[(title, sorted(counts.items())) for title, counts in (
            ("Flagged and kept", stats.flags), ("Flagged and left out", stats.dropped),
            ("Not made", stats.unreadable))],
        calibration=_calibration(metadata.get("calibration")),
        warnings=[*source["problems"], *stats.warnings(source["classes"])],
        conditions=[(name, value) for name, value in metadata["conditions"].items()
                    if isinstance(value, str) and name in source["classes"]],
        settings=[(name, _plain(value)) for name, value in _settings(metadata)],
    )


def license_of(model: str) -> str:
    """The licence that a model's card states, in its folder or the hub's cache; asks no network."""
    if model == BUNDLED:
        return "Apache-2.0, trained on Fashion-MNIST (MIT licence)"
    card = model_file(model, "README.md")
    if card is None:
        return _NOT_STATED
    # imported here: a second that the bundled model needs not
    import yaml
    from huggingface_hub import ModelCard

    try:
        stated = ModelCard(card.read_text("utf-8-sig", errors="replace"),
                           ignore_metadata_errors=True).data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError):
        return _NOT_STATED  # its front matter is none
    name, link = stated.get("license"), stated.get("license_link")
    if name == "other":
        name = stated.get("license_name") or name
    if not name:
        return _NOT_STATED
    name = ", ".join(map(str, name)) if isinstance(name, list) else str(name)
    return f"{name} ({link})" if link else name


def model_file(model: str, name: str) -> Path | None:
    """A file of a model, in its folder or in the hub's cache; asks no network."""
    path = Path(model) / name
    if path.is_file():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, name)
    except HFValidationError:
        return None  # a path or a pipeline's class, no hub id
    return Path(cached) if isinstance(cached, str) else None


def _settings(metadata: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield from metadata["settings"].items()
    for name in ("rng_seed", "batch_size", "image_format", "device", "threads", "model"):
        yield name, metadata[name]
    for name in ("block_index", "embedded_guidance"):  # of transformers alone
        if metadata.get(name) is not None:
            yield name, metadata[name]
    yield from metadata["expansion"].items()
    for described in metadata["filters"]:
        yield f"filter {described['name']}", described
    yield from metadata["versions"].items()


def _calibration(found: Mapping[str, Any] | None) -> str:
    """Which dials were chosen by measurement, and why; empty if none were."""
    if found is None:
        return ""
    dials = ", ".join(f"{name} {found[name]:g}" for name in DIALS if found[name] is not None)
    judge = f", judged by {found['judge']}" if found["judge"] else ""
    missed = "" if found["met"] else ", which nothing kept: the closest was taken"
    return f"{dials}: the furthest that images go with {found['target']}{missed}{judge}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def escape_markdown(text: object) -> Markup:
    """The text as one line that Markdown, and HTML after it, show character for character."""
    line = _SURROGATES.sub("\ufffd", _BREAKS.sub(" ", str(text))).strip()
    line = _INNER_UNDERSCORES.sub(lambda found: "\0" * len(found[0]), line)
    line = line.translate(_SPECIAL).replace("\0", "_")
    return Markup(_OPENING.sub(lambda found: f"{found['number']}&#{ord(found['mark'])};", line))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("dreamda_aug.expansion"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=escape_markdown)
    return environment.get_template("README.md.jinja")
