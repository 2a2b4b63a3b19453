"""The card of a synthetic dataset: what it holds, what it was made with, and its licence."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dreamda_aug.backbones import BUNDLED
from dreamda_aug.expansion.manifest import read_manifest
from dreamda_aug.expansion.store import WHERE, read_skipped

FLAGGED = "flagged: "


@dataclass
class Tally:
    """Counts of a finished dataset.

    Attributes:
        images: synthetic images by class name.
        flags: images in the dataset by filter's name.
        dropped: images that were made and not kept, by filter's name.
        unreadable: images that could not be made, by reason.
        events: images whose generation a guard stepped into.
        repeated: seed images whose pixels equal those of another one; so do their replicas.
    """

    images: Counter = field(default_factory=Counter)
    flags: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    unreadable: Counter = field(default_factory=Counter)
    events: int = 0
    repeated: int = 0

    @property
    def made(self) -> int:
        """Images in the dataset."""
        return sum(self.images.values())

    def warnings(self) -> list[str]:
        """What a user should look into, in words."""
        found = []
        every = self.made + sum(self.dropped.values())
        close = self.flags["seed-copy"] + self.dropped["seed-copy"]
        if every and close > 0.2 * every:
            found.append(
                f"{close} of {every} images hardly differ from their seed image: the perturbation "
                "is too weak. Measure a stronger one with `dreamda calibrate`."
            )
        copies = self.flags["copy"] + self.dropped["copy"]
        if copies:
            found.append(
                f"{copies} images look like a training image other than their seed: the backbone "
                "may have memorised it. Look at them before you publish the dataset."
            )
        if self.repeated:
            found.append(
                f"{self.repeated} seed images are pixel for pixel equal to another one; their "
                "replicas are equal too."
            )
        if self.unreadable:
            found.append(f"{sum(self.unreadable.values())} images were not made, because their "
                         "seed image is unreadable; see skipped.jsonl.")
        if self.events:
            found.append(f"a guard stepped in for {self.events} images; see events in the "
                         "manifest.")
        return found


def tally_of(root: str | Path) -> Tally:
    """Count a finished dataset; reads its manifest line by line."""
    tally = Tally()
    seen: dict[bytes, int] = {}
    repeated = set()
    for line in read_manifest(root):
        tally.images[line.class_name] += 1
        tally.flags.update(line.flags)
        tally.events += bool(line.events)
        first = seen.setdefault(bytes.fromhex(line.seed_digest), line.seed_index)
        if first != line.seed_index:
            repeated.add(line.seed_index)
    tally.repeated = len(repeated)
    for _, entry in read_skipped(Path(root)):
        reason = entry["skipped"]
        if reason.startswith(FLAGGED):
            tally.dropped.update(reason.removeprefix(FLAGGED).split(", "))
        else:
            tally.unreadable[reason] += 1
    return tally


def dataset_card(facts: dict, tally: Tally) -> str:
    """The card as Markdown.

    Args:
        facts: what `read_plan` returns.
        tally: what `tally_of` returns.
    """
    source, where = facts["source"], facts[WHERE]
    lines = [
        "---", "tags:", "- synthetic", "---", "",
        "# Synthetic images made with dreamda_aug", "",
        f"**Every image in this dataset is synthetic.** {tally.made} images were generated from "
        f"{source['images']} seed images with DreamDA (arXiv:2403.12803). They carry the label of "
        "their seed image, which they may not deserve. They are not fit for clinical use.", "",
        "Each PNG carries the text chunks `synthetic` (\"true\") and `dreamda`, its line of "
        "`manifest.jsonl`; `dreamda regenerate` makes it again from there.", "",
        "## Licence", "",
        f"Backbone `{where['backbone']}`: {where['license']}. The seed images' licence applies "
        "as well.", "",
        "## Counts", "", "| class | seed images | synthetic images |", "| --- | ---: | ---: |",
    ]
    lines += [f"| {_cell(name)} | {count} | {tally.images[name]} |"
              for name, count in source["classes"].items()]
    for title, counts in (("Flagged and kept", tally.flags), ("Flagged and left out",
                          tally.dropped), ("Not made", tally.unreadable)):
        if counts:
            lines += ["", f"{title}: " + ", ".join(f"{name} {count}"
                                                   for name, count in sorted(counts.items())) + "."]
    notes = source["problems"] + tally.warnings()
    if notes:
        lines += ["", "## Warnings", "", *(f"- {note}" for note in notes)]
    lines += ["", "## Settings", "", "| setting | value |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(_plain(value))} |" for name, value in facts["settings"].items()]
    for name in ("rng_seed", "unit_size", "image_format", "device", "threads", "backbone"):
        lines.append(f"| {name} | {facts[name]} |")
    lines += [f"| {name} | {_cell(_plain(value))} |" for name, value in facts["expansion"].items()]
    lines += [f"| filter {described['name']} | {_cell(_plain(described))} |"
              for described in facts["filters"]]
    lines += [f"| {name} | {number} |" for name, number in facts["versions"].items()]
    return "\n".join(lines) + "\n"


def license_of(backbone: str) -> str:
    """The licence that a model card states, as far as it lies on this machine."""
    if backbone == BUNDLED:
        return "Apache-2.0, trained on Fashion-MNIST (MIT licence)"
    card = Path(backbone) / "README.md"
    if not card.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.utils import HFValidationError

        try:
            cached = try_to_load_from_cache(backbone, "README.md")
        except HFValidationError:
            cached = None
        card = Path(cached) if isinstance(cached, str) else card
    if card.is_file():
        for line in card.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("license:"):
                return line.partition(":")[2].strip()
    return "not stated where the model lies on this machine; look it up before publishing"


def _plain(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
