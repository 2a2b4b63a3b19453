"""The card of a synthetic dataset: what it holds, what it was made with, and its licence."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from dreamda_aug.expansion.metadata import WHERE, find_path
from dreamda_aug.expansion.stats import Stats
from dreamda_aug.generation.dials import DIALS
from dreamda_aug.machine_paths import path_name, without_paths
from dreamda_aug.models import BUNDLED

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


def dataset_card(facts: Mapping[str, Any], stats: Stats) -> str:
    """The card as Markdown. Names and texts from outside are shown as they are, never as markup.

    Args:
        facts: what `read_metadata` returns.
        stats: what `read_stats` returns.
    """
    source, where = facts["source"], facts[WHERE]
    known = paths_of(facts)
    return _template().render(
        made=stats.made,
        seed_images=source["images"],
        model=_model_name(where["model"]),
        license=without_paths(str(where["license"]), known),
        classes=[(name, count, stats.images[name]) for name, count in source["classes"].items()],
        flagged=[(title, sorted(counts.items())) for title, counts in (
            ("Flagged and kept", stats.flags), ("Flagged and left out", stats.dropped),
            ("Not made", stats.unreadable))],
        calibration=_calibration(facts),
        warnings=[without_paths(str(note), known)
                  for note in (*source["problems"], *stats.warnings())],
        conditions=[(name, value) for name, value in facts.get("conditions", {}).items()
                    if isinstance(value, str) and name in source["classes"]],
        settings=[(name, without_paths(_plain(value), known)) for name, value in _settings(facts)],
    )


def license_of(model: str) -> str:
    """The licence that a model card states, as far as it lies on this machine; asks no network.

    Args:
        model: ``"bundled"``, a model's folder, or the hub id of a model in the hub's cache.
    """
    if model == BUNDLED:
        return "Apache-2.0, trained on Fashion-MNIST (MIT licence)"
    card = _model_card(model)
    if card is None:
        return _NOT_STATED
    # imported here: a second that the bundled model needs not
    import yaml
    from huggingface_hub import ModelCard, ModelCardData

    try:
        text = card.read_text("utf-8-sig", errors="replace")
        stated = ModelCard(text, ignore_metadata_errors=True).data
    except (ValueError, TypeError, yaml.YAMLError):
        return _NOT_STATED  # its front matter is none
    assert isinstance(stated, ModelCardData)
    name, link = stated.license, stated.license_link
    if name == "other" and stated.license_name:
        name = stated.license_name
    if not name:
        return _NOT_STATED
    name = ", ".join(map(str, name)) if isinstance(name, list) else str(name)
    return f"{name} ({link})" if link else name


def paths_of(facts: Mapping[str, Any], root: str | Path = "") -> list[str]:
    """The paths of this or another machine that a dataset's facts name.

    Args:
        facts: what `read_metadata` returns.
        root: the dataset's folder, which relative ones are seen from.
    """
    where = facts[WHERE]
    source = where.get("source") or {}
    named = (where["model"], where.get("lora"), source.get("spec"), source.get("data_root"))
    return [find_path(root, str(place)) for place in named if place]


def _model_name(place: str) -> str:
    """What a model is called: of a path on record the last part, which is all that is public."""
    return PurePosixPath(place).name if place.startswith(("./", "../")) else path_name(place)


def _model_card(model: str) -> Path | None:
    card = Path(model) / "README.md"
    if card.is_file():
        return card
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, "README.md")
    except HFValidationError:
        return None  # a path or a pipeline's class, no hub id
    return Path(cached) if isinstance(cached, str) else None


def _settings(facts: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield from facts["settings"].items()
    for name in ("rng_seed", "batch_size", "image_format", "device", "threads", "model"):
        yield name, facts[name]
    for name in ("block_index", "embedded_guidance"):  # of transformers alone
        if facts.get(name) is not None:
            yield name, facts[name]
    yield from facts["expansion"].items()
    for described in facts["filters"]:
        yield f"filter {described['name']}", described
    yield from facts["versions"].items()


def _calibration(facts: Mapping[str, Any]) -> str:
    """What dials were chosen by measurement, and why; "" where none were."""
    found = facts.get("calibration")
    if not isinstance(found, dict):
        return ""
    dials = ", ".join(f"{name} {found[name]:g}" for name in DIALS
                      if isinstance(found.get(name), int | float))
    judge = f", judged by {found['judge']}" if found.get("judge") else ""
    missed = "" if found.get("met") else ", which nothing kept: the closest was taken"
    return f"{dials}: the furthest that images go with {found.get('target')}{missed}{judge}"


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
    return environment.get_template("dataset_card.md.jinja")
