"""Does every family of diffusion models do what it must?

    python -m benchmarks.families                       # check all, print the table
    python -m benchmarks.families --out .               # and write docs/families.md, and the record
    python -m benchmarks.families sd3 flux              # some of them

Each family is a tiny random pipeline in diffusers' own classes: no weights are downloaded, and
nothing is said about the quality of images.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.common.provenance import commit, machine_and_torch
from benchmarks.families import checks
from benchmarks.families.own_pipelines import OWN
from benchmarks.families.pipelines import PIPELINES, SIDE, wide_sd3
from benchmarks.families.speed import hook_cost
from dreamda_aug import load_model
from dreamda_aug.models.transformer import TransformerModel

LARGEST_ERROR = 1e-4


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, print, and write if a folder is given; ends with 1 if a check fails."""
    args = parse(arguments)
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    names = args.families or list(PIPELINES)
    record = {
        "commit": commit(), "machine": machine_and_torch("cpu"),
        "diffusers": diffusers.__version__, "families": {name: measured(name) for name in names},
    }
    if not args.families:
        record["wide"] = hook_cost(TransformerModel(wide_sd3()), repetitions=5)._asdict()
    text = table(record)
    print(text)
    if args.out:
        (args.out / "benchmarks/results/families.json").write_text(
            json.dumps(record, indent=2) + "\n")
        (args.out / "docs/families.md").write_text(text)
    if failed := [name for name, row in record["families"].items() if not holds(row)]:
        raise SystemExit(f"failed: {', '.join(failed)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.families", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("families", nargs="*", metavar="family",
                        help=f"of {', '.join(PIPELINES)}; none: all")
    parser.add_argument("--out", type=Path, help="the repository, to write docs and record")
    args = parser.parse_args(arguments)
    for name in args.families:
        if name not in PIPELINES:
            parser.error(f"family must be one of {', '.join(PIPELINES)}, got {name!r}")
    return args


def measured(name: str) -> dict[str, Any]:
    """Every check of one family, as numbers."""
    model = load_model(PIPELINES[name](), image_size=(SIDE, SIDE), **checks.options(name))
    own, rows = OWN[name], None
    if isinstance(model, TransformerModel):
        rows = checks.rows_per_step(model)
    return {
        "denoiser": type(model.denoiser).__name__, "pipeline": own.kind,
        "guidance_scales": own.guidance_scales, "guidable": model.guidable,
        "differences_from_own_pipeline": [
            setting._asdict() | {"difference": checks.difference_from_own_pipeline(
                name, model, setting)} for setting in own.settings],
        "replay_error_unguided": checks.replay_error(model, 1),
        "replay_error_guided": checks.replay_error(model, 4),
        "moved": checks.moved(model, 2.0), "moved_at_scale_0": checks.moved(model, 0.0),
        "rows_before_and_behind_hook": rows,
        "difference_in_a_batch": checks.difference_alone_and_in_a_batch(model),
    }


def holds(row: dict[str, Any]) -> bool:
    """Whether all checks of a family hold."""
    small = ("replay_error_unguided", "replay_error_guided", "moved_at_scale_0",
             "difference_in_a_batch")
    guided = 2 if row["guidable"] else 1
    return (all(value <= LARGEST_ERROR for value in (largest(row), *(row[name] for name in small)))
            and row["moved"] > 0.05
            and row["rows_before_and_behind_hook"] in (None, (guided, 2 * guided)))


def largest(row: dict[str, Any]) -> float:
    """Largest difference of a family from its own pipeline."""
    return max(each["difference"] for each in row["differences_from_own_pipeline"])


def table(record: dict[str, Any]) -> str:
    """The page ``docs/families.md``."""
    lines = [
        "# Families of models, and what was checked", "",
        "Written by `python -m benchmarks.families --out .`; do not edit. Each row is a tiny "
        "random pipeline in diffusers' own classes. It shows that the arithmetic is that of the "
        f"family's own pipeline (diffusers {record['diffusers']}), not what images look like.", "",
        "- **own pipeline**: largest difference of a pixel from the family's own pipeline, from "
        "the same start, with replay 0 and no noise, at 4 and 8 steps, guidance scale 1 and 4; "
        "image-to-image at strength 0.5 and 0.75, or text- or class-to-image.",
        "- **replay**: largest error of a latent after inversion and replay without noise, "
        "unguided and at guidance scale 4.",
        "- **moved**: root mean square by which noise of scale 2 moves latents; of scale 0 in "
        "brackets.",
        "- **rows**: of a transformer, per sample and step before and behind the hook, guided, "
        "asymmetric rule.",
        "- **batch**: largest difference of a latent of a sample alone and among seven with "
        "prompts of other lengths.", "",
        "| family | own pipeline | | replay | moved | rows | batch |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in record["families"].items():
        how = "" if row["guidable"] else ", guidance an input"
        if row["guidable"] and len(row["guidance_scales"]) == 1:
            how = f", guidance {row['guidance_scales'][0]:g} alone"
        rows = row["rows_before_and_behind_hook"]
        lines.append(
            f"| {name} | {largest(row):.0e} | `{row['pipeline']}`{how} | "
            f"{row['replay_error_unguided']:.0e}, {row['replay_error_guided']:.0e} | "
            f"{row['moved']:.2f} ({row['moved_at_scale_0']:.0e}) | "
            f"{'{:g}, {:g}'.format(*rows) if rows else '–'} | "
            f"{row['difference_in_a_batch']:.0e} |")
    if wide := record.get("wide"):
        lines += ["", "On an SD3 of 12 blocks of 384 channels with 256 image tokens, noise at the "
                  f"hook takes {wide['hook_ms'] / wide['step_ms']:.1%} of a step."]
    lines += ["", f"Measured on {record['machine']}, commit {record['commit']}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
