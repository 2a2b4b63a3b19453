"""The card of a synthetic dataset: what it holds, what it was made with, and its licence."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dreamda_aug.generation.dials import DIALS
from dreamda_aug.models import BUNDLED
from dreamda_aug.records.facts import WHERE, find_place
from dreamda_aug.records.tally import Tally
from dreamda_aug.report.places import place_name, without_places
from dreamda_aug.report.rendering import render_markdown

_NOT_STATED = "not stated where the model lies on this machine; look it up before publishing"


def dataset_card(facts: Mapping[str, Any], tally: Tally) -> str:
    """The card as Markdown. Names and texts from outside are shown as they are, never as markup.

    Args:
        facts: what `read_plan` returns.
        tally: what `tally_of` returns.
    """
    source, where = facts["source"], facts[WHERE]
    known = places_of(facts)
    return render_markdown(
        "dataset_card.md.jinja",
        made=tally.made,
        seed_images=source["images"],
        model=_model_name(where["model"]),
        license=without_places(str(where["license"]), known),
        classes=[(name, count, tally.images[name]) for name, count in source["classes"].items()],
        flagged=[(title, sorted(counts.items())) for title, counts in (
            ("Flagged and kept", tally.flags), ("Flagged and left out", tally.dropped),
            ("Not made", tally.unreadable))],
        calibration=_calibration(facts),
        warnings=[without_places(str(note), known)
                  for note in (*source["problems"], *tally.warnings())],
        conditions=[(name, value) for name, value in facts.get("conditions", {}).items()
                    if isinstance(value, str) and name in source["classes"]],
        settings=[(name, without_places(_plain(value), known)) for name, value in _settings(facts)],
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


def places_of(facts: Mapping[str, Any], root: str | Path = "") -> list[str]:
    """The paths of this or another machine that a dataset's facts name.

    Args:
        facts: what `read_plan` returns.
        root: the dataset's folder, which relative ones are seen from.
    """
    where = facts[WHERE]
    source = where.get("source") or {}
    named = (where["model"], where.get("lora"), source.get("spec"), source.get("data_root"))
    return [find_place(root, str(place)) for place in named if place]


def _model_name(place: str) -> str:
    """What a model is called: of a path on record the last part, which is all that is public."""
    return PurePosixPath(place).name if place.startswith(("./", "../")) else place_name(place)


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
    for name in ("rng_seed", "unit_size", "image_format", "device", "threads", "model"):
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
